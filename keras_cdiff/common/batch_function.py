"""Functions of batches that run as Keras runs `predict`, compiled once for each shape."""

import weakref
from collections.abc import Callable, Hashable

import keras
import numpy as np
from keras import tree

# For convolutions: TensorFlow runs them faster without XLA on CPU; JAX knows nothing else.
PREFERS_JIT = keras.backend.backend() == "jax"


class BatchFunction:
    """A function of batches on the host, compiled once for each shape of an example.

    A batch is filled up to a size that is compiled already, with copies of its first example.

    Args:
        function: takes a batch and returns tensors; batch and result are a tensor each, or nested.
        *networks: those whose weights it uses. They are shared and not saved.
        jit_compile: whether XLA compiles it; None as Keras finds best.
        run_eagerly: whether nothing is compiled.
    """

    def __init__(
        self,
        function: Callable,
        *networks: keras.Model,
        jit_compile: bool | None = None,
        run_eagerly: bool = False,
    ):
        self._options = (function, networks, jit_compile, run_eagerly)
        self._graphs = {}  # shapes and dtypes of an example -> its graph, and the batch sizes seen

    def __call__(self, batch: object, most: int | None = None) -> object:
        """Returns the function of a batch.

        Args:
            batch: arrays or tensors (B, ...) and scalars.
            most: the size up to which it may be filled; None for any.

        Returns:
            Arrays (B, ...).
        """
        values = tree.flatten(batch)
        dtypes = [keras.backend.standardize_dtype(value.dtype) for value in values]
        kind = (*[(v.ndim, *v.shape[1:]) for v in values], *dtypes)
        if kind not in self._graphs:
            self._graphs[kind] = _Graph(*self._options), set()
        graph, sizes = self._graphs[kind]
        count = next(len(value) for value in values if value.ndim)
        known = (s for s in sizes if s >= count and (most is None or s <= most))
        size = min(known, default=count)
        sizes.add(size)
        filled = tree.map_structure(lambda v: fill(v, size) if v.ndim else v, batch)
        outputs = graph.predict_on_batch(filled)
        return tree.map_structure(lambda output: np.asarray(output)[:count], outputs)


class _Graph(keras.Model):
    def __init__(
        self,
        function: Callable,
        networks: tuple[keras.Model, ...],
        jit_compile: bool | None,
        run_eagerly: bool,
    ):
        # Noise levels and pixels arrive in float32 under every policy; networks keep their own.
        super().__init__(name="batch_function", dtype="float32", autocast=False)
        self.function, self.networks = function, networks
        self.run_eagerly = run_eagerly
        if jit_compile is not None:
            self.jit_compile = jit_compile
        self.built = True

    def call(self, batch: object) -> object:
        return self.function(batch)


def fill(values: np.ndarray, size: int) -> np.ndarray:
    """Returns values with the first row repeated at the end up to `size` rows."""
    if len(values) == size:
        return values
    return np.concatenate([values, np.repeat(values[:1], size - len(values), axis=0)])


_model_functions = weakref.WeakKeyDictionary()  # model -> {arguments: BatchFunction}


def model_function(
    model: keras.Model, function: Callable, use_ema: bool, *options: Hashable
) -> BatchFunction:
    """Returns `function(model, batch, use_ema, *options)` as a `BatchFunction` of the batch,
    compiled as the model is; the same one for the same arguments, as long as the model lives.

    Args:
        model: a `DiffusionModel`.
        function: defined in a module.
        use_ema: whether it uses the averaged weights.
        *options: further arguments.
    """
    functions = _model_functions.setdefault(model, {})
    key = (function, use_ema, *options, model.jit_compile, model.run_eagerly)
    if key not in functions:
        owner = weakref.ref(model)
        functions[key] = BatchFunction(
            lambda batch: function(owner(), batch, use_ema, *options),
            model.network(use_ema),
            jit_compile=model.jit_compile,
            run_eagerly=model.run_eagerly,
        )
    return functions[key]
