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

import launch
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Folder of the run: configuration, log, weights, samples.")
flags.DEFINE_string(
    "preset", "dit_emoji16", f"What to start from, one of: {', '.join(launch.PRESETS)}."
)
flags.DEFINE_bool("dry_run", False, "Print the resolved configuration as JSON and stop.")
SETTINGS = [name for group in launch.settings.GROUPS for name in launch.define_settings(group)]
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
launch.define_machine("distribution", "model_devices")

flags.register_multi_flags_validator(
    ["workdir", "dry_run"],
    lambda values: values["workdir"] or values["dry_run"],
    message="--workdir must name the folder of the run (or use --dry_run).",
)


def main() -> None:
    from keras_cdiff import distribution, training

    config = training.resolve(FLAGS.preset, **launch.values(SETTINGS))
    if FLAGS.dry_run:
        print(json.dumps(config, indent=2))
        return
    with (
        launch.connected() as processes,
        distribution.distribute(FLAGS.distribution, processes, FLAGS.model_devices) as engine,
    ):
        training.train(config, FLAGS.workdir, engine=engine)


if __name__ == "__main__":
    launch.run(main)
