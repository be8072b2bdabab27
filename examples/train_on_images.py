"""Trains a diffusion model under the curriculum on images in a NumPy array, and samples from it.

    python examples/train_on_images.py                                    # the embedded emoji
    KERAS_BACKEND=jax python examples/train_on_images.py --data=npz:mine.npz --epochs=60

The default of 40 epochs, about 2,000 steps, takes about five minutes on two CPU cores.
"""

import argparse
import math

import keras
import numpy as np

import keras_cdiff
from keras_cdiff.curriculum import PatiencePacing, quantile_clusters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="emoji", help="emoji or npz:PATH, uint8 images")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the images")
    parser.add_argument("--batch_size", type=int, default=32, help="images a step")
    parser.add_argument("--output", default="samples.png", help="the image file to write")
    options = parser.parse_args()

    # Any float32 array (N, 16, 16, 3) in [-1, 1] will do.
    source = keras_cdiff.data.open_source(options.data)
    images = np.stack([keras_cdiff.data.prepare_image(example["image"], 16) for example in source])

    model = keras_cdiff.DiffusionModel.from_preset("dit_emoji16", num_classes=0)
    steps = options.epochs * math.ceil(len(images) / options.batch_size)
    model.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps)))

    # Five clusters of noise levels, easiest first; the next joins when the loss stops falling.
    clusters = quantile_clusters(model.objective, num_clusters=5)
    curriculum = keras_cdiff.CurriculumCallback(clusters, PatiencePacing(patience=25))
    model.fit(images, batch_size=options.batch_size, epochs=options.epochs, callbacks=[curriculum])

    samples = keras_cdiff.sample(model, 16, seed=0)
    keras_cdiff.data.save_image_grid(keras_cdiff.data.to_uint8(samples), options.output, scale=4)


if __name__ == "__main__":
    main()
