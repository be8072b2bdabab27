"""The formats in which sampling graphs are written, each as a folder."""

import contextlib
import dataclasses
import logging
import tempfile
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

if typing.TYPE_CHECKING:  # the process that asks for an export may not load TensorFlow
    from keras_cdiff.export.sampling_graph import SamplingGraph

# Random numbers differ between runtimes: seeds are for SavedModels alone.
_FROM_NOISE = ("sample_from_noise", "denoise")
_ALL = ("sample", *_FROM_NOISE)


def write_saved_model(graph: "SamplingGraph", path: Path) -> None:
    """Writes a SavedModel with a signature for each task."""
    import tensorflow as tf

    tf.saved_model.save(graph, str(path), signatures=graph.signatures(_ALL))


def write_onnx(graph: "SamplingGraph", path: Path) -> None:
    """Writes a file for each task, since an ONNX graph has one entry."""
    import tensorflow as tf
    import tf2onnx

    path.mkdir()
    for name in _FROM_NOISE:
        specs = list(graph.inputs()[name].values())
        task = tf.function(_by_place(graph, name), input_signature=specs, autograph=False)
        with _errors_alone("tf2onnx"):  # it warns of every shape that is not known beforehand
            tf2onnx.convert.from_function(
                task, specs, opset=18, output_path=str(path / f"{name}.onnx")
            )


def write_litert(graph: "SamplingGraph", path: Path) -> None:
    """Writes one file with a signature for each task."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tf.saved_model.save(graph, folder, signatures=graph.signatures(_FROM_NOISE))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=_FROM_NOISE)
        content = converter.convert()
    path.mkdir()
    (path / "model.tflite").write_bytes(content)


def _by_place(graph: "SamplingGraph", name: str) -> Callable:
    """A task that takes its inputs in their order instead of by name."""
    names, task = list(graph.inputs()[name]), getattr(graph, name)
    return lambda *values: task(**dict(zip(names, values, strict=True)))


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
        written_by: the packages that write it, which must be installed.
        signatures: the tasks in it.
        extra: where in the folder the model card and the metadata lie.
        plain: see `SamplingGraph`.
        dtype: the network's dtype policy; None for the model's own.
        limit: bytes that the network's weights may have.
    """

    write: Callable[["SamplingGraph", Path], None]
    written_by: tuple[str, ...] = ("tensorflow",)
    signatures: tuple[str, ...] = _FROM_NOISE
    extra: str = "."
    plain: bool = True
    dtype: str | None = "float32"
    limit: float = float("inf")


FORMATS = {
    "saved_model": Format(
        write_saved_model, signatures=_ALL, extra="assets.extra", plain=False, dtype=None
    ),
    # A file is one protocol buffer.
    "onnx": Format(write_onnx, written_by=("tensorflow", "tf2onnx"), limit=2**31),
    "litert": Format(write_litert),
}
