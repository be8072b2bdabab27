"""Draws samples from a trained model.

Examples:
  # 64 samples of a training run, into runs/emoji/output:
  python apps/sample.py --workdir=runs/emoji

  # One class, stronger guidance, more steps:
  python apps/sample.py --workdir=runs/emoji --label=5 --guidance=2 --num_steps=50 --output=smileys

  # A run on captions; each prompt in turn:
  python apps/sample.py --workdir=runs/text --prompt="red apple" --prompt="cat face" --guidance=4

  # From a weights file and the preset that it was trained with:
  python apps/sample.py --preset=dit_emoji16 --weights=ema.weights.h5 --output=samples

  # By two processes, here on one machine, that see the same files:
  for i in 0 1; do
    python apps/sample.py --workdir=runs/emoji --num_samples=10000 \\
        --job_addresses=localhost:2222,localhost:2223 --process_id=$i &
  done; wait
"""

import os

import launch
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_integer("num_samples", 64, "Number of samples.", lower_bound=1)
flags.DEFINE_integer("label", None, "Class of all samples. Default: all in turn.", lower_bound=0)
flags.DEFINE_multi_string(
    "prompt",
    None,
    "What the samples show, for a model conditioned on text; several by giving the flag several "
    "times. Default: the null text.",
)
flags.DEFINE_string("output", None, "Folder to write to. Default: WORKDIR/output.")
SAMPLING = launch.define_model(
    launch.one_model,
    "Give --workdir, or else --weights with --preset and --output, but not both.",
    "output",
)
launch.define_machine()


def main() -> None:
    from keras_cdiff import distribution, training

    with launch.connected() as processes, distribution.shared_by(processes):
        model, config = launch.load_model()
        output = FLAGS.output or os.path.join(FLAGS.workdir, "output")
        training.generate(
            model,
            config,
            output,
            num_samples=FLAGS.num_samples,
            label=FLAGS.label,
            prompts=FLAGS.prompt,
            **launch.values(SAMPLING),
        )
        if processes.first:
            print(f"wrote {output}/samples.png and {output}/samples.npz")


if __name__ == "__main__":
    launch.run(main)
