"""Networks of keras-cv: built in float32, and filled from files of weights that Keras 2 saved."""

import contextlib
import os
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def float32_layers() -> Iterator[None]:
    """Within it, layers are made that compute in float32, whatever the global policy: keras-cv's
    take that one.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def load_keras_weights(network: keras.Model, path: str | os.PathLike, what: str) -> None:
    """Loads a file of Keras 2, which holds the weights of a network layer by layer.

    Args:
        network: a built model.
        path: an HDF5 file, .h5.
        what: whose weights they must be, and where they are fetched from, for the error.

    Raises:
        ValueError: if the file is damaged, or its layers are not those of the network.
        OSError: if the system does not let it be read.
    """
    try:
        network.load_weights(str(path))
    except Exception as error:  # h5py and Keras raise errors of many kinds
        if isinstance(error, OSError) and error.errno:  # h5py gives those of content no number
            raise
        raise ValueError(
            f"The weights must be those of {what}: the file is damaged or another network's; fetch "
            f"it again. Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error
