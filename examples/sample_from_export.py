"""Samples from an exported model, with TensorFlow alone.

python examples/sample_from_export.py served/emoji/1 --label=5
"""

import argparse

import numpy as np
import tensorflow as tf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="what apps/export.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--label", type=int, default=0, help="class, if the model has classes")
    parser.add_argument("--context", help="a .npy (L, D) of a text, if the model takes contexts")
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    sample = tf.saved_model.load(options.model).signatures["sample"]
    taken = sample.structured_input_signature[1]
    inputs = {"seeds": tf.constant(options.seeds, tf.int64)}
    if "label" in taken:
        inputs["label"] = tf.fill([len(options.seeds)], options.label)
    if "context" in taken:
        context = np.zeros((1, taken["context"].shape[-1]), "float32")  # the null text
        if options.context:
            context = np.load(options.context)
        inputs["context"] = tf.repeat(context[None], len(options.seeds), axis=0)
    if "guidance" in taken:
        inputs["guidance"] = tf.constant(options.guidance)
    for seed, image in zip(options.seeds, sample(**inputs)["images"], strict=True):
        tf.io.write_file(f"sample_{seed}.png", tf.io.encode_png(image))


if __name__ == "__main__":
    main()
