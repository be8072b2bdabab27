"""Image sources and the input pipeline that feeds `DiffusionModel.fit`."""

from keras_cdiff.data.batch_file import open_batch_file, write_batch_file
from keras_cdiff.data.images import image_grid, save_image_grid, to_uint8
from keras_cdiff.data.pipeline import (
    make_dataset,
    prepare_image,
    read_images,
    to_channels,
)
from keras_cdiff.data.sources import ArraySource, Source, open_source

__all__ = [
    "ArraySource",
    "Source",
    "image_grid",
    "make_dataset",
    "open_batch_file",
    "open_source",
    "prepare_image",
    "read_images",
    "save_image_grid",
    "to_channels",
    "to_uint8",
    "write_batch_file",
]
