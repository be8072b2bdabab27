"""Draws samples from a trained model.

Examples:
  # 64 samples of a training run, into runs/emoji/output:
  python apps/sample.py --workdir=runs/emoji

  # One class, stronger guidance, more steps:
  python apps/sample.py --workdir=runs/emoji --label=5 --guidance=2 --num_steps=50 --output=smileys

  # From a weights file and the preset that it was trained with:
  python apps/sample.py --preset=dit_emoji16 --weights=ema.weights.h5 --output=samples
"""

import importlib.util
import os
import sys

from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Folder of a finished training run.")
flags.DEFINE_string("weights", None, "A weights file, instead of --workdir; needs --preset.")
flags.DEFINE_string("preset", None, "The preset that --weights were trained with.")
flags.DEFINE_integer("image_size", None, "The image size of --weights.", lower_bound=1)
flags.DEFINE_integer("num_classes", None, "The number of classes of --weights.", lower_bound=0)
flags.DEFINE_string("output", None, "Folder to write to. Default: WORKDIR/output.")
flags.DEFINE_integer("num_samples", 64, "Number of samples.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Samples drawn at once.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Sample i is drawn with seed + i.", lower_bound=0)
flags.DEFINE_enum(
    "sampler",
    None,
    ["ddpm", "ddim", "euler", "heun", "dpm_solver"],
    "How noise becomes an image. Default: the preset's.",
)
flags.DEFINE_integer("num_steps", None, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_integer("label", None, "Class of all samples. Default: all in turn.", lower_bound=0)
flags.DEFINE_float("guidance", None, "Scale of the guidance, 1 for none.", lower_bound=0.0)
flags.DEFINE_list(
    "guidance_interval",
    None,
    "LOW,HIGH: guide only at these noise levels, in the schedule's own unit. Default: at all.",
)
flags.DEFINE_bool("use_ema", True, "Whether the averaged weights are used.")
flags.DEFINE_enum(
    "backend",
    None,
    ["tensorflow", "jax", "torch"],
    "Keras backend. Default: KERAS_BACKEND, or else that of ~/.keras/keras.json.",
)


def _one_model(values: dict) -> bool:
    if values["workdir"]:
        described = ("weights", "preset", "image_size", "num_classes")
        return all(values[name] is None for name in described)
    return all(values[name] for name in ("weights", "preset", "output"))


flags.register_multi_flags_validator(
    ["workdir", "weights", "preset", "image_size", "num_classes", "output"],
    _one_model,
    message="Give --workdir, or else --weights with --preset and --output, but not both.",
)
flags.register_validator(
    "backend",
    lambda backend: backend is None or importlib.util.find_spec(backend) is not None,
    message="The backend is not installed: pip install jax, torch or tensorflow.",
)


def _interval(texts: list[str]) -> tuple[float, float]:
    try:
        low, high = map(float, texts)
    except ValueError:
        raise ValueError(
            "--guidance_interval must be two numbers, LOW,HIGH. "
            f"Received: --guidance_interval={','.join(texts)}"
        ) from None
    return low, high


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"Flags begin with --. Received: {' '.join(argv[1:])}")
    if FLAGS.backend:
        os.environ["KERAS_BACKEND"] = FLAGS.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets at length
    from keras_cdiff import training

    names = "num_samples batch_size seed sampler num_steps label guidance use_ema"
    try:
        if FLAGS.workdir:
            model, config = training.load_run(FLAGS.workdir)
        else:
            changes = {"image_size": FLAGS.image_size, "num_classes": FLAGS.num_classes}
            model, config = training.load_weights(FLAGS.weights, FLAGS.preset, **changes)
        output = FLAGS.output or os.path.join(FLAGS.workdir, "output")
        options = {name: FLAGS[name].value for name in names.split()}
        if FLAGS.guidance_interval is not None:
            options["guidance_interval"] = _interval(FLAGS.guidance_interval)
        training.generate(model, config, output, **options)
        print(f"wrote {output}/samples.png and {output}/samples.npz")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
