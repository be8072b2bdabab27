"""Image sources and the input pipeline that feeds `DiffusionModel.fit`."""

from keras_cdiff.data.batch_file import open_batch_file, write_batch_file
from keras_cdiff.data.captions import (
    CaptionEmbeddings,
    WithContext,
    caption_folder,
    embed_captions,
)
from keras_cdiff.data.images import image_grid, save_image_grid, to_uint8
from keras_cdiff.data.latent_writer import encode_source
from keras_cdiff.data.latents import LatentSource, draw_latent
from keras_cdiff.data.pipeline import (
    make_dataset,
    prepare_image,
    read_images,
    to_channels,
)
from keras_cdiff.data.sources import ArraySource, Source, open_source
from keras_cdiff.data.text import TextContexts, TextEncoder
from keras_cdiff.data.text_encoders import open_text_encoder

__all__ = [
    "ArraySource",
    "CaptionEmbeddings",
    "LatentSource",
    "Source",
    "TextContexts",
    "TextEncoder",
    "WithContext",
    "caption_folder",
    "draw_latent",
    "embed_captions",
    "encode_source",
    "image_grid",
    "make_dataset",
    "open_batch_file",
    "open_source",
    "open_text_encoder",
    "prepare_image",
    "read_images",
    "save_image_grid",
    "to_channels",
    "to_uint8",
    "write_batch_file",
]
