"""The diffusion process: noise is added to images, a network predicts, and its output has a loss.

noisy:    x_t = alpha x_0 + sigma eps
predict:  output = network(c_in x_t, c_noise)
clean:    x_0 is about c_skip x_t + c_out output
losses:   w mean (output - (a x_0 + b eps))^2, plus the variational term of a learned variance
"""

import dataclasses

import keras
from keras import ops

from keras_cdiff.model.variational import variational_term
from keras_cdiff.objectives import Objective
from keras_cdiff.parameterizations import Coefficients, Parameterization
from keras_cdiff.schedules import Schedule

Tensor = keras.KerasTensor


def expand(coefficient: Tensor) -> Tensor:
    """Returns one number a sample, (B,), as (B, 1, 1, 1)."""
    return ops.reshape(coefficient, (-1, 1, 1, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """A schedule, a parameterization and an objective, and what follows from the three.

    Images, noise and noisy images are (B, H, W, C), levels (B,) in the schedule's coordinate, and
    a network's output is (B, H, W, C), or (B, H, W, 2 C) with a learned variance.
    """

    schedule: Schedule
    parameterization: Parameterization
    objective: Objective

    def coefficients(self, level: Tensor) -> Coefficients:
        """Returns c_skip, c_out, c_in and c_noise, each (B,)."""
        return self.parameterization.coefficients(level, self.schedule)

    def noisy(self, image: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Returns x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        return expand(alpha) * image + expand(sigma) * noise

    def predict(
        self,
        network: keras.Model,
        noisy: Tensor,
        coefficients: Coefficients,
        condition: dict,
        training: bool = False,
    ) -> Tensor:
        """Returns the network's output.

        Args:
            network: the backbone, or one of its averages.
            noisy: x_t.
            coefficients: those at the images' levels.
            condition: "label", "context" and "augment", each a tensor or None, or left out.
            training: whether the network drops conditions and activations.
        """
        scaled = expand(coefficients.in_) * noisy
        return network(scaled, coefficients.noise, **condition, training=training)

    def forward(
        self,
        network: keras.Model,
        image: Tensor,
        level: Tensor,
        noise: Tensor,
        condition: dict,
        training: bool = False,
    ) -> dict:
        """Adds noise to images and runs the network on them.

        Returns:
            The arguments of `losses`: {"image", "level", "noise", "noisy", "output",
            "coefficients"}.
        """
        coefficients = self.coefficients(level)
        noisy = self.noisy(image, noise, level)
        output = self.predict(network, noisy, coefficients, condition, training)
        return {
            "image": image,
            "level": level,
            "noise": noise,
            "noisy": noisy,
            "output": output,
            "coefficients": coefficients,
        }

    def clean(self, noisy: Tensor, output: Tensor, coefficients: Coefficients) -> Tensor:
        """Returns the estimate of the clean images that a network's output stands for."""
        channels = noisy.shape[-1]
        skip, out = expand(coefficients.skip), expand(coefficients.out)
        return skip * noisy + out * output[..., :channels]

    def estimate(
        self, noisy: Tensor, output: Tensor, coefficients: Coefficients
    ) -> dict[str, Tensor | None]:
        """Returns {"clean", "variance"}: the estimate of the clean images, and the channels of the
        learned variance or None.
        """
        variance = None
        if self.parameterization.learned_variance:
            variance = output[..., noisy.shape[-1] :]
        return {"clean": self.clean(noisy, output, coefficients), "variance": variance}

    def guided_estimate(
        self,
        network: keras.Model,
        noisy: Tensor,
        level: Tensor,
        condition: dict,
        null: dict,
        scale: Tensor | float,
        channels: int,
    ) -> dict[str, Tensor | None]:
        """Returns `estimate` of what the network predicts under classifier-free guidance: it runs
        once on both conditions.

        Args:
            network: the backbone, or one of its averages.
            noisy: x_t.
            level: (B,).
            condition: "label" and "context", each a tensor or None.
            null: the null conditions in their place.
            scale: w.
            channels: how many of the first channels are guided.
        """
        coefficients = self.coefficients(level)
        both = {
            name: None if value is None else ops.concatenate([value, null[name]])
            for name, value in condition.items()
        }
        twice = Coefficients(*(ops.concatenate([each, each]) for each in coefficients))
        output = self.predict(network, ops.concatenate([noisy, noisy]), twice, both)
        output = guide(*ops.split(output, 2), scale, channels)
        return self.estimate(noisy, output, coefficients)

    def losses(
        self,
        image: Tensor,
        level: Tensor,
        noise: Tensor,
        noisy: Tensor,
        output: Tensor,
        coefficients: Coefficients,
    ) -> Tensor:
        """Returns the weighted loss of each sample, (B,)."""
        a, b = self.parameterization.target_coefficients(level, self.schedule)
        target = expand(a) * image + expand(b) * noise
        prediction = output[..., : image.shape[-1]]
        error = ops.mean(ops.square(prediction - target), axis=(1, 2, 3))
        log_snr = self.schedule.log_snr(level)
        loss = self.objective.weighting.output_weight(log_snr, coefficients.out) * error
        if self.parameterization.learned_variance:
            clean, variance = (
                self.clean(noisy, output, coefficients),
                output[..., image.shape[-1] :],
            )
            loss = loss + variational_term(self.schedule, level, image, noisy, clean, variance)
        return loss


def guide(output: Tensor, unconditional: Tensor, scale: Tensor | float, channels: int) -> Tensor:
    """Returns uncond + w (cond - uncond) in the first channels, and cond in the others.

    Args:
        output: (B, H, W, D), the network's output under the condition.
        unconditional: (B, H, W, D), the same under the null condition.
        scale: w.
        channels: how many of the D channels are guided; the variance's are not.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2021.
    """
    change = (scale - 1.0) * (output - unconditional)[..., :channels]
    return output + ops.concatenate([change, ops.zeros_like(output[..., channels:])], axis=-1)
