"""Images a second that autoencoders encode and decode, on each backend.

Stable Diffusion's, at 256 x 256, and the small one, at 64 x 64, with drawn weights, which cost as
much as trained ones. Each backend has its own process; a figure is the median of the rounds after
the first, which compiles.

    pip install -e ".[latent,jax,torch]"
    python benchmarks/autoencoder.py      # or --backends=jax --rounds=5 --batch_size=4
"""

import os
import statistics

import timing


def autoencoders(options):
    """Yields name, autoencoder, side of the images and batch size."""
    from keras_cdiff.autoencoders import Autoencoder, kl_networks, open_autoencoder

    small = Autoencoder(*kl_networks(), scale=1.0, name="kl")
    yield "small", small, options.small_size, options.small_batch_size
    if not options.small_only:
        large = open_autoencoder("stable_diffusion:random")
        yield "Stable Diffusion", large, options.image_size, options.batch_size


def work(options):
    """Yields autoencoder, side, batch size, direction and images a second of each figure."""
    for name, autoencoder, side, batch_size in autoencoders(options):
        images = timing.random_batch(batch_size, (side, side, 3), 1)["image"]
        latents = autoencoder.moments(images)[..., : autoencoder.channels]
        tasks = (("encode", autoencoder.moments, images), ("decode", autoencoder.decode, latents))
        for direction, function, batch in tasks:
            timing.seconds_of(function, batch)  # compiles
            seconds = [timing.seconds_of(function, batch) for _ in range(options.rounds)]
            yield name, side, batch_size, direction, batch_size / statistics.median(seconds)


def main():
    options = timing.read_flags(
        __doc__,
        backends=timing.BACKENDS,
        image_size=(256, "of Stable Diffusion's"),
        batch_size=(1, "of Stable Diffusion's"),
        small_size=(64, "image size of the small one"),
        small_batch_size=16,
        small_only=(False, "leave Stable Diffusion's out"),
        rounds=(3, "measured, after the first"),
    )
    if options.worker:
        timing.tell(list(work(options)))
        return
    print(f"{os.cpu_count()} cores, median of {options.rounds} rounds\n")
    timing.print_table(
        ("autoencoder", "size", "batch", "backend", "direction", "images a second"),
        (
            (name, f"{side} x {side}", str(batch_size), backend, direction, f"{speed:.3g}")
            for backend in options.backends
            for name, side, batch_size, direction, speed in timing.measure(
                backend, KERAS_BACKEND=backend
            )
        ),
    )


if __name__ == "__main__":
    main()
