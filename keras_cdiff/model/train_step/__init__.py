"""The part of training that differs by backend: how one step threads the model's state."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_cdiff.model.train_step.tensorflow import TrainStep
elif keras.backend.backend() == "jax":
    import keras_cdiff.model.train_step.jax_rematerialization  # noqa: F401 (it registers itself)
    from keras_cdiff.model.train_step.jax import TrainStep
elif keras.backend.backend() == "torch":
    from keras_cdiff.model.train_step.torch import TrainStep
else:
    raise ImportError(
        "keras_cdiff trains on the Keras backends tensorflow, jax and torch: set KERAS_BACKEND to "
        f"one of them before Keras is imported. Received: backend={keras.backend.backend()!r}"
    )

__all__ = ["TrainStep"]
