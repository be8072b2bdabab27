"""The TensorFlow graphs of an exported model that samples: whole tasks."""

import types
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_cdiff.autoencoders import Autoencoder
from keras_cdiff.export.request_checks import checked, finite, ranges
from keras_cdiff.model.diffusion_model import DiffusionModel
from keras_cdiff.model.process import guide
from keras_cdiff.samplers import Guidance, Sampler

_CONDITIONS = ("label", "context")  # in the order of the network's function


class SamplingGraph(tf.Module):
    """Holds a network's weights, and the graphs that sample with it.

    Args:
        model: a `DiffusionModel`, on the TensorFlow backend.
        network: the network that answers: the model's own, or an average of it.
        sampler: how noise becomes images.
        guidance: levels and channels that are guided; its scale is an input of the graphs.
        plain: whether the graphs hold nothing but arithmetic and loops, for converters: no checks
            of requests, and no calls of functions.
        jit_compile: whether XLA compiles the network.
        autoencoder: what decodes samples that are latents.
    """

    def __init__(
        self,
        model: DiffusionModel,
        network: keras.Model,
        sampler: Sampler,
        guidance: Guidance,
        plain: bool = False,
        jit_compile: bool = False,
        autoencoder: Autoencoder | None = None,
    ):
        super().__init__(name="sampling")
        decoder = [] if autoencoder is None else autoencoder.decoder.weights
        self.weights = [weight.value for weight in (*network.weights, *decoder)]
        # In a namespace, so that nothing is saved but weights and tasks.
        self._parts = types.SimpleNamespace(
            model=model, sampler=sampler, guidance=guidance, autoencoder=autoencoder
        )
        self._plain = plain
        table = sampler.table(model.schedule)
        self._columns = sorted(table)
        self._table = np.stack([table[name] for name in self._columns], axis=1).astype("float32")
        self._initial_scale = sampler.initial_scale(model.schedule)

        inputs = self.inputs()["denoise"]
        used = [name for name in ("x", "level", *_CONDITIONS) if name in inputs]

        def call_network(x: tf.Tensor, level: tf.Tensor, *conditions: tf.Tensor) -> tf.Tensor:
            condition = dict(zip(used[2:], conditions, strict=True))
            coefficients = model.process.coefficients(level)
            return model.process.predict(network, x, coefficients, condition)

        # One function, called wherever the graphs need it: inlined, a network of many layers takes
        # TensorFlow several times as long to optimise and to start.
        attributes = None if plain or jit_compile else {"_noinline": True}
        self._parts.call_network = tf.function(
            call_network,
            input_signature=[inputs[name] for name in used],
            autograph=False,
            jit_compile=jit_compile or None,
            experimental_attributes=attributes,
        )

    def inputs(self) -> dict[str, dict[str, tf.TensorSpec]]:
        """Returns what each signature takes, for any batch size B.

        sample: seeds int64 (B,) -> images uint8 (B, H, W, C).
        sample_from_noise: noise float32 (B, H, W, C), or (B, n + 1, H, W, C) if each of the
            sampler's n steps adds fresh noise -> images float32 (B, H, W, C), not clipped.
        denoise: x float32 (B, H, W, C), level float32 (B,) in the schedule's own unit -> clean
            float32 (B, H, W, C), the estimate of the clean image.

        A model with classes also takes label int32 (B,), one with contexts context float32
        (B, L, D), and either guidance float32 (). With an autoencoder noise, x and clean are
        latents.
        """
        model, condition = self._parts.model, {}
        draws = (len(self._table) + 1,) if self._parts.sampler.needs_noise else ()
        if model.num_classes:
            condition["label"] = (None,), tf.int32
        if model.network_inputs.context_width:
            condition["context"] = (None, None, model.network_inputs.context_width), tf.float32
        if condition:
            condition["guidance"] = (), tf.float32
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
        shape = (None, *self.pixel_shape())
        clean = (None, *self._parts.model.image_shape)
        return {
            "sample": {"images": tf.TensorSpec(shape, tf.uint8)},
            "sample_from_noise": {"images": tf.TensorSpec(shape, tf.float32)},
            "denoise": {"clean": tf.TensorSpec(clean, tf.float32)},
        }

    def pixel_shape(self) -> tuple[int, int, int]:
        """Returns (H, W, C) of an image, decoded where samples are latents."""
        height, width, channels = self._parts.model.image_shape
        autoencoder = self._parts.autoencoder
        if autoencoder is None:
            return height, width, channels
        return height * autoencoder.factor, width * autoencoder.factor, 3

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
        **condition: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Draws images, each by its seed."""
        (seeds,), condition = self._checked("sample", seeds, **condition)
        shape = self._parts.model.image_shape

        def draw(number: tf.Tensor | int) -> tf.Tensor:
            # Each sample's noise by its seed alone, whatever else is in the batch.
            def one(seed: tf.Tensor) -> tf.Tensor:
                pair = tf.stack([seed, tf.cast(number, tf.int64)])
                return tf.random.stateless_normal(shape, pair, alg="philox")

            return tf.map_fn(one, seeds, fn_output_signature=tf.float32)

        return {"images": self._grey_levels(self._images(draw, condition))}

    def sample_from_noise(
        self,
        noise: tf.Tensor,
        **condition: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Makes images of noise."""
        (noise,), condition = self._checked("sample_from_noise", noise, **condition)

        def draw(number: tf.Tensor | int) -> tf.Tensor:
            return noise[:, number] if self._parts.sampler.needs_noise else noise

        return {"images": self._images(draw, condition)}

    def denoise(
        self,
        x: tf.Tensor,
        level: tf.Tensor,
        **condition: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Estimates the clean images."""
        (x, level), condition = self._checked("denoise", x, level, **condition)
        return {"clean": self._finite(self._estimate(x, level, condition)["clean"])}

    def _checked(
        self, task: str, *inputs: tf.Tensor, **condition: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """The inputs of a task and its conditions, of which nothing is made before the checks are
        done.
        """
        specs = self.inputs()[task]
        names = list(specs)[: len(inputs)]
        values = dict(zip(names, inputs, strict=True)) | condition
        if not self._plain:
            ordered = [values[name] for name in specs]
            ordered = checked(list(specs.values()), ordered, ranges(self._parts.model))
            values = dict(zip(specs, ordered, strict=True))
        return [values.pop(name) for name in names], values

    def _finite(self, answer: tf.Tensor) -> tf.Tensor:
        return answer if self._plain else finite(answer)

    def _images(self, draw: Callable, condition: dict) -> tf.Tensor:
        """Samples as images in about [-1, 1], decoded where they are latents."""
        samples, autoencoder = self._trajectory(draw, condition), self._parts.autoencoder
        if autoencoder is None:
            return self._finite(samples)
        images = autoencoder.decoder(samples / autoencoder.scale, training=False)
        return self._finite(tf.ensure_shape(images, (None, *self.pixel_shape())))

    def _trajectory(self, draw: Callable, condition: dict) -> tf.Tensor:
        """Samples from the noise that `draw` returns: for 0 the first, for i + 1 that of step i."""
        sampler, table = self._parts.sampler, tf.constant(self._table)
        last, shape = len(self._table) - 1, (None, *self._parts.model.image_shape)

        def denoise(x: tf.Tensor, level: tf.Tensor) -> dict:
            return self._estimate(x, tf.fill(tf.shape(x)[:1], level), condition)

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
        self, x: tf.Tensor, level: tf.Tensor, condition: dict
    ) -> dict[str, tf.Tensor | None]:
        """The model's estimate at levels (B,), with guidance where it covers them."""
        model = self._parts.model
        coefficients = model.process.coefficients(level)
        if not condition:
            return model.process.estimate(x, self._parts.call_network(x, level), coefficients)
        scale = tf.where(self._parts.guidance.covers(level), condition["guidance"], 1.0)
        # Without guidance the rows under the null condition are left out, and the others stand in.
        count = tf.shape(x)[0]
        rows = count * tf.where(tf.reduce_all(tf.equal(scale, 1.0)), 1, 2)
        twice = [tf.concat([x, x], 0), tf.concat([level, level], 0)]
        for name in _CONDITIONS:
            if name in condition:
                values = condition[name]
                null = model.num_classes if name == "label" else 0
                null = tf.zeros_like(values) + tf.cast(null, values.dtype)
                twice.append(tf.concat([values, null], 0))
        output = self._parts.call_network(*(inputs[:rows] for inputs in twice))
        output = guide(
            output[:count],
            output[rows - count :],
            scale[:, None, None, None],
            self._parts.guidance.channels or model.backbone.channels,
        )
        return model.process.estimate(x, output, coefficients)

    def _grey_levels(self, images: tf.Tensor) -> tf.Tensor:
        """Images in about [-1, 1] as 8 bits."""
        return tf.cast(tf.clip_by_value(tf.round((images + 1.0) * 127.5), 0.0, 255.0), tf.uint8)
