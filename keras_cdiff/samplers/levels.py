"""Which noise levels a sampler visits."""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.schedules import DiscreteSchedule, Schedule

TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
CONTINUOUS_SPACINGS = ("linspace", "linear", "geometric", "rho")
SPACINGS = tuple(dict.fromkeys(TIMESTEP_SPACINGS + CONTINUOUS_SPACINGS))


def noise_levels(
    schedule: Schedule,
    num_steps: int | Sequence[int],
    spacing: str | Sequence[float] = "linspace",
    rho: float = 7.0,
) -> np.ndarray:
    """Returns the noise levels at which a sampler asks the network, from the noisiest down.

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
            start + _spread(size, count)
            for start, size, count in zip(starts, sizes, counts, strict=True)
        ]
    )


def _spread(size: int, count: int) -> np.ndarray:
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
