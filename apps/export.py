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

import sampling_flags
from absl import app, flags, logging

FLAGS = flags.FLAGS
_OF_CALLERS = ("seed", "batch_size")  # flags of sampling that mean nothing to an export
flags.adopt_module_key_flags(sampling_flags)  # so that --help shows them

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

flags.mark_flag_as_required("output")
flags.register_multi_flags_validator(
    ["workdir", "step", "weights", "preset", "image_size", "num_classes", "output"],
    sampling_flags.one_model,
    message="Give --workdir, or else --weights with --preset, but not both; and --output.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"Flags begin with --. Received: {' '.join(argv[1:])}")
    for name in _OF_CALLERS:
        if FLAGS[name].present:
            sys.exit(f"error: --{name} is up to those who call the exported model: leave it out.")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow tells of each weight
    os.environ["KERAS_BACKEND"] = "tensorflow"  # weights files are the same for all backends
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from keras_cdiff import export, training

    try:
        model, config = sampling_flags.load_model()
        options = sampling_flags.sampling_options()
        use_ema = options.pop("use_ema")
        for name in _OF_CALLERS:
            options.pop(name)
        settings = training.sampling_settings(model, config, 1, **options)
        licence = FLAGS.data_licence
        if FLAGS.workdir:
            description = export.describe_run(model, config, FLAGS.workdir, use_ema, licence)
        else:
            use_ema = False  # the file is what it is
            description = export.describe_weights(config, FLAGS.weights, licence)
        export.export_sampler(
            model,
            FLAGS.output,
            settings["sampler"],
            guidance=settings["guidance"],
            use_ema=use_ema,
            format=FLAGS.format,
            jit_compile=FLAGS.jit_compile,
            description=description,
            autoencoder=training.open_run_autoencoder(config),
        )
        print(f"wrote {FLAGS.output}")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
