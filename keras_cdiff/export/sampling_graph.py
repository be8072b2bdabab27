"""The TensorFlow graphs of a SavedModel that samples: whole tasks."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_cdiff.diffusion_model import DiffusionModel
from keras_cdiff.samplers import Guidance, Sampler


class SamplingGraph(tf.Module):
    """Holds a network's weights, and the graphs that sample with it.

    Args:
        model: a `DiffusionModel`, on the TensorFlow backend.
        sampler: how noise becomes images.
        guidance: levels and channels that are guided; its scale is an input of the graphs.
        use_ema: whether the averaged weights answer.
        jit_compile: whether XLA compiles the network.
    """

    def __init__(
        self,
        model: DiffusionModel,
        sampler: Sampler,
        guidance: Guidance,
        use_ema: bool,
        jit_compile: bool,
    ):
        super().__init__(name="sampling")
        network = model.ema_backbone if use_ema else model.backbone
        self.weights = [variable.value for variable in network.variables]
        self._image_shape, self._num_classes = model.image_shape, model.num_classes
        self._schedule, self._sampler, self._guidance = model.schedule, sampler, guidance
        table = sampler.table(model.schedule)
        self._columns = sorted(table)
        self._table = np.stack([table[name] for name in self._columns], axis=1).astype("float32")
        self._initial_scale = sampler.initial_scale(model.schedule)

        def estimate(x: tf.Tensor, level: tf.Tensor, **condition: tf.Tensor) -> dict:
            channels = guidance.channels
            answer = model.estimate(
                x, level, **condition, guidance_channels=channels, use_ema=use_ema
            )
            return {name: value for name, value in answer.items() if value is not None}

        # A function of its own, so that a loop's graph calls it instead of repeating it.
        self._estimate = tf.function(estimate, jit_compile=jit_compile or None)

    def inputs(self) -> dict[str, dict[str, tf.TensorSpec]]:
        """Returns what each signature takes, for any batch size B.

        sample: seeds int64 (B,) -> images uint8 (B, H, W, C).
        sample_from_noise: noise float32 (B, H, W, C), or (B, n + 1, H, W, C) if each of the
            sampler's n steps adds fresh noise -> images float32 (B, H, W, C), not clipped.
        denoise: x float32 (B, H, W, C), level float32 (B,) in the schedule's own unit -> clean
            float32 (B, H, W, C), the estimate of the clean image.

        A model with classes also takes label int32 (B,) and guidance float32 ().
        """
        draws = (len(self._table) + 1,) if self._sampler.needs_noise else ()
        image, condition = self._image_shape, {}
        if self._num_classes:
            condition = {"label": ((None,), tf.int32), "guidance": ((), tf.float32)}
        inputs = {
            "sample": {"seeds": ((None,), tf.int64)},
            "sample_from_noise": {"noise": ((None, *draws, *image), tf.float32)},
            "denoise": {"x": ((None, *image), tf.float32), "level": ((None,), tf.float32)},
        }
        return {
            name: {
                key: tf.TensorSpec(shape, dtype, name=key)
                for key, (shape, dtype) in {**own, **condition}.items()
            }
            for name, own in inputs.items()
        }

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Returns the graphs by name."""
        return {
            name: tf.function(getattr(self, f"_{name}")).get_concrete_function(**specs)
            for name, specs in self.inputs().items()
        }

    def _sample(self, seeds: tf.Tensor, **condition: tf.Tensor) -> dict:
        checks = [
            tf.debugging.assert_non_negative(seeds, "seeds must be integers >= 0"),
            *self._checks(tf.shape(seeds)[0], **condition),
        ]

        def draw(number: tf.Tensor | int) -> tf.Tensor:
            # Each sample's noise by its seed alone, whatever else is in the batch.
            def one(seed: tf.Tensor) -> tf.Tensor:
                pair = tf.stack([seed, tf.cast(number, tf.int64)])
                return tf.random.stateless_normal(self._image_shape, pair, alg="philox")

            return tf.map_fn(one, seeds, fn_output_signature=tf.float32)

        with tf.control_dependencies(checks):
            x = self._trajectory(draw, **condition)
        finite = tf.debugging.assert_all_finite(x, "the model's samples are not finite numbers")
        pixels = tf.clip_by_value(tf.round((finite + 1.0) * 127.5), 0.0, 255.0)
        return {"images": tf.cast(pixels, tf.uint8)}

    def _sample_from_noise(self, noise: tf.Tensor, **condition: tf.Tensor) -> dict:
        checks = [
            tf.debugging.Assert(
                tf.reduce_all(tf.math.is_finite(noise)), ["noise must hold finite numbers"]
            ),
            *self._checks(tf.shape(noise)[0], **condition),
        ]

        def draw(number: tf.Tensor | int) -> tf.Tensor:
            return noise[:, number] if self._sampler.needs_noise else noise

        with tf.control_dependencies(checks):
            return {"images": self._trajectory(draw, **condition)}

    def _denoise(
        self,
        x: tf.Tensor,
        level: tf.Tensor,
        label: tf.Tensor | None = None,
        guidance: tf.Tensor | None = None,
    ) -> dict:
        low, high = self._schedule.domain
        condition = {} if label is None else {"label": label, "guidance": guidance}
        checks = [
            tf.debugging.Assert(
                tf.reduce_all((level >= low) & (level <= high)),
                [f"level must lie in [{low:g}, {high:g}]. Received:", level],
            ),
            tf.debugging.assert_equal(
                tf.shape(level)[0], tf.shape(x)[0], "level must have one entry an image"
            ),
            *self._checks(tf.shape(x)[0], **condition),
        ]
        with tf.control_dependencies(checks):
            x = tf.identity(x)
        if label is None:
            return {"clean": self._estimate(x, level)["clean"]}
        scale = tf.where(self._guidance.covers(level), guidance, 1.0)
        return {"clean": self._guided(x, level, label, scale[:, None, None, None])["clean"]}

    def _trajectory(
        self,
        draw: Callable,
        label: tf.Tensor | None = None,
        guidance: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Images from the noise that `draw` returns: for 0 the first, for i + 1 that of step i."""
        sampler, table = self._sampler, tf.constant(self._table)
        last = len(self._table) - 1

        def denoise(x: tf.Tensor, level: tf.Tensor) -> dict:
            levels = tf.fill(tf.shape(x)[:1], level)
            if label is None:
                answer = self._estimate(x, levels)
            else:
                scale = tf.where(self._guidance.covers(level), guidance, 1.0)
                answer = self._guided(x, levels, label, scale)
            return {"variance": None, **answer}

        def step(i: tf.Tensor | int, x: tf.Tensor, clean: tf.Tensor, is_last: bool) -> tuple:
            row = dict(zip(self._columns, tf.unstack(table[i], len(self._columns)), strict=True))
            noise = draw(i + 1) if sampler.needs_noise else None
            x, clean = sampler.step(denoise, x, clean, row, noise, last=is_last)
            shape = (None, *self._image_shape)
            return tf.ensure_shape(x, shape), tf.ensure_shape(clean, shape)

        x = tf.ensure_shape(self._initial_scale * draw(0), (None, *self._image_shape))
        _, x, clean = tf.while_loop(
            lambda i, x, clean: i < last,
            lambda i, x, clean: (i + 1, *step(i, x, clean, False)),
            (0, x, tf.zeros_like(x)),
        )
        return step(last, x, clean, True)[0]

    def _guided(self, x: tf.Tensor, level: tf.Tensor, label: tf.Tensor, scale: tf.Tensor) -> dict:
        """The estimate with guidance, at one evaluation of the network where its scale is 1."""
        return tf.cond(
            tf.reduce_all(tf.equal(scale, 1.0)),
            lambda: self._estimate(x, level, label=label),
            lambda: self._estimate(x, level, label=label, guidance=scale),
        )

    def _checks(
        self,
        count: tf.Tensor,
        label: tf.Tensor | None = None,
        guidance: tf.Tensor | None = None,
    ) -> list:
        checks = [tf.debugging.assert_positive(count, "at least one sample must be asked for")]
        if label is not None:
            null = self._num_classes
            checks += [
                tf.debugging.assert_equal(
                    tf.shape(label)[0], count, "label must have one entry a sample"
                ),
                tf.debugging.Assert(
                    tf.reduce_all((label >= 0) & (label <= null)),
                    [f"label must lie in 0..{null} ({null} is the null label). Received:", label],
                ),
                tf.debugging.Assert(
                    (guidance >= 0.0) & tf.math.is_finite(guidance),
                    ["guidance must be a finite number >= 0 (1 is none). Received:", guidance],
                ),
            ]
        return checks
