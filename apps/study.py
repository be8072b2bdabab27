"""Measures which denoising tasks are hard, and writes a report: figures, numbers, a page in words.

Examples:
  # The embedded emoji, relative entropies and ten experts, all in one process:
  python apps/study.py --output=study/emoji --extractor=mobilenet_v2

  # One's own images, the relative entropies alone: no training, seconds to minutes:
  python apps/study.py --data=folder:/data/flowers --image_size=32 --num_experts=0 \\
      --output=study/flowers

  # Experts in processes of their own, first the reference model that they share; the last command,
  # or any one that finds all experts trained, writes the report:
  python apps/study.py --experts=none --output=study/emoji
  python apps/study.py --experts=1,2,3,4,5 --output=study/emoji &
  python apps/study.py --experts=6,7,8,9,10 --output=study/emoji &
  wait; python apps/study.py --output=study/emoji

  # ... or by two processes that share the experts, here on one machine:
  for i in 0 1; do
    python apps/study.py --output=study/emoji \\
        --job_addresses=localhost:2222,localhost:2223 --process_id=$i &
  done; wait

  # With a run that there is already as the reference, and the losses alone:
  python apps/study.py --reference=runs/emoji --output=study/emoji
  python apps/study.py --extractor=none --output=study/losses

  # A curriculum with clusters of equal difficulty, as measured:
  python apps/train.py --clusters=study/emoji/clusters_convergence.json --workdir=runs/measured

A study that is interrupted (exit code 75) goes on if its command is repeated.
"""

import contextlib
import io
import sys

import launch
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string("output", None, "Folder of the study: experts, figures, numbers, REPORT.md.")
flags.DEFINE_integer(
    "num_experts", 10, "Experts, one an interval; 0 for relative entropies alone.", lower_bound=0
)
flags.DEFINE_integer("steps", 500, "Training steps of each expert.", lower_bound=1)
flags.DEFINE_list(
    "experts", None, "Numbers of those that this process trains, or none. Default: all."
)
flags.DEFINE_string(
    "reference",
    None,
    "Workdir of a finished run that completes what experts begin. Default: one of the study's own.",
)
flags.DEFINE_integer(
    "reference_steps",
    None,
    "Training steps of the study's own reference. Default: the preset's.",
    lower_bound=1,
)
flags.DEFINE_string(
    "extractor",
    "mobilenet_v2",
    "Network by which denoised images are compared, see apps/evaluate.py --help; none to measure "
    "the losses alone.",
)
flags.DEFINE_integer(
    "quality_images", 320, "Images that are noised and denoised for it.", lower_bound=2
)
flags.DEFINE_integer(
    "quality_every", None, "Steps between two such. Default: a quarter of all.", lower_bound=1
)
flags.DEFINE_integer("num_steps", 10, "Sampler's steps over the whole noise range.", lower_bound=1)
flags.DEFINE_integer("loss_every", 20, "Steps between two measured losses.", lower_bound=1)
flags.DEFINE_multi_enum(
    "schedule",
    ["linear"],
    ["linear", "cosine", "edm", "flow"],
    "Schedules along which the relative entropy is measured besides the preset's; may be repeated.",
)
flags.DEFINE_integer("num_levels", 40, "Levels of the relative entropy.", lower_bound=2)
flags.DEFINE_integer("num_draws", 256, "Draws for each of them.", lower_bound=8)
flags.DEFINE_integer(
    "entropy_images", 50_000, "Images at most, at even distances in the data.", lower_bound=1
)
flags.DEFINE_string(
    "preset", "dit_emoji16", f"What is studied, one of: {', '.join(launch.PRESETS)}."
)
CHANGES = [
    *launch.define_settings(launch.settings.Data, "data", "image_size", "num_classes"),
    *launch.define_settings(launch.settings.Training, "batch_size"),
    *launch.define_settings(launch.settings.Curriculum, "num_clusters"),
    *launch.define_settings(launch.settings.Model, "dtype_policy", "seed"),
]
launch.define_machine()
flags.mark_flag_as_required("output")


def main() -> None:
    from keras_cdiff import distribution

    with launch.connected() as processes, distribution.shared_by(processes):
        # The others train without a word.
        words = sys.stdout if processes.first else io.StringIO()
        with contextlib.redirect_stdout(words):
            _study()


def _study() -> None:
    from keras_cdiff import study, training

    config = training.resolve(FLAGS.preset, steps=FLAGS.reference_steps, **launch.values(CHANGES))
    names = (
        *("num_experts", "steps", "experts", "reference", "extractor", "quality_images"),
        *("quality_every", "num_steps", "loss_every", "num_levels", "num_draws", "entropy_images"),
    )
    study.run_study(
        FLAGS.output,
        config,
        schedules=FLAGS.schedule,
        **launch.values(names),
    )


if __name__ == "__main__":
    launch.run(main)
