"""Trains a class-conditional diffusion model on a folder of images, and samples every class.

    python examples/train_on_folder.py PATH                # one subfolder of images a class
    KERAS_BACKEND=torch python examples/train_on_folder.py PATH --image_size=32 --steps=5000

A folder of images without subfolders trains a model without classes. The default of 2000 steps at
16 x 16 pixels takes about five minutes on two CPU cores.
"""

import argparse

import keras

import keras_cdiff
from keras_cdiff.curriculum import PatiencePacing, quantile_clusters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="the folder of images")
    parser.add_argument("--image_size", type=int, default=16, help="side in pixels, even")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--batch_size", type=int, default=32, help="images a step")
    parser.add_argument("--output", default="samples.png", help="the image file to write")
    options = parser.parse_args()

    # Batches without end: read, cropped, resized, shuffled anew each pass, half of them mirrored.
    source = keras_cdiff.data.open_source(f"folder:{options.folder}")
    dataset = keras_cdiff.data.make_dataset(
        source, options.image_size, options.batch_size, horizontal_flip=True
    )

    model = keras_cdiff.DiffusionModel.from_preset(
        "dit_emoji16", image_size=options.image_size, num_classes=source.num_classes
    )
    rate = keras.optimizers.schedules.CosineDecay(2e-3, decay_steps=options.steps)
    model.compile(keras.optimizers.AdamW(rate))

    clusters = quantile_clusters(model.objective, num_clusters=5)
    curriculum = keras_cdiff.CurriculumCallback(clusters, PatiencePacing(patience=25))
    model.fit(dataset, steps_per_epoch=options.steps, shuffle=False, callbacks=[curriculum])

    # A row of eight for each class, or two rows where there are no classes.
    labels = [label for label in range(source.num_classes) for _ in range(8)] or None
    samples = keras_cdiff.sample(model, len(labels or range(16)), label=labels, seed=0)
    images = keras_cdiff.data.to_uint8(samples)
    keras_cdiff.data.save_image_grid(images, options.output, columns=8, scale=4)


if __name__ == "__main__":
    main()
