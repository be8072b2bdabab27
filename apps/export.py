"""Exports a trained model as a TensorFlow SavedModel that samples where this package is not.

Examples:
  # A training run, with its own sampler:
  python apps/export.py --workdir=runs/emoji --output=served/emoji/1

  # Another sampler, fewer steps, XLA:
  python apps/export.py --workdir=runs/emoji --sampler=dpm_solver --num_steps=12 --jit_compile \\
      --output=served/fast/1

The model card lies in OUTPUT/assets.extra/model_card.md.
"""

import os
import sys

import launch
from absl import flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("output", None, "Folder to write; it must not exist, or be empty.")
flags.DEFINE_enum(
    "format",
    "saved_model",
    ["saved_model", "onnx", "litert"],
    "ONNX and LiteRT make images of noise that is given, not of seeds, and check no requests.",
)
flags.DEFINE_bool(
    "jit_compile",
    False,
    "Whether XLA compiles a SavedModel's network, once for each number of rows it is asked for.",
)
flags.DEFINE_string("data_licence", None, "Licence of the training data, for the model card.")
SAMPLING = launch.define_model(
    launch.one_model,
    "Give --workdir, or else --weights with --preset, but not both; and --output.",
    "output",
)
flags.mark_flag_as_required("output")


def main() -> None:
    from keras_cdiff import export, training

    for name in ("seed", "batch_size"):
        SAMPLING.remove(name)
        if FLAGS[name].present:
            sys.exit(f"error: --{name} is up to those who call the exported model: leave it out.")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow tells of each weight
    options = launch.values(SAMPLING)
    use_ema = options.pop("use_ema")
    model, config = launch.load_model()
    sampling = training.sampling_settings(model, config, 1, **options)
    licence = FLAGS.data_licence
    if FLAGS.workdir:
        description = export.describe_run(model, config, FLAGS.workdir, use_ema, licence)
    else:
        use_ema = False  # the file is what it is
        description = export.describe_weights(config, FLAGS.weights, licence)
    export.export_sampler(
        model,
        FLAGS.output,
        sampling["sampler"],
        guidance=sampling["guidance"],
        use_ema=use_ema,
        format=FLAGS.format,
        jit_compile=FLAGS.jit_compile,
        description=description,
        autoencoder=training.open_run_autoencoder(config),
    )
    print(f"wrote {FLAGS.output}")


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"  # weights files are the same for all backends
    launch.run(main)
