"""Whether distances between sets of images order as they should: CIFAR-10 against damaged CIFAR-10.

The training images are the reference. The test images, which come from the same distribution, must
be closest; noise and blur must move them away, the more the stronger; the images of a single class
must lose recall, not precision.

    python benchmarks/image_distances.py --cifar10=cifar10.npz --extractor=mobilenet_v2

The file holds `images` uint8 (60000, 32, 32, 3) and `labels`, the 50,000 training images first.
"""

import sys

import numpy as np
import timing
from PIL import Image, ImageFilter

from keras_cdiff import evaluation

NUM_TRAIN = 50_000


def noised(images, std):
    noise = np.random.default_rng(0).normal(0, std, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def blurred(images, radius):
    gaussian = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(gaussian)) for image in images])


def sets_of_images(images, labels):
    train, test = images[:NUM_TRAIN], images[NUM_TRAIN:]
    some = np.random.default_rng(0).permutation(NUM_TRAIN)[: len(test)]
    yield "training images, 10,000 of the reference", train[some]
    yield "test images", test
    for std in (4, 8, 16, 32):
        yield f"test images, noise of {std} grey levels", noised(test, std)
    for radius in (0.5, 1.0, 2.0):
        yield f"test images, blur of {radius} pixels", blurred(test, radius)
    yield "cats alone (5,000 training images)", train[labels[:NUM_TRAIN] == 3]


def main():
    options = timing.read_flags(
        __doc__,
        cifar10=("cifar10.npz", "the .npz file"),
        extractor=("mobilenet_v2", "as for apps/evaluate.py"),
        resize=("clean", "as for apps/evaluate.py"),
        cache=(None, "folder of features, so that a second run is quick"),
    )
    with np.load(options.cifar10, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    evaluator = evaluation.Evaluator(
        evaluation.open_extractor(options.extractor, options.resize),
        cache=options.cache,
        progress=sys.stdout.isatty(),
    )
    reference = evaluation.SourceImages(images[:NUM_TRAIN], name="CIFAR-10 training images")

    def row(name, images):
        found = evaluator.evaluate(images, reference).metrics
        kernel = (1000 * found[key] for key in ("kernel_distance", "kernel_distance_std"))
        score = (found[key] for key in ("inception_score", "inception_score_std"))
        cells = [name, f"{found['frechet_distance']:.3f}", "{:.3f} ± {:.3f}".format(*kernel)]
        cells += ["{:.2f} ± {:.2f}".format(*score)]
        return cells + [f"{found[key]:.4f}" for key in ("precision", "recall")]

    print(evaluator.extractor)
    timing.print_table(
        ("images", "Frechet", "kernel x 1000", "Inception Score", "precision", "recall"),
        (row(*each) for each in sets_of_images(images, labels)),
    )


if __name__ == "__main__":
    main()
