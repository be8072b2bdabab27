"""The TensorFlow graphs of an exported model that samples: whole tasks."""

import types
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler


class SamplingGraph(tf.Module):
    """Holds a network's weights, and the graphs that sample with it.

    Args:
        model: a `DiffusionModel`, on the TensorFlow backend.
        network: the network that answers: the model's own, or an average of it.
        sampler: how noise becomes images.
        guidance: levels and channels that are guided; its scale is an input of the graphs.
        network_call: how the graphs call the network. "function": wherever they ask, the same
            function, since inlined a network of many layers takes TensorFlow several times as long
            to optimise and to start; "inline", for converters that know no functions; "xla".
    """

    def __init__(
        self,
        model: DiffusionModel,
        network: keras.Model,
        sampler: Sampler,
        guidance: Guidance,
        network_call: str,
    ):
        super().__init__(name="sampling")
        self.weights = [weight.value for weight in network.weights]
        # In a namespace, so that nothing is saved but weights and tasks.
        self._parts = types.SimpleNamespace(model=model, sampler=sampler, guidance=guidance)
        table = sampler.table(model.schedule)
        self._columns = sorted(table)
        self._table = np.stack([table[name] for name in self._columns], axis=1).astype("float32")
        self._initial_scale = sampler.initial_scale(model.schedule)

        def ask(x: tf.Tensor, level: tf.Tensor, label: tf.Tensor | None = None) -> tf.Tensor:
            return model.ask(network, x, level, {"label": label}, training=False)

        inputs = self.inputs()["denoise"]
        self._parts.ask = tf.function(
            ask,
            input_signature=[inputs[name] for name in ("x", "level", "label") if name in inputs],
            autograph=False,
            jit_compile=True if network_call == "xla" else None,
            experimental_attributes={"_noinline": True} if network_call == "function" else None,
        )

    def inputs(self) -> dict[str, dict[str, tf.TensorSpec]]:
        """Returns what each signature takes, for any batch size B.

        sample: seeds int64 (B,) -> images uint8 (B, H, W, C).
        sample_from_noise: noise float32 (B, H, W, C), or (B, n + 1, H, W, C) if each of the
            sampler's n steps adds fresh noise -> images float32 (B, H, W, C), not clipped.
        denoise: x float32 (B, H, W, C), level float32 (B,) in the schedule's own unit -> clean
            float32 (B, H, W, C), the estimate of the clean image.

        A model with classes also takes label int32 (B,) and guidance float32 ().
        """
        model, condition = self._parts.model, {}
        draws = (len(self._table) + 1,) if self._parts.sampler.needs_noise else ()
        if model.num_classes:
            condition = {"label": ((None,), tf.int32), "guidance": ((), tf.float32)}
        inputs = {
            "sample": {"seeds": ((None,), tf.int64)},
            "sample_from_noise": {"noise": ((None, *draws, *model.image_shape), tf.float32)},
            "denoise": {
                "x": ((None, *model.image_shape), tf.float32),
                "level": ((None,), tf.float32),
            },
        }
        return {
            name: {
                key: tf.TensorSpec(shape, dtype, name=key)
                for key, (shape, dtype) in {**own, **condition}.items()
            }
            for name, own in inputs.items()
        }

    def outputs(self) -> dict[str, dict[str, tf.TensorSpec]]:
        """Returns what each signature answers."""
        shape = (None, *self._parts.model.image_shape)
        return {
            "sample": {"images": tf.TensorSpec(shape, tf.uint8)},
            "sample_from_noise": {"images": tf.TensorSpec(shape, tf.float32)},
            "denoise": {"clean": tf.TensorSpec(shape, tf.float32)},
        }

    def signatures(self, names: Sequence[str]) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Returns the graphs of that name."""
        return {
            name: tf.function(getattr(self, name), autograph=False).get_concrete_function(
                **self.inputs()[name]
            )
            for name in names
        }

    def sample(
        self,
        seeds: tf.Tensor,
        label: tf.Tensor | None = None,
        guidance: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Draws images, each by its seed."""
        checks = [
            tf.debugging.assert_non_negative(seeds, "seeds must be integers >= 0"),
            *self._checks(tf.shape(seeds)[0], label, guidance),
        ]
        shape = self._parts.model.image_shape

        def draw(number: tf.Tensor | int) -> tf.Tensor:
            # Each sample's noise by its seed alone, whatever else is in the batch.
            def one(seed: tf.Tensor) -> tf.Tensor:
                pair = tf.stack([seed, tf.cast(number, tf.int64)])
                return tf.random.stateless_normal(shape, pair, alg="philox")

            return tf.map_fn(one, seeds, fn_output_signature=tf.float32)

        with tf.control_dependencies(checks):
            x = self._trajectory(draw, label, guidance)
        return {"images": self._pixels(x)}

    def sample_from_noise(
        self,
        noise: tf.Tensor,
        label: tf.Tensor | None = None,
        guidance: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Makes images of the noise given."""
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(tf.math.is_finite(noise)), ["noise must hold finite numbers"]
            ),
            *self._checks(tf.shape(noise)[0], label, guidance),
        ]

        def draw(number: tf.Tensor | int) -> tf.Tensor:
            return noise[:, number] if self._parts.sampler.needs_noise else noise

        with tf.control_dependencies(checks):
            return {"images": _finite(self._trajectory(draw, label, guidance))}

    def denoise(
        self,
        x: tf.Tensor,
        level: tf.Tensor,
        label: tf.Tensor | None = None,
        guidance: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Estimates the clean images."""
        low, high = self._parts.model.schedule.domain
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(tf.math.is_finite(x)), ["x must hold finite numbers"]
            ),
            tf.debugging.Assert(
                tf.reduce_all((level >= low) & (level <= high)),
                [f"level must lie in [{low:g}, {high:g}]. Received:", level],
            ),
            tf.debugging.assert_equal(
                tf.shape(level)[0], tf.shape(x)[0], "level must have one entry an image"
            ),
            *self._checks(tf.shape(x)[0], label, guidance),
        ]
        with tf.control_dependencies(checks):
            estimate = self._estimate(tf.identity(x), level, label, guidance)
        return {"clean": _finite(estimate["clean"])}

    def _trajectory(
        self, draw: Callable, label: tf.Tensor | None, guidance: tf.Tensor | None
    ) -> tf.Tensor:
        """Images from the noise that `draw` returns: for 0 the first, for i + 1 that of step i."""
        sampler, table = self._parts.sampler, tf.constant(self._table)
        last, shape = len(self._table) - 1, (None, *self._parts.model.image_shape)

        def denoise(x: tf.Tensor, level: tf.Tensor) -> dict:
            return self._estimate(x, tf.fill(tf.shape(x)[:1], level), label, guidance)

        def step(i: tf.Tensor | int, x: tf.Tensor, clean: tf.Tensor, is_last: bool) -> tuple:
            row = dict(zip(self._columns, tf.unstack(table[i], len(self._columns)), strict=True))
            noise = draw(i + 1) if sampler.needs_noise else None
            x, clean = sampler.step(denoise, x, clean, row, noise, last=is_last)
            return tf.ensure_shape(x, shape), tf.ensure_shape(clean, shape)

        x = tf.ensure_shape(self._initial_scale * draw(0), shape)
        _, x, clean = tf.while_loop(
            lambda i, x, clean: i < last,
            lambda i, x, clean: (i + 1, *step(i, x, clean, False)),
            (0, x, tf.zeros_like(x)),
        )
        return step(last, x, clean, True)[0]

    def _estimate(
        self,
        x: tf.Tensor,
        level: tf.Tensor,
        label: tf.Tensor | None,
        guidance: tf.Tensor | None,
    ) -> dict[str, tf.Tensor | None]:
        """The model's estimate at levels (B,), with guidance where it covers them."""
        model = self._parts.model
        if label is None:
            return model.interpret(x, level, self._parts.ask(x, level))
        scale = tf.where(self._parts.guidance.covers(level), guidance, 1.0)
        # Without guidance the rows under the null label are left out, and the others stand in.
        count = tf.shape(x)[0]
        rows = count * tf.where(tf.reduce_all(tf.equal(scale, 1.0)), 1, 2)
        null = tf.fill(tf.shape(label), model.num_classes)
        output = self._parts.ask(
            tf.concat([x, x], 0)[:rows],
            tf.concat([level, level], 0)[:rows],
            tf.concat([label, null], 0)[:rows],
        )
        output = model.guide(
            output[:count],
            output[rows - count :],
            scale[:, None, None, None],
            self._parts.guidance.channels,
        )
        return model.interpret(x, level, output)

    def _pixels(self, x: tf.Tensor) -> tf.Tensor:
        """Samples in the model's units as grey levels; where a decoder of latents will come in."""
        grey = tf.round((_finite(x) + 1.0) * 127.5)
        return tf.cast(tf.clip_by_value(grey, 0.0, 255.0), tf.uint8)

    def _checks(
        self, count: tf.Tensor, label: tf.Tensor | None, guidance: tf.Tensor | None
    ) -> list:
        checks = [tf.debugging.assert_positive(count, "at least one sample must be asked for")]
        if label is None:
            return checks
        classes, null = self._parts.model.num_classes, self._parts.model.null_label
        highest = classes - 1 if null is None else null
        explained = "" if null is None else f" ({null} is the null label)"
        checks += [
            tf.debugging.assert_equal(
                tf.shape(label)[0], count, "label must have one entry a sample"
            ),
            tf.debugging.Assert(
                tf.reduce_all((label >= 0) & (label <= highest)),
                [f"label must lie in 0..{highest}{explained}. Received:", label],
            ),
        ]
        if null is None:
            checks.append(
                tf.debugging.Assert(
                    tf.equal(guidance, 1.0),
                    [
                        "guidance must be 1, none, for this model, which was trained without the "
                        "null label. Received:",
                        guidance,
                    ],
                )
            )
        else:
            checks.append(
                tf.debugging.Assert(
                    (guidance >= 0.0) & tf.math.is_finite(guidance),
                    ["guidance must be a finite number >= 0 (1 is none). Received:", guidance],
                )
            )
        return checks


def _finite(x: tf.Tensor) -> tf.Tensor:
    return tf.debugging.assert_all_finite(x, "the model's answer is not finite numbers")
