"""Measures how close images are to a reference: Frechet and kernel distance, precision, recall.

Examples:
  # 10,000 samples of a training run against its training data, by MobileNetV2:
  python apps/evaluate.py --workdir=runs/emoji --extractor=mobilenet_v2

  # FID and the rest of images drawn elsewhere, against the training split of CIFAR-10:
  python apps/evaluate.py --images=npz:samples.npz --reference=tfds:cifar10:train --output=results

  # The reference's statistics alone, at the model's image size, for other evaluations and tools:
  python apps/evaluate.py --reference=folder:/data/flowers --image_size=32 \\
      --write_statistics=flowers.npz

  # ... and an evaluation that uses them:
  python apps/evaluate.py --workdir=runs/flowers --reference=statistics:flowers.npz

  # By two processes, here on one machine, that see the same files:
  for i in 0 1; do
    python apps/evaluate.py --workdir=runs/flowers --reference=statistics:flowers.npz \\
        --job_addresses=localhost:2222,localhost:2223 --process_id=$i &
  done; wait

Each evaluation writes a JSON file and a row of evaluations.csv into --output. An interrupted one
goes on where it stopped when the command is repeated (--write_statistics only with --cache).
"""

import os
import sys

import launch
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "images",
    None,
    "Images to evaluate, instead of a model: npz:PATH, folder:PATH or tfds:NAME[:SPLIT].",
)
flags.DEFINE_string(
    "reference",
    None,
    "What they are compared with: as --images, or statistics:PATH. Default: the training data.",
)
flags.DEFINE_integer("num_samples", 10_000, "Samples of the model.", lower_bound=2)
flags.DEFINE_string(
    "extractor",
    "inception",
    "The network that sees the images: inception, mobilenet_v2 or keras:PATH; a local weights file "
    "is named as in inception:PATH, the input size of MobileNetV2 as in mobilenet_v2@96.",
)
flags.DEFINE_enum(
    "resize",
    "clean",
    ["clean", "legacy_tensorflow", "legacy_pytorch"],
    "How images get the extractor's size: clean is Pillow's antialiased bicubic.",
)
flags.DEFINE_list(
    "metrics",
    None,
    "Among frechet_distance, kernel_distance, inception_score, precision_recall and "
    "frechet_distance_infinity. Default: all but the last, as far as they can be had.",
)
flags.DEFINE_string("output", None, "Folder to write to. Default: WORKDIR/evaluation.")
flags.DEFINE_string(
    "cache",
    None,
    "Folder of extracted features. Default: OUTPUT/features; with --write_statistics, none.",
)
flags.DEFINE_string(
    "write_statistics",
    None,
    "Write the reference's statistics here, and stop.",
)
flags.register_validator(
    "write_statistics",
    lambda path: path is None or path.endswith(".npz"),
    message="The name of a statistics file ends in .npz.",
)


def _one_task(values: dict) -> bool:
    if values["write_statistics"]:
        others = ("images", "workdir", "weights")
        return bool(values["reference"]) and not any(values[name] for name in others)
    if values["images"]:
        others = ("workdir", "weights")
        complete = values["reference"] and values["output"]
        return bool(complete) and not any(values[name] for name in others)
    from_weights = not values["weights"] or values["reference"]
    return bool(from_weights) and launch.one_model(values)


SAMPLING = launch.define_model(
    _one_task,
    "Give --workdir; or --weights with --preset, --reference and --output; or --images with "
    "--reference and --output; or --write_statistics with --reference.",
    *("images", "reference", "write_statistics", "output"),
)
launch.define_machine()
_OF_IMAGES = ("batch_size", "use_ema")  # settings of sampling that --images allow


def main() -> None:
    from keras_cdiff import distribution

    with launch.connected() as processes, distribution.shared_by(processes):
        _evaluate(processes.first)


def _evaluate(writes: bool) -> None:
    """Does the task; what is found is written where `writes` is set."""
    from keras_cdiff import evaluation, training

    folder = FLAGS.output or os.path.join(FLAGS.workdir or ".", "evaluation")
    evaluator = evaluation.Evaluator(
        evaluation.open_extractor(FLAGS.extractor, FLAGS.resize),
        FLAGS.metrics,
        cache=FLAGS.cache or (None if FLAGS.write_statistics else f"{folder}/features"),
        batch_size=FLAGS.batch_size,
    )
    if FLAGS.write_statistics:
        reference = evaluation.SourceImages(FLAGS.reference, FLAGS.image_size)
        statistics = evaluator.statistics(reference)
        if writes:
            statistics.save(FLAGS.write_statistics)
            print(f"wrote {FLAGS.write_statistics}")
        return
    if FLAGS.images:
        wrong = [
            f"--{n}" for n in ("num_samples", *SAMPLING) if n not in _OF_IMAGES and FLAGS[n].present
        ]
        if wrong:
            sys.exit(
                f"error: {', '.join(wrong)} concern samples of a model, and --images are given."
            )
        images, reference = FLAGS.images, FLAGS.reference
        if FLAGS.image_size:
            images = evaluation.SourceImages(images, FLAGS.image_size)
            if not reference.startswith("statistics:"):
                reference = evaluation.SourceImages(reference, FLAGS.image_size)
        result = evaluator.evaluate(images, reference)
    else:
        model, config = launch.load_model()
        result = training.evaluate_model(
            model,
            config,
            evaluator,
            FLAGS.reference,
            num_samples=FLAGS.num_samples,
            name=FLAGS.workdir or FLAGS.weights,
            **launch.values(SAMPLING),
        )
    if writes:
        print(result)
        print("wrote", *result.write(folder))


if __name__ == "__main__":
    launch.run(main)
