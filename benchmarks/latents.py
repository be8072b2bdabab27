"""Latents that the input pipeline draws in a second, beside those that a training step takes.

A temporary store of random latents, 32 x 32 x 4 with those of mirrored images, is written as
apps/encode.py writes it. `make_dataset` reads it in shuffled batches with flips, without captions
and with the embeddings of one caption each, as large as CLIP's. Then a model trains for a few
steps on one batch. Both have the processor for themselves, in turns.

    KERAS_BACKEND=jax python benchmarks/latents.py        # or --preset=dit_b_2_imagenet256
"""

import itertools
import os
import statistics
import tempfile

import keras
import numpy as np
import timing

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
    seconds = timing.seconds_of(lambda: list(itertools.islice(batches, options.batches)))
    return options.batches * options.loader_batch / seconds


def main():
    options = timing.read_flags(
        __doc__,
        preset=("dit_s_2_imagenet256", "on 32 x 32 x 4 latents"),
        batch=(8, "of the training step"),
        steps=(2, "a round"),
        rounds=3,
        count=(4096, "latents in the store"),
        loader_batch=256,
        batches=(32, "read in a round"),
    )
    model = DiffusionModel.from_preset(options.preset)
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=0.0))
    batch = timing.random_batch(options.batch, (SIDE, SIDE, CHANNELS), 1000)

    def train():
        seconds = timing.step_seconds(model, batch, options.steps)
        return options.batch / statistics.median(seconds)

    with tempfile.TemporaryDirectory() as folder:
        latents = write(folder, options.count)
        embeddings = embed_captions(latents, RandomTokens(), folder, progress=False)
        sources = {"latents": latents, "with contexts": WithContext(latents, embeddings)}
        size = latents[0]["moments"].nbytes
        rates = {name: [] for name in (*sources, "training")}
        for _ in range(options.rounds):
            for name, source in sources.items():
                rates[name].append(read(source, options))
            rates["training"].append(train())
    print(
        f"{keras.backend.backend()}, {os.cpu_count()} cores; {SIDE} x {SIDE} x {CHANNELS}, "
        f"{size} bytes each on disk; batches of {options.loader_batch}; training: "
        f"{options.preset}, {model.backbone.count_params():,} parameters, batches of "
        f"{options.batch}\n"
    )
    timing.print_table(
        ("", "a second", "times what training takes [by round]"),
        (
            (name, f"{statistics.median(found):,.1f}", timing.ratio(found, rates["training"], 0))
            for name, found in rates.items()
        ),
    )


if __name__ == "__main__":
    main()
