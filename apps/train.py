"""Trains a diffusion model under the difficulty curriculum.

Examples:
  # The embedded emoji at 16 x 16, minutes on a laptop:
  python apps/train.py --workdir=runs/emoji

  # One's own images, a folder with one subfolder a class:
  python apps/train.py --data=folder:/data/flowers --image_size=32 --workdir=runs/flowers

  # The same without labels:
  python apps/train.py --data=folder:/data/all --num_classes=0 --workdir=runs/unlabelled

  # On latents that apps/encode.py has made:
  python apps/train.py --preset=dit_b_2_ffhq256 --data=latents:/data/ffhq256 --workdir=runs/ffhq

  # From captions to images; minilm.npz holds all-MiniLM-L6-v2:
  python apps/train.py --preset=dit_text_emoji16 --text_encoder=minilm:minilm.npz \\
      --workdir=runs/text

  # With clusters of equal difficulty, as apps/study.py has measured it:
  python apps/train.py --clusters=study/clusters_relative_entropy.json --workdir=runs/measured

  # Without the curriculum:
  python apps/train.py --curriculum=none --workdir=runs/plain

  # On JAX, in bfloat16, with a grid of samples every 500 steps:
  python apps/train.py --backend=jax --dtype_policy=mixed_bfloat16 --sample_every=500 \\
      --workdir=runs/jax

  # Interrupted by Ctrl-C, SIGTERM (exit code 75), or anything else: repeat the command, and the run
  # goes on from its newest checkpoint. With more --steps a finished run is trained further:
  python apps/train.py --steps=5000 --workdir=runs/emoji

  # On all GPUs of this machine: JAX and TensorFlow as one process, PyTorch as one for each GPU. For
  # several machines see docs/distributed.md:
  python apps/train.py --backend=jax --distribution=data --workdir=runs/many
  torchrun --nproc_per_node=8 apps/train.py --backend=torch --distribution=data --workdir=runs/many

  # What would be trained, as JSON:
  python apps/train.py --preset=dit_xl_2_imagenet256 --dry_run

Watch a run with: tensorboard --logdir=runs
"""

import json
import sys

import backend_flag
import configuration_flags
import distribution_flags
from absl import app, flags

FLAGS = flags.FLAGS
for module in (backend_flag, configuration_flags, distribution_flags):
    flags.adopt_module_key_flags(module)  # so that --help shows them

flags.DEFINE_string("preset", "dit_emoji16", "Name of the configuration to start from.")
flags.DEFINE_string(
    "text_encoder",
    None,
    "Condition a DiT on the data's captions, embedded by minilm:FILE, clip or clip:FOLDER, and on "
    "no classes unless --num_classes is given. Default: the preset's.",
)
flags.DEFINE_string("workdir", None, "Folder of the run: configuration, log, weights, samples.")
flags.DEFINE_integer("steps", None, "Training steps. Default: the preset's.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate",
    None,
    "Learning rate after the warm-up. Default: the preset's.",
    lower_bound=1e-12,
    upper_bound=1e3,
)
flags.DEFINE_bool(
    "horizontal_flip", None, "Whether half the images are mirrored. Default: the preset's."
)
flags.DEFINE_float(
    "augment",
    None,
    "Probability of each of EDM's augmentations, for U-Nets; 0 for none. Default: the preset's.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_enum(
    "curriculum",
    "paper",
    ["paper", "none", "hard_to_easy", "isolated"],
    "paper: easy to hard, cumulative; none: the whole noise range from the start; hard_to_easy: "
    "the reverse, as a control; isolated: each cluster alone, as a control.",
)
flags.DEFINE_string(
    "clusters",
    None,
    "How the noise range is cut into clusters: uniform, snr or quantile, or the path of a JSON "
    "file, such as apps/study.py writes from measured difficulty. Default: the preset's.",
)
flags.DEFINE_integer(
    "num_clusters", None, "Number of clusters. Default: the preset's.", lower_bound=1
)
flags.DEFINE_integer(
    "patience",
    None,
    "Iterations without improvement that a stage may last. Default: the preset's.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "stage_steps",
    None,
    "Iterations of every stage, whatever the loss does, instead of --patience.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "weighting",
    None,
    ["constant", "min_snr", "p2"],
    "Weighting of the loss, with its paper's values. Default: the preset's.",
)
flags.DEFINE_enum(
    "jit_compile",
    "auto",
    ["auto", "true", "false"],
    "Whether XLA or torch.compile compiles the training step; auto: what suits the network.",
)
flags.DEFINE_integer("log_every", 100, "Steps between two records of the log.", lower_bound=1)
flags.DEFINE_integer(
    "sample_every", None, "Steps between two sample grids. Default: one at the end.", lower_bound=1
)
flags.DEFINE_integer(
    "checkpoint_every",
    500,
    "Steps between two checkpoints, from the newest of which the same command goes on.",
    lower_bound=1,
)
flags.DEFINE_integer("keep_last", 3, "How many of the latest checkpoints are kept.", lower_bound=1)
flags.DEFINE_integer(
    "keep_every",
    None,
    "Checkpoints of steps divisible by this are kept as well. Default: none.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_nonfinite",
    10,
    "Steps in a row with a NaN or infinite loss, which are skipped, before the run ends.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "gradient_accumulation_steps",
    1,
    "Batches whose gradients are averaged for one update; steps count batches.",
    lower_bound=1,
)
flags.DEFINE_float(
    "global_clipnorm",
    None,
    "Greatest norm of all gradients together. Default: no limit.",
    lower_bound=1e-12,
)
flags.DEFINE_bool("rematerialize", False, "Save memory in a DiT by computing activations twice.")
flags.DEFINE_integer(
    "evaluate_every",
    None,
    "Steps between two evaluations of samples against the training data. Default: none.",
    lower_bound=1,
)
flags.DEFINE_integer("evaluate_samples", 1000, "Samples of each evaluation.", lower_bound=2)
flags.DEFINE_string(
    "extractor", "mobilenet_v2", "Network that sees the samples; see apps/evaluate.py --help."
)
flags.DEFINE_integer(
    "validate_every",
    None,
    "Steps between two measurements of the loss per cluster on --validation_data. Default: none.",
    lower_bound=1,
)
flags.DEFINE_string("validation_data", None, "Images that training does not see, as --data.")
flags.DEFINE_integer(
    "validation_images", 256, "How many of them, at even distances.", lower_bound=2
)
flags.DEFINE_enum(
    "distribution",
    "none",
    ["none", "data", "model"],
    "none: one device; data: each device computes a part of each batch; model: devices hold parts "
    "of the model (JAX). --batch_size is that of all devices together.",
)
flags.DEFINE_integer(
    "model_devices",
    None,
    "Devices of a process that hold one copy of the model together, for --distribution=model. "
    "Default: all of a process.",
    lower_bound=1,
)
flags.DEFINE_bool("dry_run", False, "Print the resolved configuration as JSON and stop.")

flags.register_multi_flags_validator(
    ["workdir", "dry_run"],
    lambda values: values["workdir"] or values["dry_run"],
    message="--workdir must name the folder of the run (or use --dry_run).",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"Flags begin with --. Received: {' '.join(argv[1:])}")
    backend_flag.choose_backend()
    from keras_cdiff import distribution, training

    names = (
        *("preset", "data", "image_size", "num_classes", "steps", "batch_size", "learning_rate"),
        *(
            "text_encoder",
            "horizontal_flip",
            "augment",
            "curriculum",
            "clusters",
            "num_clusters",
            "patience",
            "stage_steps",
            "weighting",
        ),
        *("dtype_policy", "jit_compile", "seed", "log_every", "sample_every"),
        *("checkpoint_every", "keep_last", "keep_every", "max_nonfinite"),
        *("gradient_accumulation_steps", "global_clipnorm", "rematerialize"),
        *("evaluate_every", "evaluate_samples", "extractor"),
        *("validate_every", "validation_data", "validation_images"),
    )
    try:
        config = training.resolve(**{name: FLAGS[name].value for name in names})
        if FLAGS.dry_run:
            print(json.dumps(config, indent=2))
            return
        kind, together = FLAGS.distribution, FLAGS.model_devices
        with (
            distribution_flags.connected() as processes,
            distribution.distribute(kind, processes, together) as engine,
        ):
            training.train(config, FLAGS.workdir, engine=engine)
    except training.Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
