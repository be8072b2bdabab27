"""The base of all samplers: a table of coefficients, and a step that uses one row of it.

Whatever depends on the schedule is computed once, on the host, in float64, from alpha and sigma at
the levels visited. The step itself is a few operations on the numbers of its row, the same in a
Python loop and in an exported graph.
"""

import abc
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from keras import ops

from keras_cdiff.common.checks import is_integer
from keras_cdiff.schedules import DiscreteSchedule, Schedule

TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
CONTINUOUS_SPACINGS = ("linspace", "linear", "geometric", "rho")
SPACINGS = tuple(dict.fromkeys(TIMESTEP_SPACINGS + CONTINUOUS_SPACINGS))

Denoise = Callable[[object, object], dict]  # (x, level) -> {"clean", "variance"}


class Sampler(abc.ABC):
    """Turns noise into images, step by step down the noise levels.

    A subclass gives `coefficients` and `step`. It sees the schedule through alpha and sigma alone,
    and the network through its estimate of the clean image, so it works with every schedule and
    parameterization.

    Args:
        num_steps: number of steps, >= 1; with discrete timesteps and linspace spacing also a
            sequence of counts, one a section of the timesteps, noisiest section last.
        spacing: which levels are visited: of discrete timesteps "linspace", "leading" or "trailing"
            (`respaced_timesteps`); of continuous schedules "linear", "geometric", "rho", or
            "linspace" for what fits the schedule (`noise_levels`); or the levels themselves,
            descending, on any schedule: `num_steps` is then their number.
        rho: exponent of the "rho" grid of levels, > 0.
        clip: whether each estimate of the clean image is clamped to [-1, 1]. For images in pixels,
            not for latents.
    """

    def __init__(
        self,
        num_steps: int | Sequence[int],
        spacing: str | Sequence[float] = "linspace",
        rho: float = 7.0,
        clip: bool = False,
    ):
        if isinstance(spacing, str):
            if spacing not in SPACINGS:
                raise ValueError(
                    f"`spacing` must be one of {SPACINGS} or a sequence of levels. "
                    f"Received: spacing={spacing!r}"
                )
        else:
            spacing = [float(level) for level in spacing]
            num_steps = len(spacing)
        counts = num_steps if isinstance(num_steps, Sequence) else [num_steps]
        if not counts or not all(is_integer(n) and n >= 1 for n in counts):
            raise ValueError(
                "`num_steps` must be an integer of at least 1, or a sequence of such integers. "
                f"Received: num_steps={num_steps!r}"
            )
        if not 0.0 < rho < math.inf:
            raise ValueError(f"`rho` must be positive and finite. Received: rho={rho}")
        counts = [int(count) for count in counts]
        self.num_steps = counts[0] if len(counts) == 1 else counts
        self.spacing = spacing
        self.rho = float(rho)
        self.clip = bool(clip)

    @property
    def needs_noise(self) -> bool:
        """Whether each step takes fresh noise."""
        return False

    @abc.abstractmethod
    def coefficients(
        self, alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the columns of the table that the step needs.

        Args:
            alpha: (n,) float64, the signal's scale before each step.
            sigma: (n,) the noise's scale before each step.
            next_alpha: (n,) the signal's scale after each step, 1 after the last.
            next_sigma: (n,) the noise's scale after each step, 0 after the last.
        """

    @abc.abstractmethod
    def step(
        self,
        denoise: Denoise,
        x: object,
        clean: object,
        row: dict[str, object],
        noise: object = None,
        last: bool = False,
    ) -> tuple[object, object]:
        """Takes `x` from the level of `row` to the next one.

        Args:
            denoise: the network, (x, level) -> {"clean", "variance"} with a scalar level.
            x: images at this level, (B, H, W, C).
            clean: the estimate of the clean image that the step before returned, zeros before the
                first (for multistep solvers).
            row: the numbers of this step, one a column of `table`: floats or scalar tensors.
            noise: unit normal noise like `x`, if `needs_noise`.
            last: whether the step ends at the clean image.

        Returns:
            The images at the next level, and the estimate of the clean image they follow from.
        """

    def check(self, learned_variance: bool) -> None:  # noqa: B027 (most need nothing)
        """Raises a ValueError if the sampler needs a variance that the model does not predict."""

    def levels(self, schedule: Schedule) -> np.ndarray:
        """Returns the noise levels visited, float64 (n,), descending."""
        return noise_levels(schedule, self.num_steps, self.spacing, self.rho)

    def initial_scale(self, schedule: Schedule) -> float:
        """Returns the sigma by which unit normal noise is multiplied to start from."""
        return float(schedule.alpha_sigma(self.levels(schedule)[:1])[1][0])

    def table(self, schedule: Schedule) -> dict[str, np.ndarray]:
        """Returns the coefficients of all steps: columns of float64 (n,), row i for step i.

        "level" is where the network is called, "next_level" where the step ends. The last step ends
        at the clean image (alpha = 1, sigma = 0), which is no level of the network, and repeats its
        own level.
        """
        levels = self.levels(schedule)
        alpha, sigma = schedule.alpha_sigma(levels)
        next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
        return {
            "level": levels,
            "next_level": np.append(levels[1:], levels[-1]),
            **self.coefficients(alpha, sigma, next_alpha, next_sigma),
        }

    def trajectory(
        self,
        denoise: Denoise,
        x: object,
        schedule: Schedule,
        draw_noise: Callable[[], object] | None = None,
    ) -> Iterator[tuple[object, object]]:
        """Yields the images and the estimate of the clean images after every step.

        Args:
            denoise: as for `step`.
            x: images at the first level, (B, H, W, C): `initial_scale` times unit normal noise.
            schedule: the schedule of the model.
            draw_noise: called once a step for unit normal noise like `x`, if `needs_noise`.
        """
        table = self.table(schedule)
        num_steps = len(table["level"])
        x = ops.convert_to_tensor(x, dtype="float32")
        clean = ops.zeros_like(x)
        for i in range(num_steps):
            row = {name: float(column[i]) for name, column in table.items()}
            noise = None
            if self.needs_noise:
                noise = ops.convert_to_tensor(draw_noise(), dtype="float32")
            x, clean = self.step(denoise, x, clean, row, noise, last=i == num_steps - 1)
            yield x, clean

    def clipped(self, clean: object) -> object:
        """Returns the clean estimate as the step uses it."""
        return ops.clip(clean, -1.0, 1.0) if self.clip else clean

    def get_config(self) -> dict:
        return {
            "num_steps": self.num_steps,
            "spacing": self.spacing,
            "rho": self.rho,
            "clip": self.clip,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Sampler":
        return cls(**config)


def forward_variance(
    alpha: np.ndarray, sigma: np.ndarray, next_alpha: np.ndarray, next_sigma: np.ndarray
) -> np.ndarray:
    """Returns the share of sigma^2 that is added on the way up from the next level to this one.

    sigma_{t|s}^2 / sigma_t^2 = 1 - SNR_t / SNR_s; for timesteps sigma_{t|s}^2 is the respaced beta
    (Kingma et al., "Variational Diffusion Models", 2021, appendix A).
    """
    return 1.0 - np.square(alpha * next_sigma / (next_alpha * sigma))


def noise_levels(
    schedule: Schedule,
    num_steps: int | Sequence[int],
    spacing: str | Sequence[float] = "linspace",
    rho: float = 7.0,
) -> np.ndarray:
    """Returns the noise levels at which a sampler calls the network, from the noisiest down.

    Discrete schedules are respaced (`respaced_timesteps`). Levels of continuous ones run from the
    schedule's highest, i = 0, to its lowest, i = n - 1:

    - "linear": evenly. If the lowest level holds no noise, n equal steps end there.
    - "geometric": by a constant factor, high (low / high)^(i / (n - 1)), as for `VE` in EDM.
    - "rho": EDM's grid of the ratio r = sigma / alpha,

          r_i = (r_high^(1/rho) + i / (n - 1) (r_low^(1/rho) - r_high^(1/rho)))^rho.

    - "linspace": "rho" where the highest level holds signal and the lowest noise, such as in `EDM`,
      `VP` and `VE`; otherwise, such as in `RectifiedFlow`, "linear".

    Args:
        schedule: the schedule of the model.
        num_steps: number of levels n; for discrete schedules also one count a section.
        spacing: "linspace", "leading" or "trailing" for discrete schedules; "linspace", "linear",
            "geometric" or "rho" for continuous ones; or the levels themselves, descending.
        rho: exponent of the grid, > 0; larger puts more steps at little noise.

    Returns:
        float64 array (n,), descending.

    Raises:
        ValueError: if the schedule has no such levels.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, equation 5 and table 1.
    """
    if not isinstance(spacing, str):
        return _explicit_levels(schedule, spacing)
    if isinstance(schedule, DiscreteSchedule):
        return respaced_timesteps(schedule.num_timesteps, num_steps, spacing)[::-1].astype(
            "float64"
        )
    if spacing not in CONTINUOUS_SPACINGS or not isinstance(num_steps, int):
        raise ValueError(
            f"{type(schedule).__name__} has no discrete timesteps: give `num_steps` as one "
            f"integer, and `spacing` as one of {CONTINUOUS_SPACINGS} or list the levels. "
            f"Received: num_steps={num_steps}, spacing={spacing!r}"
        )
    return _continuous_levels(schedule, num_steps, spacing, rho)


def _continuous_levels(schedule: Schedule, num_steps: int, spacing: str, rho: float) -> np.ndarray:
    high, low = ends = np.array(schedule.bounds)[::-1]
    alpha, sigma = schedule.alpha_sigma(ends)
    has_noise, has_signal = sigma[1] > 0.0, alpha[0] > 0.0
    if spacing == "linspace":
        spacing = "rho" if has_noise and has_signal else "linear"
    if (spacing == "rho" and not (has_noise and has_signal)) or (
        spacing == "geometric" and low <= 0.0
    ):
        raise ValueError(
            f'spacing="{spacing}" cannot span the levels of {type(schedule).__name__}, '
            f'{low} to {high}: use spacing="linear", or list the levels. '
            f"Received: spacing={spacing!r}"
        )
    if spacing == "linear":
        if has_noise:
            return np.linspace(high, low, num_steps)
        return np.linspace(high, low, num_steps + 1)[:-1]
    if spacing == "geometric":
        levels = high * (low / high) ** np.linspace(0.0, 1.0, num_steps)
    else:
        start, end = (sigma / alpha) ** (1.0 / rho)
        levels = schedule.level_at(
            (start + np.linspace(0.0, 1.0, num_steps) * (end - start)) ** rho
        )
    levels[-1], levels[0] = low, high  # exactly; a single level is the highest
    return levels


def respaced_timesteps(
    num_timesteps: int, num_steps: int | Sequence[int], spacing: str = "linspace"
) -> np.ndarray:
    """Returns `num_steps` of the timesteps 0..T-1, ascending.

    - "linspace": evenly from 0 to T - 1, both included. Several counts split the range into as many
      equal sections, each with its own count (Nichol and Dhariwal, "Improved DDPM", 2021, section
      4; the spacing of ADM and DiT).
    - "leading": multiples of T // n from 0 (the default of diffusers; 10 of 1000 end at 900).
    - "trailing": steps of T / n down from T - 1 (Lin et al., "Common Diffusion Noise Schedules and
      Sample Steps are Flawed", 2023, table 2).

    A single step starts at T - 1, the noisiest timestep.

    Args:
        num_timesteps: T.
        num_steps: number of timesteps, 1..T; for "linspace" also a sequence of counts.
        spacing: "linspace", "leading" or "trailing".

    Returns:
        int64 array, ascending, no timestep twice.

    Raises:
        ValueError: if there are fewer timesteps than steps, or the spacing is unknown.
    """
    counts = [num_steps] if isinstance(num_steps, int) else list(num_steps)
    if spacing not in TIMESTEP_SPACINGS:
        raise ValueError(
            f"`spacing` of timesteps must be one of {TIMESTEP_SPACINGS}. "
            f"Received: spacing={spacing!r}"
        )
    if spacing != "linspace" and len(counts) > 1:
        raise ValueError(
            'Counts by section need spacing="linspace". '
            f"Received: num_steps={num_steps}, spacing={spacing!r}"
        )
    sizes = [len(part) for part in np.array_split(np.empty(num_timesteps), len(counts))]
    if any(count > size for count, size in zip(counts, sizes, strict=True)):
        raise ValueError(
            f"{num_timesteps} timesteps in {len(counts)} section(s) have room for at most {sizes} "
            f"steps. Received: num_steps={num_steps}"
        )
    if counts == [1]:
        return np.array([num_timesteps - 1])
    if spacing == "leading":
        return np.arange(num_steps) * (num_timesteps // num_steps)
    if spacing == "trailing":
        steps_down = np.arange(num_steps) * (num_timesteps / num_steps)
        return np.rint(num_timesteps - steps_down).astype("int64")[::-1] - 1
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate(
        [
            start + _evenly_spaced(size, count)
            for start, size, count in zip(starts, sizes, counts, strict=True)
        ]
    )


def _evenly_spaced(size: int, count: int) -> np.ndarray:
    """Returns `count` integers spread evenly over 0..size-1."""
    if count == 1:
        return np.array([0])
    # Strides are summed, not multiplied, and halves go to the even neighbour, as in ADM and DiT.
    stride = (size - 1) / (count - 1)
    return np.rint(np.cumsum([0.0] + [stride] * (count - 1))).astype("int64")


def _explicit_levels(schedule: Schedule, levels: Sequence[float]) -> np.ndarray:
    levels = np.asarray(levels, dtype="float64")
    low, high = schedule.bounds
    discrete = isinstance(schedule, DiscreteSchedule)
    inside = np.all((levels >= low) & ((levels < high) if discrete else (levels <= high)))
    noisy = inside and np.all(schedule.alpha_sigma(levels)[1] > 0.0)
    if not noisy or np.any(np.diff(levels) >= 0.0) or (discrete and np.any(levels % 1.0)):
        kind = f"integers in 0..{high - 1:.0f}" if discrete else f"numbers in [{low}, {high}]"
        raise ValueError(
            f"Levels of {type(schedule).__name__} must be descending {kind}, and hold noise. "
            f"Received: spacing={levels.tolist()}"
        )
    return levels
