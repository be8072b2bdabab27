"""Whether samples show what their prompts say, for prompts that training has not seen.

    python benchmarks/prompts.py split --output=split         # train, shuffled, held_out
    python apps/train.py --preset=dit_text_emoji16 --data=npz:split/train.npz \\
        --text_encoder=minilm:minilm.npz --workdir=runs/text
    python apps/train.py --preset=dit_text_emoji16 --data=npz:split/shuffled.npz \\
        --text_encoder=minilm:minilm.npz --workdir=runs/shuffled
    python benchmarks/prompts.py score --split=split --workdirs runs/text runs/shuffled \\
        --extractor=mobilenet_v2@96

A tenth of the embedded emoji's names is held out, class by class. Of each held-out prompt some
samples are drawn and put into the class whose mean feature is nearest, the means being those of the
training images at the model's size. The class of the prompt's own image is right. In `shuffled`
the captions are permuted among the training images, so that a model which learns from them can
only guess; images of the held-out emoji themselves tell how good the measure can be. Standard
errors are those of a mean over prompts, since samples of one prompt are correlated.
"""

import argparse
from pathlib import Path

import numpy as np

from keras_cdiff import training
from keras_cdiff.data import open_source
from keras_cdiff.evaluation import SourceImages, open_extractor
from keras_cdiff.evaluation.extraction import extract

HELD_OUT = 0.1


def split(options: argparse.Namespace) -> None:
    with np.load(Path(training.__file__).parents[1] / "data" / "emoji32.npz") as file:
        arrays = {name: file[name] for name in ("images", "labels", "captions")}
        names = file["class_names"]
    rng = np.random.default_rng(options.seed)
    labels = arrays["labels"]
    held_out = np.zeros(len(labels), bool)
    for label in range(len(names)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held_out[rows[: round(HELD_OUT * len(rows))]] = True
    # A caption that occurs on both sides would not be held out; words of it may.
    held_out &= ~np.isin(arrays["captions"], arrays["captions"][~held_out])
    order = rng.permutation(np.count_nonzero(~held_out))
    parts = {
        "train": {name: array[~held_out] for name, array in arrays.items()},
        "held_out": {name: array[held_out] for name, array in arrays.items()},
    }
    captions = parts["train"]["captions"]
    parts["shuffled"] = {**parts["train"], "captions": captions[order]}
    options.output.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        np.savez(options.output / f"{name}.npz", **part, class_names=names)
        print(f"{name}: {len(part['images'])} images")


def score(options: argparse.Namespace) -> None:
    extractor = open_extractor(options.extractor)
    train, held_out = (
        open_source(f"npz:{options.split / name}.npz") for name in ("train", "held_out")
    )
    model, _ = training.load_run(options.workdirs[0])
    size = model.image_shape[0]
    features = features_of(SourceImages(train, size), extractor)
    means = np.stack(
        [features[train.labels() == label].mean(axis=0) for label in range(train.num_classes)]
    )
    labels = held_out.labels()
    most = np.bincount(train.labels()).argmax()
    print(f"{len(labels)} prompts, features of {extractor.name}, images of {size} x {size}")
    print(f"always the largest class: {np.mean(labels == most):.3f}")
    real = nearest(features_of(SourceImages(held_out, size), extractor), means) == labels
    print(f"held-out images themselves: {share_in_words(real[:, None])}")
    prompts = [caption for (caption,) in held_out.captions()]
    for workdir in options.workdirs:
        model, config = training.load_run(workdir, options.text_encoder)
        images = training.generate(
            model,
            config,
            options.output / Path(workdir).name,
            num_samples=len(prompts) * options.samples,
            prompts=prompts,
            guidance=options.guidance,
        )
        found = nearest(features_of(SourceImages(images), extractor), means)
        right = (found.reshape(options.samples, len(prompts)) == labels).T
        print(f"{workdir}: {share_in_words(right)}")


def features_of(images: SourceImages, extractor: object) -> np.ndarray:
    return extract(images, extractor, progress=False).features


def nearest(features: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The class of each feature's nearest mean."""
    distances = ((features[:, None] - means) ** 2).sum(axis=-1)
    return distances.argmin(axis=1)


def share_in_words(right: np.ndarray) -> str:
    """The share of right ones among (prompts, samples), with the error of a mean over prompts."""
    shares = right.mean(axis=1)
    error = shares.std(ddof=1) / np.sqrt(len(shares))
    return f"{shares.mean():.3f} +- {error:.3f} in the prompt's class"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tasks = parser.add_subparsers(required=True)
    task = tasks.add_parser("split", help="write train.npz, shuffled.npz and held_out.npz")
    task.add_argument("--output", type=Path, default=Path("split"))
    task.add_argument("--seed", type=int, default=0)
    task.set_defaults(run=split)
    task = tasks.add_parser("score", help="classify the samples of runs")
    task.add_argument("--split", type=Path, default=Path("split"))
    task.add_argument("--workdirs", nargs="+", required=True)
    task.add_argument("--extractor", default="mobilenet_v2@96")
    task.add_argument("--text_encoder", help="where it is, if not where it was in training")
    task.add_argument("--samples", type=int, default=4, help="of each prompt")
    task.add_argument("--guidance", type=float, help="default: the preset's")
    task.add_argument("--output", type=Path, default=Path("prompts"))
    task.set_defaults(run=score)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
