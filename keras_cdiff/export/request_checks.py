"""What a request must fulfil, and the graph's operations that hold it to that.

TensorFlow itself compares no shapes where inputs are tensors already, as in a server.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.schedules import DiscreteSchedule


@dataclasses.dataclass(frozen=True)
class Range:
    """Values that an input may have: finite ones between two bounds.

    Attributes:
        low: the lowest value; None for no bound.
        high: the highest value; None for no bound.
        above: whether values must lie above `low`.
        note: what else to say about them.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    note: str = ""

    def holds(self, value: tf.Tensor) -> tf.Tensor:
        """Returns whether all of `value` lies in the range."""
        inside = tf.math.is_finite(value) if value.dtype.is_floating else tf.ones_like(value, bool)
        if self.low is not None:
            low = tf.cast(self.low, value.dtype)
            inside &= (value > low) if self.above else (value >= low)
        if self.high is not None:
            inside &= value <= tf.cast(self.high, value.dtype)
        return tf.reduce_all(inside)

    def __str__(self) -> str:
        if self.low is None:
            text = "finite"
        elif self.high is None:
            text = f"finite and {'above' if self.above else 'at least'} {self.low:g}"
        elif self.low == self.high:
            text = f"{self.low:g}"
        else:
            text = f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
        return text + self.note


def ranges(model: DiffusionModel) -> dict[str, Range]:
    """Returns the range of each input. Levels are those that hold noise; of timesteps, the first to
    the last.
    """
    low, high = model.schedule.domain
    discrete = isinstance(model.schedule, DiscreteSchedule)
    noise = model.schedule.alpha_sigma(np.array([low]))[1][0]
    null, classes = model.network_inputs.null_label, model.num_classes
    label = Range(0, classes - 1)
    if null is not None:
        label = Range(0, null, note=f" ({null} is the null label)")
    guidance = Range(0, note=" (1 is none)")
    if not model.network_inputs.can_be_guided:
        guidance = Range(1, 1, note=", none: no null condition was learned")
    return {
        "seeds": Range(0),
        "noise": Range(),
        "x": Range(),
        "level": Range(
            low, high - 1 if discrete else high if np.isfinite(high) else None, above=noise == 0.0
        ),
        "label": label,
        "context": Range(),
        "guidance": guidance,
    }


def checked(
    specs: Sequence[tf.TensorSpec], inputs: Sequence[tf.Tensor], ranges: dict[str, Range]
) -> list[tf.Tensor]:
    """Returns the inputs behind checks of their shapes, then of their numbers and values.

    Args:
        specs: name and shape of each input; the first is batched.
        inputs: the inputs.
        ranges: by name.
    """
    inputs = [_of_shape(spec, value) for spec, value in zip(specs, inputs, strict=True)]
    first, count = specs[0].name, tf.shape(inputs[0])[0]
    checks = [tf.debugging.Assert(count > 0, [f"{first} must have at least one entry"])]
    for spec, value in zip(specs, inputs, strict=True):
        if spec.shape.rank:
            own, message = (
                tf.shape(value)[0],
                f"{spec.name} must have one entry for each of {first}",
            )
            checks.append(tf.debugging.Assert(own == count, [f"{message}. Received:", own, count]))
        message = f"{spec.name} must be {ranges[spec.name]}. Received:"
        checks.append(tf.debugging.Assert(ranges[spec.name].holds(value), [message, value]))
    with tf.control_dependencies(checks):
        return [tf.identity(value) for value in inputs]


def finite(answer: tf.Tensor) -> tf.Tensor:
    """Returns the answer behind a check that it holds numbers."""
    return tf.debugging.assert_all_finite(answer, "the model's answer is not finite")


def _of_shape(spec: tf.TensorSpec, value: tf.Tensor) -> tf.Tensor:
    # With the shape of the signature, the check would be optimised away; with that of the request,
    # TensorFlow would refuse the operations that follow, in words that name no input.
    unknown = tf.TensorShape(None)
    value = tf.raw_ops.PlaceholderWithDefault(
        input=value, shape=unknown, name=f"received_{spec.name}"
    )
    return tf.ensure_shape(value, spec.shape)
