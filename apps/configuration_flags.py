"""Flags that programs share which train: on what, and what a preset leaves open."""

from absl import flags

flags.DEFINE_string(
    "data",
    None,
    "Images: emoji, npz:PATH, folder:PATH or tfds:NAME[:SPLIT]; or latents:PATH, which "
    "apps/encode.py wrote. Default: the preset's.",
)
flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the images in pixels, or of the latents. Default: the preset's.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "num_classes", None, "Classes; 0 for none. Default: those of the data.", lower_bound=0
)
flags.DEFINE_integer("batch_size", None, "Images a step. Default: the preset's.", lower_bound=1)
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Precision of the network; noise levels and losses stay float32.",
)
flags.DEFINE_integer(
    "seed", 0, "Seed of weights, data order and noise.", lower_bound=0, upper_bound=2**32 - 1
)
