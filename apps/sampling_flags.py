"""Flags that programs share which draw samples: the trained model, and how it is sampled."""

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Folder of a training run, finished or not.")
flags.DEFINE_integer(
    "step", None, "Training step of a checkpoint of --workdir. Default: the last.", lower_bound=1
)
flags.DEFINE_string("weights", None, "A weights file, instead of --workdir; needs --preset.")
flags.DEFINE_string("preset", None, "The preset that --weights were trained with.")
flags.DEFINE_integer(
    "image_size",
    None,
    "The image size of --weights, and of images that are not a model's.",
    lower_bound=1,
)
flags.DEFINE_integer("num_classes", None, "The number of classes of --weights.", lower_bound=0)
flags.DEFINE_string(
    "autoencoder",
    None,
    "What decodes samples that are latents: stable_diffusion, stable_diffusion:FOLDER or "
    "kl:FOLDER. Default: a --workdir knows where its own was; of --weights it must be said.",
)
flags.DEFINE_string(
    "text_encoder",
    None,
    "What embeds prompts: minilm:FILE, clip or clip:FOLDER. Default: a --workdir knows where its "
    "own was; of --weights the preset's.",
)
flags.DEFINE_integer("batch_size", 64, "Samples drawn at once.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Sample i is drawn with seed + i.", lower_bound=0)
flags.DEFINE_enum(
    "sampler",
    None,
    ["ddpm", "ddim", "euler", "heun", "dpm_solver"],
    "How noise becomes an image. Default: the preset's.",
)
flags.DEFINE_integer("num_steps", None, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_float("guidance", None, "Scale of the guidance, 1 for none.", lower_bound=0.0)
flags.DEFINE_list(
    "guidance_interval",
    None,
    "LOW,HIGH: guide only at these noise levels, in the schedule's own unit. Default: at all.",
)
flags.DEFINE_bool("use_ema", True, "Whether the averaged weights are used.")


def one_model(values: dict) -> bool:
    """Returns whether the flags name one trained model: a workdir, or weights and their preset."""
    if values["workdir"]:
        described = ("weights", "preset", "image_size", "num_classes")
        return all(values[name] is None for name in described)
    return values["step"] is None and all(values[name] for name in ("weights", "preset", "output"))


def load_model() -> tuple:
    """Returns the model that the flags name, and its configuration."""
    from keras_cdiff import training

    if FLAGS.workdir:
        return training.load_run(FLAGS.workdir, FLAGS.text_encoder, FLAGS.autoencoder, FLAGS.step)
    names = ("autoencoder", "image_size", "num_classes", "text_encoder")
    changes = {name: FLAGS[name].value for name in names}
    return training.load_weights(FLAGS.weights, FLAGS.preset, **changes)


def sampling_options() -> dict:
    """Returns the options of sampling, by the names that `training.generate` gives them."""
    names = ("batch_size", "seed", "sampler", "num_steps", "guidance", "use_ema")
    options = {name: FLAGS[name].value for name in names}
    if FLAGS.guidance_interval is not None:
        try:
            low, high = map(float, FLAGS.guidance_interval)
        except ValueError:
            raise ValueError(
                "--guidance_interval must be two numbers, LOW,HIGH. "
                f"Received: --guidance_interval={','.join(FLAGS.guidance_interval)}"
            ) from None
        options["guidance_interval"] = (low, high)
    return options
