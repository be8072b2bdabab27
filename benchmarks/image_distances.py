"""Whether distances between sets of images order as they should: CIFAR-10 against damaged CIFAR-10.

The training images are the reference. The test images, which come from the same distribution, must
be closest; noise and blur must move them away, the more the stronger; the images of a single class
must lose recall, not precision.

    python benchmarks/image_distances.py --cifar10=cifar10.npz --extractor=mobilenet_v2

The file holds `images` uint8 (60000, 32, 32, 3) and `labels`, the 50,000 training images first.
"""

import argparse
import sys

import numpy as np
from PIL import Image, ImageFilter

from keras_cdiff import evaluation

NUM_TRAIN = 50_000


def noised(images, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def blurred(images, radius):
    gaussian = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(gaussian)) for image in images])


def sets_of_images(images, labels):
    train, test = images[:NUM_TRAIN], images[NUM_TRAIN:]
    some = np.random.default_rng(0).permutation(NUM_TRAIN)[: len(test)]
    yield "training images, 10,000 of the reference", train[some]
    yield "test images", test
    for deviation in (4, 8, 16, 32):
        yield f"test images, noise of {deviation} grey levels", noised(test, deviation)
    for radius in (0.5, 1.0, 2.0):
        yield f"test images, blur of {radius} pixels", blurred(test, radius)
    yield "cats alone (5,000 training images)", train[labels[:NUM_TRAIN] == 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cifar10", required=True, help="the .npz file")
    parser.add_argument("--extractor", default="mobilenet_v2", help="as for apps/evaluate.py")
    parser.add_argument("--resize", default="clean", help="as for apps/evaluate.py")
    parser.add_argument("--cache", help="folder of features, so that a second run is quick")
    options = parser.parse_args()
    with np.load(options.cifar10, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    evaluator = evaluation.Evaluator(
        evaluation.open_extractor(options.extractor, options.resize),
        cache=options.cache,
        progress=sys.stdout.isatty(),
    )
    reference = evaluation.SourceImages(images[:NUM_TRAIN], name="CIFAR-10 training images")
    print(evaluator.extractor)
    print("| images | Frechet | kernel x 1000 | Inception Score | precision | recall |")
    print("|---|---|---|---|---|---|")
    for name, set_of_images in sets_of_images(images, labels):
        metrics = evaluator.evaluate(set_of_images, reference).metrics
        kernel, deviation = metrics["kernel_distance"], metrics["kernel_distance_std"]
        score, spread = metrics["inception_score"], metrics["inception_score_std"]
        print(
            f"| {name} | {metrics['frechet_distance']:.3f} "
            f"| {1000 * kernel:.3f} ± {1000 * deviation:.3f} | {score:.2f} ± {spread:.2f} "
            f"| {metrics['precision']:.4f} | {metrics['recall']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
