"""Latents that the input pipeline draws in a second, beside those that a training step takes.

A temporary store of random latents, 32 x 32 x 4 with those of mirrored images, is written as
apps/encode.py writes it. `make_dataset` reads it in shuffled batches with flips, without captions
and with the embeddings of one caption each, as large as CLIP's. Then a model trains for a few
steps on one batch. Both have the processor for themselves, in turns.

    KERAS_BACKEND=jax python benchmarks/latents.py        # or --preset=dit_b_2_imagenet256
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time

import keras
import numpy as np

from keras_cdiff import DiffusionModel
from keras_cdiff.data import ArraySource, make_dataset
from keras_cdiff.data.captions import WithContext, embed_captions
from keras_cdiff.data.latent_writer import encode_source

SIDE, CHANNELS = 32, 4
LENGTH, WIDTH = 77, 768  # of CLIP's contexts
TOKENS = 12  # of a caption


class RandomMoments:
    """Stands in for an autoencoder: images of 32 x 32 are latents of 32 x 32."""

    name, kind, factor, channels = "random", "random", 1, CHANNELS

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def moments(self, images):
        return self.rng.random((len(images), SIDE, SIDE, 2 * CHANNELS), np.float32)

    def fingerprint(self):
        return "random"

    def describe(self):
        return {"name": "random", "fingerprint": "random", "factor": 1, "channels": CHANNELS}


class RandomTokens:
    """Stands in for a text encoder."""

    name, width, max_length = "random", WIDTH, LENGTH

    def encode(self, texts, batch_size=64):
        contexts = np.zeros((len(texts), LENGTH, WIDTH), np.float32)
        contexts[:, :TOKENS] = np.random.default_rng(0).random((TOKENS, WIDTH), np.float32)
        return contexts

    def fingerprint(self):
        return "random"

    def describe(self):
        return {"name": "random", "fingerprint": "random", "width": WIDTH, "max_length": LENGTH}


class Clock(keras.callbacks.Callback):
    """Seconds of each step of `fit`."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["batch_loss"])  # waits for the step
        self.seconds.append(time.perf_counter() - self.began)


def write(folder, count):
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    captions = np.array([f"caption {place}" for place in range(count)])
    source = ArraySource("zeros", images, np.arange(count) % 1000, captions)
    return encode_source(source, RandomMoments(), SIDE, folder, batch_size=256, progress=False)


def read(source, options):
    """Returns latents a second of one pass over the batches, once the threads run."""
    batches = iter(
        make_dataset(source, SIDE, options.loader_batch, channels=CHANNELS, horizontal_flip=True)
    )
    for _ in itertools.islice(batches, 2 * (os.cpu_count() or 1) + 2):  # what was read ahead
        pass
    began = time.perf_counter()
    for _ in itertools.islice(batches, options.batches):
        pass
    return options.batches * options.loader_batch / (time.perf_counter() - began)


def trainer(options):
    """Returns a function: one round of training -> latents a second of its median step."""
    model = DiffusionModel.from_preset(options.preset)
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=0.0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((options.batch, SIDE, SIDE, CHANNELS)).astype("float32"),
        "label": rng.integers(0, 1000, options.batch).astype("int32"),
    }

    def train():
        clock = Clock()
        data = ((batch,) for _ in range(options.steps + 1))
        model.fit(
            data, steps_per_epoch=options.steps + 1, shuffle=False, verbose=0, callbacks=[clock]
        )
        return options.batch / statistics.median(clock.seconds[1:])

    train()  # compiles
    return train, model.backbone.count_params()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="dit_s_2_imagenet256", help="on 32 x 32 x 4 latents")
    parser.add_argument("--batch", type=int, default=8, help="of the training step")
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=4096, help="latents in the store")
    parser.add_argument("--loader_batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=32, help="read in a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latents = write(folder, options.count)
        embeddings = embed_captions(latents, RandomTokens(), folder, progress=False)
        sources = {"latents": latents, "with contexts": WithContext(latents, embeddings)}
        size = latents[0]["moments"].nbytes
        train, parameters = trainer(options)
        rates = {name: [] for name in (*sources, "training")}
        for _ in range(options.rounds):
            for name, source in sources.items():
                rates[name].append(read(source, options))
            rates["training"].append(train())
    print(
        f"{keras.backend.backend()}, {os.cpu_count()} cores; {SIDE} x {SIDE} x {CHANNELS}, "
        f"{size} bytes each on disk; batches of {options.loader_batch}; "
        f"training: {options.preset}, {parameters:,} parameters, batches of {options.batch}"
    )
    print(f"{'':16s}{'a second':>10s}   times what training takes [by round]")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["training"], strict=True)]
        print(
            f"{name:16s}{statistics.median(found):10,.1f}   "
            f"{statistics.median(ratios):,.0f} [{min(ratios):,.0f}, {max(ratios):,.0f}]"
        )


if __name__ == "__main__":
    main()
