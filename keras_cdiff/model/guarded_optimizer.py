"""An optimizer that leaves out every update that is not finite."""

import keras
from keras import ops

Tensor = keras.KerasTensor


@keras.saving.register_keras_serializable("keras_cdiff")
class GuardedOptimizer(keras.optimizers.Optimizer):
    """Hands finite gradients to another optimizer; skips the step if the loss or the norm of all
    gradients is NaN or infinite.

    The norm, because gradients whose squares overflow become NaN where they are clipped by it, and
    infinite in Adam's second moment. A skipped step leaves weights and optimizer, `iterations`
    included, as they are. Under gradient accumulation it is as if the batch had not been there. A
    `LossScaleOptimizer` inside skips by itself and halves its scale, as it also does when the scale
    alone was too large.

    Args:
        inner_optimizer: the `keras.optimizers.Optimizer` to guard. A `LossScaleOptimizer` goes
            inside, not around.
        name: name of the optimizer.

    Raises:
        ValueError: if `inner_optimizer` is no optimizer, or guarded already.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None = None):
        if not isinstance(inner_optimizer, keras.optimizers.Optimizer) or isinstance(
            inner_optimizer, GuardedOptimizer
        ):
            raise ValueError(
                "`inner_optimizer` must be a Keras optimizer that is not guarded yet. "
                f"Received: inner_optimizer={inner_optimizer!r}"
            )
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    def build(self, var_list: list) -> None:
        if self.built:
            return  # a LossScaleOptimizer would make its variables once more
        self.inner_optimizer.build(var_list)
        super().build(var_list)

    @property
    def variables(self) -> list:
        return self._variables + self.inner_optimizer.variables

    @property
    def iterations(self) -> keras.Variable | Tensor:
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> object:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: object) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Returns the loss as the inner optimizer scales it, with NaN as its gradient if it is not
        finite: an infinite loss may have finite gradients.
        """
        factor = ops.where(ops.isfinite(loss), 1.0, float("nan"))
        return self.inner_optimizer.scale_loss(loss * ops.cast(factor, loss.dtype))

    def apply(self, grads: list, trainable_variables: list | None = None) -> None:
        if not self.built:
            self.build(trainable_variables)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        grads = _dense(grads, trainable_variables or self._trainable_variables)

        def update(grads: list) -> None:
            self.inner_optimizer.apply(grads, trainable_variables)

        finite = _finite_norm(grads)
        if self._skips_by_itself():
            update(_spoilt_unless(finite, grads))
        else:
            ops.cond(finite, lambda: update(grads), lambda: None)

    def stateless_apply(
        self, optimizer_variables: list, grads: list, trainable_variables: list
    ) -> tuple[list, list]:
        own = len(self._variables)

        def update(grads: list) -> tuple[list, list]:
            weights, inner = self.inner_optimizer.stateless_apply(
                optimizer_variables[own:], grads, trainable_variables
            )
            return list(weights), [*optimizer_variables[:own], *inner]

        finite = _finite_norm(grads)
        if self._skips_by_itself():
            return update(_spoilt_unless(finite, grads))
        return ops.cond(
            finite,
            lambda: update(grads),
            lambda: (list(trainable_variables), list(optimizer_variables)),
        )

    def finalize_variable_values(self, var_list: list) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def _skips_by_itself(self) -> bool:
        return isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer)

    def get_config(self) -> dict:
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "GuardedOptimizer":
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects)
        return cls(inner, name=config["name"])


def _dense(grads: list, variables: list) -> list:
    """The gradients as tensors.

    TensorFlow has that of an embedding as rows, repeated rows among them, which Keras would square
    before they are added: for Adam's second moment and for the norm by which it clips.
    """
    if keras.backend.backend() != "tensorflow":
        return list(grads)
    pairs = zip(grads, variables, strict=True)
    return [g if g is None else ops.reshape(g, v.shape) for g, v in pairs]


def _finite_norm(grads: list) -> Tensor:
    squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in grads if g is not None]
    return ops.isfinite(ops.sum(ops.stack(squares))) if squares else ops.convert_to_tensor(True)


def _spoilt_unless(finite: Tensor, grads: list) -> list:
    """The gradients, the first of them NaN unless `finite`: for an optimizer that looks itself."""
    first = next((place for place, g in enumerate(grads) if g is not None), None)
    if first is None:
        return grads
    factor = ops.cast(ops.where(finite, 1.0, float("nan")), grads[first].dtype)
    return [*grads[:first], grads[first] * factor, *grads[first + 1 :]]
