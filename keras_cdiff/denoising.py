"""Denoising: the estimate of the clean image that a network's output stands for, with guidance, and
its loss.
"""

import keras
from keras import ops

from keras_cdiff.variational import variational_term

Tensor = keras.KerasTensor


def expand(coefficient: Tensor) -> Tensor:
    """Returns one number a sample, (B,), as (B, 1, 1, 1)."""
    return ops.reshape(coefficient, (-1, 1, 1, 1))


class Denoising:
    """Mixin of a model with a backbone, its average, a schedule, a parameterization and an
    objective.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.backbone.image_size, self.backbone.image_size, self.backbone.channels

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the model takes no labels."""
        return self.backbone.num_classes

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class; None if the network has not learned one."""
        learned = self.num_classes and getattr(self.backbone, "label_dropout", None) != 0
        return self.num_classes if learned else None

    @property
    def context_width(self) -> int | None:
        """Features of a context's rows, 0 if the model takes no context; None if its backbone does
        not say.
        """
        return getattr(self.backbone, "context_width", None)

    @property
    def learns_null_context(self) -> bool:
        """Whether training drops contexts now and then, so that guidance by context is defined."""
        return getattr(self.backbone, "context_dropout", None) != 0

    @property
    def can_be_guided(self) -> bool:
        """Whether the model has conditions, and has learned the null one of each."""
        null = []
        if self.num_classes:
            null.append(self.null_label is not None)
        if self.context_width:
            null.append(self.learns_null_context)
        return bool(null) and all(null)

    def add_noise(self, image: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Returns x_t = alpha x_0 + sigma eps for images and noise (B, H, W, C) at levels (B,)."""
        return (
            expand(self.schedule.alpha(level)) * image + expand(self.schedule.sigma(level)) * noise
        )

    def ask(
        self, network: keras.Model, noisy: Tensor, level: Tensor, condition: dict, training: bool
    ) -> Tensor:
        """Returns a network's output on noisy images (B, H, W, C) at levels (B,)."""
        _, _, c_in, c_noise = self.parameterization.coefficients(level, self.schedule)
        return network(expand(c_in) * noisy, c_noise, **condition, training=training)

    def clean(self, noisy: Tensor, level: Tensor, output: Tensor) -> Tensor:
        """Returns the estimate of the clean images that a network's output stands for."""
        c_skip, c_out, _, _ = self.parameterization.coefficients(level, self.schedule)
        channels = self.backbone.channels
        return expand(c_skip) * noisy + expand(c_out) * output[..., :channels]

    def estimate(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        guidance: Tensor | float = 1.0,
        guidance_channels: int | None = None,
        use_ema: bool = False,
    ) -> dict[str, Tensor | None]:
        """Returns the estimate of the clean image, and the learned variance's channels if there are
        any.

        With guidance w the network's output is uncond + w (cond - uncond) (Ho and Salimans,
        "Classifier-Free Diffusion Guidance", 2021); the variance stays conditional.

        Args:
            x: (B, H, W, C) noisy images.
            level: (B,) or (), noise levels in the schedule's native coordinate.
            label: (B,) int class labels; `num_classes` is the null label.
            context: (B, L, D) conditioning sequence; rows of zeros are padding, and zeros alone the
                null context.
            guidance: the scale w; exactly 1.0 asks the network once instead of twice.
            guidance_channels: guide only that many first channels (official DiT: 3).
            use_ema: whether the averaged weights answer.

        Returns:
            {"clean": (B, H, W, C) float32, "variance": (B, H, W, C) float32 or None}.
        """
        network = self.ema_backbone if use_ema else self.backbone
        if network is None:
            raise ValueError("This model keeps no average of its weights. Received: use_ema=True")
        x = ops.cast(x, "float32")
        level = ops.broadcast_to(ops.cast(level, "float32"), ops.shape(x)[:1])
        condition = {"label": label, "context": context}
        guided = not (isinstance(guidance, int | float) and guidance == 1.0)
        if not guided:
            output = self.ask(network, x, level, condition, training=False)
        else:
            if label is None and context is None:
                raise ValueError(
                    "Guidance needs a condition to strengthen: give `label` or `context`, or leave "
                    f"guidance at 1.0. Received: guidance={guidance}, label=None, context=None"
                )
            null = {
                "label": None if label is None else ops.full_like(label, self.num_classes),
                "context": None if context is None else ops.zeros_like(context),
            }
            both = {
                k: None if v is None else ops.concatenate([v, null[k]])
                for k, v in condition.items()
            }
            twice = self.ask(
                network, ops.concatenate([x, x]), ops.concatenate([level, level]), both, False
            )
            output, unconditional = ops.split(twice, 2)
            output = self.guide(output, unconditional, guidance, guidance_channels)
        return self.interpret(x, level, output)

    def guide(
        self,
        output: Tensor,
        unconditional: Tensor,
        guidance: Tensor | float,
        channels: int | None = None,
    ) -> Tensor:
        """Returns uncond + w (cond - uncond), of the image's channels alone.

        Args:
            output: (B, H, W, out_channels), the network's output under the condition.
            unconditional: the same under the null condition.
            guidance: the scale w.
            channels: guide only that many first channels.
        """
        channels = channels or self.backbone.channels
        change = (guidance - 1.0) * (output - unconditional)[..., :channels]
        return output + ops.concatenate([change, ops.zeros_like(output[..., channels:])], axis=-1)

    def interpret(self, x: Tensor, level: Tensor, output: Tensor) -> dict[str, Tensor | None]:
        """Returns what a network's output on noisy images says, as `estimate` does."""
        variance = None
        if self.parameterization.learned_variance:
            variance = output[..., self.backbone.channels :]
        return {"clean": self.clean(x, level, output), "variance": variance}

    def denoise(self, x: Tensor, level: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Returns the estimate of the clean image (B, H, W, C) float32; the arguments are those of
        `estimate`.
        """
        return self.estimate(x, level, *args, **kwargs)["clean"]

    def sample_losses(self, image: Tensor, level: Tensor, noise: Tensor, output: Tensor) -> Tensor:
        """Returns the weighted loss of each sample, (B,), for the network's output on
        `add_noise(image, noise, level)`; `call` returns the arguments.

        loss = w mean (output - target)^2, plus the variational term where the variance is learned.
        """
        image = ops.cast(image, "float32")
        a, b = self.parameterization.target_coefficients(level, self.schedule)
        target = expand(a) * image + expand(b) * noise
        _, c_out, _, _ = self.parameterization.coefficients(level, self.schedule)
        channels = self.backbone.channels
        error = ops.mean(ops.square(output[..., :channels] - target), axis=(1, 2, 3))
        weight = self.objective.weighting.output_weight(self.schedule.log_snr(level), c_out)
        loss = weight * error
        if self.parameterization.learned_variance:
            noisy = self.add_noise(image, noise, level)
            clean = self.clean(noisy, level, output)
            variance = output[..., channels:]
            loss = loss + variational_term(self.schedule, level, image, noisy, clean, variance)
        return loss
