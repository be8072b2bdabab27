"""Trains a diffusion model under the difficulty curriculum.

Examples:
  # The embedded emoji at 16 x 16, minutes on a laptop:
  python apps/train.py --workdir=runs/emoji

  # One's own images, a folder with one subfolder a class:
  python apps/train.py --data=folder:/data/flowers --image_size=32 --workdir=runs/flowers

  # Without the curriculum, on JAX, in bfloat16:
  python apps/train.py --curriculum=none --backend=jax --dtype_policy=mixed_bfloat16 \
      --workdir=runs/plain

  # What would be trained, as JSON:
  python apps/train.py --preset=dit_xl_2_imagenet256 --dry_run
"""

import json
import os

from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_string("preset", "dit_emoji16", "Name of the configuration to start from.")
flags.DEFINE_string("workdir", None, "Folder of the run: configuration, log, weights, samples.")
flags.DEFINE_string(
    "data", None, "Images: emoji, npz:PATH, folder:PATH or tfds:NAME. Default: the preset's."
)
flags.DEFINE_integer("image_size", None, "Side of the images in pixels.", lower_bound=1)
flags.DEFINE_integer(
    "num_classes", None, "Classes; 0 for none. Default: those of the data.", lower_bound=0
)
flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend.")
flags.DEFINE_integer("steps", None, "Training steps.", lower_bound=1)
flags.DEFINE_integer("batch_size", None, "Images a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", None, "Learning rate after the warm-up.", lower_bound=1e-12)
flags.DEFINE_bool("horizontal_flip", None, "Whether half the images are mirrored.")
flags.DEFINE_enum(
    "curriculum",
    "paper",
    ["paper", "none", "hard_to_easy", "isolated"],
    "paper: easy to hard, cumulative; none: the whole noise range from the start; hard_to_easy: "
    "the "
    "reverse, as a control; isolated: each cluster alone, as a control.",
)
flags.DEFINE_enum(
    "clusters", None, ["uniform", "snr", "quantile"], "How the noise range is cut into clusters."
)
flags.DEFINE_integer("num_clusters", None, "Number of clusters.", lower_bound=1)
flags.DEFINE_integer(
    "patience", None, "Iterations without improvement that end a stage.", lower_bound=1
)
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Precision of the network; noise levels and losses stay float32.",
)
flags.DEFINE_integer("seed", 0, "Seed of weights, data order and noise.", lower_bound=0)
flags.DEFINE_integer("log_every", 100, "Steps between two records of the log.", lower_bound=1)
flags.DEFINE_integer(
    "sample_every", None, "Steps between two sample grids. Default: one at the end.", lower_bound=1
)
flags.DEFINE_bool("dry_run", False, "Print the resolved configuration as JSON and stop.")

flags.register_multi_flags_validator(
    ["workdir", "dry_run"],
    lambda values: values["workdir"] or values["dry_run"],
    message="--workdir must name the folder of the run (or use --dry_run).",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    os.environ["KERAS_BACKEND"] = FLAGS.backend
    from keras_cdiff import training

    names = "preset data image_size num_classes steps batch_size learning_rate horizontal_flip"
    names += " curriculum clusters num_clusters patience dtype_policy seed log_every sample_every"
    try:
        config = training.resolve(**{name: FLAGS[name].value for name in names.split()})
        if FLAGS.dry_run:
            print(json.dumps(config, indent=2))
        else:
            training.train(config, FLAGS.workdir)
    except ValueError as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    app.run(main)
