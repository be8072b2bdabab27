"""Encodes images into latents, on which a diffusion model trains with a fraction of the numbers.

Examples:
  # A folder of images at 256 x 256, by Stable Diffusion's autoencoder (downloads 340 MB once):
  python apps/encode.py --data=folder:/data/faces --output=/data/faces_latents

  # ... what that would make and take, without data or network, as JSON:
  python apps/encode.py --data=tfds:imagenet2012 --output=/data/imagenet_latents --dry_run

  # With a small autoencoder that is fitted to the images themselves:
  python apps/encode.py --data=npz:images.npz --image_size=64 --autoencoder=train --output=latents

  # Captions too, for text-to-image:
  python apps/encode.py --data=tfds:coco_captions --text_encoder=clip --output=/data/coco_latents

  # Whether every file of a store is what was written:
  python apps/encode.py --output=latents --verify

  # Then:
  python apps/train.py --data=latents:/data/faces_latents --preset=dit_b_2_ffhq256 \\
      --workdir=runs/faces

  # By two processes, here on one machine, that see the same files:
  for i in 0 1; do
    python apps/encode.py --data=folder:/data/faces --output=/data/faces_latents \\
        --job_addresses=localhost:2222,localhost:2223 --process_id=$i &
  done; wait

Interrupted at any moment: repeat the command. Encoding goes on after the last whole file; embedding
captions and fitting an autoencoder begin anew.
"""

import json
import os
import sys
import time
from typing import TYPE_CHECKING

import launch
from absl import flags

if TYPE_CHECKING:
    from keras_cdiff.distribution import Processes

FLAGS = flags.FLAGS

flags.DEFINE_string("data", None, "Images: emoji, npz:PATH, folder:PATH or tfds:NAME.")
flags.DEFINE_integer("image_size", 256, "Side of the images in pixels.", lower_bound=1)
flags.DEFINE_string(
    "autoencoder",
    "stable_diffusion",
    "stable_diffusion (downloads its weights), stable_diffusion:FOLDER (of the two files), "
    "stable_diffusion:random (to try things out), kl:FOLDER (a small one that was fitted), or "
    "train: fit a small one to the images and keep it in OUTPUT/autoencoder.",
)
flags.DEFINE_string("output", None, "Folder to write to.", required=True)
flags.DEFINE_integer("batch_size", 16, "Images encoded at once.", lower_bound=1)
flags.DEFINE_bool(
    "mirrored", True, "Encode the mirrored images as well, for training with horizontal flips."
)
flags.DEFINE_integer("shard_size", 1024, "Images in a file.", lower_bound=1)
flags.DEFINE_integer(
    "autoencoder_steps", 2000, "Training steps of --autoencoder=train.", lower_bound=1
)
flags.DEFINE_integer(
    "seed", 0, "Seed of --autoencoder=train.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_string(
    "text_encoder",
    None,
    "Embed the captions as well: clip, clip:FOLDER, clip:random or minilm:PATH. Default: not; "
    "training does it when it needs them.",
)
flags.DEFINE_bool("dry_run", False, "Print as JSON what would be made, and stop. No data is read.")
flags.DEFINE_bool("verify", False, "Compare all that --output holds with its checksums, and stop.")

launch.define_machine()

flags.register_multi_flags_validator(
    ["data", "verify"],
    lambda values: bool(values["data"]) != values["verify"],
    message="Give --data, the images; or --verify, which concerns --output alone.",
)


def _find_autoencoder(source: object) -> object:
    from keras_cdiff import autoencoders
    from keras_cdiff.data import latent_writer
    from keras_cdiff.distribution import local_work

    if FLAGS.autoencoder != "train":
        return autoencoders.open_autoencoder(FLAGS.autoencoder)
    fitted = None
    with local_work() as processes:
        if processes.first:
            fitted = latent_writer.fitted_autoencoder(
                source,
                FLAGS.image_size,
                FLAGS.output,
                steps=FLAGS.autoencoder_steps,
                seed=FLAGS.seed,
                mirrored=FLAGS.mirrored,
                shard_size=FLAGS.shard_size,
            )
    return fitted or autoencoders.open_autoencoder(f"kl:{FLAGS.output}/autoencoder")


def _plan() -> dict:
    from keras_cdiff import autoencoders
    from keras_cdiff.data import latent_writer

    geometry = None
    if FLAGS.autoencoder.startswith("kl:"):  # others need not be opened to know it
        opened = autoencoders.open_autoencoder(FLAGS.autoencoder)
        geometry = (opened.factor, opened.channels)
    return latent_writer.plan_encoding(
        FLAGS.data,
        FLAGS.autoencoder,
        FLAGS.image_size,
        FLAGS.mirrored,
        FLAGS.output,
        FLAGS.text_encoder,
        geometry,
    )


def _encode(processes: "Processes") -> None:
    from keras_cdiff import data
    from keras_cdiff.data import captions, latent_writer

    source = data.open_source(FLAGS.data)
    if FLAGS.text_encoder and not source.has_captions:
        raise ValueError(
            "A text encoder needs images with captions: leave out --text_encoder. "
            f"Received: data={source.name!r}"
        )
    encoder = data.open_text_encoder(FLAGS.text_encoder) if FLAGS.text_encoder else None
    autoencoder = _find_autoencoder(source)
    before = latent_writer.count_encoded(FLAGS.output)
    began = time.perf_counter()
    latents = latent_writer.encode_source(
        source,
        autoencoder,
        FLAGS.image_size,
        FLAGS.output,
        batch_size=FLAGS.batch_size,
        mirrored=FLAGS.mirrored,
        shard_size=FLAGS.shard_size,
    )
    seconds = time.perf_counter() - began
    size = latents[0]["moments"].nbytes
    encoded = len(latents) - before
    rate = f"{encoded / seconds:.1f} images a second" if encoded else "all were there before"
    if processes.first:
        print(
            f"wrote {FLAGS.output}: {len(latents)} images as latents of {latents.latent_size} x "
            f"{latents.latent_size} x {latents.channels}, {size} bytes each; {rate}"
        )
    if encoder is not None:
        folder = captions.caption_folder(latents.name, os.path.join(FLAGS.output, "text"))
        embedded = captions.embed_captions(latents, encoder, folder).folder
        if processes.first:
            print("wrote", embedded)


def _verify() -> None:
    from keras_cdiff.data import latent_writer

    found = latent_writer.check_store(FLAGS.output)
    print(
        f"{FLAGS.output}: all files are what was written: latents of {found['images']} images, "
        f"{found['embeddings']} embeddings of captions, {found['autoencoders']} autoencoders"
    )


def main() -> None:
    from keras_cdiff import distribution, training

    with launch.connected() as processes, distribution.shared_by(processes):
        try:
            if FLAGS.verify or FLAGS.dry_run:
                if processes.first:
                    _verify() if FLAGS.verify else print(json.dumps(_plan(), indent=2))
            else:
                _encode(processes)
        except KeyboardInterrupt:
            print(
                "interrupted: repeat the command; encoding goes on after the last whole file, "
                "embedding captions and fitting begin anew",
                file=sys.stderr,
            )
            sys.exit(training.EXIT_INTERRUPTED)


if __name__ == "__main__":
    launch.run(main)
