"""The formats in which sampling graphs are written, each as a folder."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from keras_cdiff.export.sampling_graph import SamplingGraph

# Random numbers differ between runtimes: seeds are for SavedModels alone.
_FROM_NOISE = ("sample_from_noise", "denoise")
_ALL = ("sample", *_FROM_NOISE)
_LARGEST_ONNX = 2**31  # bytes of a protocol buffer


def write_saved_model(graph: SamplingGraph, path: Path) -> None:
    """Writes a SavedModel with a signature for each task."""
    tf.saved_model.save(graph, str(path), signatures=graph.signatures(_ALL))


def write_onnx(graph: SamplingGraph, path: Path) -> None:
    """Writes a file for each task, since an ONNX graph has one entry.

    Raises:
        ValueError: if the network is too large for one.
    """
    import tf2onnx

    size = sum(weight.shape.num_elements() * weight.dtype.size for weight in graph.weights)
    if size >= _LARGEST_ONNX:
        raise ValueError(
            "An ONNX file holds less than 2 GiB: export a SavedModel. "
            f"Received: a network of {size / 2**30:.1f} GiB"
        )
    path.mkdir()
    for name in _FROM_NOISE:
        specs = list(graph.inputs()[name].values())
        task = tf.function(getattr(graph, name), input_signature=specs, autograph=False)
        with _errors_alone("tf2onnx"):  # it warns of every shape that is not known beforehand
            tf2onnx.convert.from_function(
                task, specs, opset=18, output_path=str(path / f"{name}.onnx")
            )


def write_litert(graph: SamplingGraph, path: Path) -> None:
    """Writes one file with a signature for each task."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tf.saved_model.save(graph, folder, signatures=graph.signatures(_FROM_NOISE))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=_FROM_NOISE)
        content = converter.convert()
    path.mkdir()
    (path / "model.tflite").write_bytes(content)


@contextlib.contextmanager
def _errors_alone(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@dataclasses.dataclass(frozen=True)
class Format:
    """How an export is written.

    Attributes:
        write: makes the folder.
        signatures: the tasks in it.
        extra: where in the folder the model card and the metadata lie.
        inline: whether the graphs' calls of the network must be inlined.
        dtype: the network's dtype policy; None for the model's own.
        written_by: the packages whose versions matter.
    """

    write: Callable[[SamplingGraph, Path], None]
    signatures: tuple[str, ...] = _FROM_NOISE
    extra: str = "."
    inline: bool = True
    dtype: str | None = "float32"
    written_by: tuple[str, ...] = ("keras", "tensorflow")


FORMATS = {
    "saved_model": Format(write_saved_model, _ALL, "assets.extra", inline=False, dtype=None),
    "onnx": Format(write_onnx, written_by=("keras", "tensorflow", "tf2onnx", "onnx")),
    "litert": Format(write_litert),
}
