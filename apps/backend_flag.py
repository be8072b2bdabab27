"""The flag that all programs share: the Keras backend."""

import importlib.util
import os

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_enum(
    "backend",
    None,
    ["tensorflow", "jax", "torch"],
    "Keras backend. Default: KERAS_BACKEND, or else that of ~/.keras/keras.json.",
)
flags.register_validator(
    "backend",
    lambda backend: backend is None or importlib.util.find_spec(backend) is not None,
    message="The backend is not installed: pip install jax, torch or tensorflow.",
)


def choose_backend() -> None:
    """Sets the environment for --backend; called before Keras is imported."""
    if FLAGS.backend:
        os.environ["KERAS_BACKEND"] = FLAGS.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets at length
