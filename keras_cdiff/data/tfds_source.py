"""Data sets of TensorFlow Datasets, prepared in array_record format, read without TensorFlow."""

import os
from pathlib import Path

import numpy as np

from keras_cdiff.data.source import Source


class TfdsSource(Source):
    """A split of a prepared TensorFlow Datasets build, read without TensorFlow."""

    def __init__(self, spec: str, name: str, split: str, data_dir: str | os.PathLike | None):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        # Files alone, never the data set's own code: that would look for it on the network.
        try:
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
            data = builder.as_data_source(split=split)
        except (tfds.core.DatasetNotFoundError, NotImplementedError) as error:
            place = "" if data_dir is None else f"data_dir={str(data_dir)!r}, "
            raise ValueError(
                f"TFDS must hold {name!r} prepared in array_record format under "
                f"{data_dir or 'its default folder'}. Prepare it, in a folder without another "
                'format of it, with: python -c "import tensorflow_datasets as tfds; '
                f"tfds.builder({name!r}, {place}file_format='array_record')"
                f'.download_and_prepare()". The error was: {str(error).strip()} '
                f"Received: source={spec!r}"
            ) from error
        except ValueError as error:
            raise ValueError(
                "tfds:NAME[/CONFIG][:SPLIT] takes Python names, and a split of the data set or a "
                "part of one, as in train[:80%], that is not empty. The error was: "
                f"{str(error).strip()} Received: source={spec!r}"
            ) from error
        split_info = builder.info.splits[split]
        self._content = (builder.info.full_name, split, split_info.shard_lengths, len(data))
        self._folder = Path(os.fspath(builder.data_path))
        features = builder.info.features
        features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
        image, label = features.get("image"), features.get("label")
        if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
            raise ValueError(
                "A TFDS data set must have a feature `image` of 8-bit images; choose another one. "
                f"It has {features}. Received: source={spec!r}"
            )
        super().__init__(spec, data)
        undecoded = {"image": tfds.decode.SkipDecoding()}
        self._undecoded = builder.as_data_source(split=split, decoders=undecoded)
        self._caption_feature = _caption_feature(features)
        self.has_captions = self._caption_feature is not None
        if isinstance(label, tfds.features.ClassLabel):
            self.num_classes = label.num_classes
            self.class_names = tuple(label.names) if label.names else ()
        self._texts: list[tuple[str, ...]] | None = None
        self[0]  # a split whose labels are withheld fails now

    def labels(self) -> np.ndarray | None:
        if not self.num_classes:
            return None
        return np.array([self._undecoded[i]["label"] for i in range(len(self))], dtype=np.int32)

    def captions(self) -> list[tuple[str, ...]] | None:
        if self.has_captions and self._texts is None:
            self._texts = [self._captions_of(self._undecoded[i]) for i in range(len(self))]
        return self._texts

    def _captions_of(self, record: dict) -> tuple[str, ...]:
        texts = record[self._caption_feature]
        texts = texts["text"] if self._caption_feature == "captions" else [texts]
        return tuple(text.decode() for text in texts if text) or ("",)

    def _images_digest(self) -> str:
        files = [(path, path.stat()) for path in sorted(self._folder.iterdir())]
        changes = [(path.name, status.st_size, status.st_mtime_ns) for path, status in files]
        return repr((self._content, str(self._folder.resolve()), changes))

    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)["image"]  # TFDS decodes image and label at once
        example = {"image": record["image"]}
        if self.num_classes:
            example["label"] = np.int32(record["label"])
            if not 0 <= example["label"] < self.num_classes:
                raise ValueError(
                    f"The labels of {self.name!r} must lie in [0, {self.num_classes}); choose a "
                    f"split with labels. Received: label={example['label']} at index {index}"
                )
        if self.has_captions:
            example["caption"] = self._captions_of(record)[0]
        return example


def _caption_feature(features: dict) -> str | None:
    """The feature that holds captions: a list of dicts with a text, or one text."""
    import tensorflow_datasets as tfds

    several = getattr(features.get("captions"), "feature", None)
    several = dict(several) if isinstance(several, tfds.features.FeaturesDict) else {}
    if isinstance(several.get("text"), tfds.features.Text):
        return "captions"
    return "caption" if isinstance(features.get("caption"), tfds.features.Text) else None
