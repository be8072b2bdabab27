"""Which noise levels a sampler visits."""

from collections.abc import Sequence

import numpy as np

from keras_cdiff.schedules import DiscreteSchedule, Schedule

SPACINGS = ("linspace", "leading", "trailing")


def noise_levels(
    schedule: Schedule,
    num_steps: int | Sequence[int],
    spacing: str | Sequence[float] = "linspace",
    rho: float = 7.0,
) -> np.ndarray:
    """Returns the noise levels at which a sampler asks the network, from the noisiest down.

    Discrete schedules are respaced (`respaced_timesteps`). Continuous ones whose lowest level still
    holds noise follow EDM,

        level_i = (high^(1/rho) + i / (n - 1) (low^(1/rho) - high^(1/rho)))^rho,

    and the others take n equal steps down to the clean image.

    Args:
        schedule: the schedule of the model.
        num_steps: number of levels n; for discrete schedules also one count a section.
        spacing: "linspace", "leading" or "trailing" (the last two for discrete schedules only), or
            the levels themselves, descending.
        rho: exponent of the continuous grid, > 0; larger puts more steps at little noise.

    Returns:
        float64 array (n,), descending.

    Raises:
        ValueError: if the schedule has no such levels.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, equation 5.
    """
    if not isinstance(spacing, str):
        return _explicit_levels(schedule, spacing)
    if isinstance(schedule, DiscreteSchedule):
        return respaced_timesteps(schedule.num_timesteps, num_steps, spacing)[::-1].astype(
            "float64"
        )
    if spacing != "linspace" or not isinstance(num_steps, int):
        raise ValueError(
            f"{type(schedule).__name__} has no discrete timesteps: give `num_steps` as one "
            'integer, and leave `spacing` at "linspace" or list the levels. '
            f"Received: num_steps={num_steps}, spacing={spacing!r}"
        )
    low, high = schedule.bounds
    if schedule.alpha_sigma(np.array(low))[1] == 0.0:
        return np.linspace(high, low, num_steps + 1)[:-1]
    ends = np.array([high, low]) ** (1.0 / rho)
    levels = (ends[0] + np.linspace(0.0, 1.0, num_steps) * (ends[1] - ends[0])) ** rho
    return np.clip(levels, low, high)


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
    if spacing not in SPACINGS:
        raise ValueError(f"`spacing` must be one of {SPACINGS}. Received: spacing={spacing!r}")
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
    if not inside or np.any(np.diff(levels) >= 0.0) or (discrete and np.any(levels % 1.0)):
        kind = f"integers in 0..{high - 1:.0f}" if discrete else f"numbers in [{low}, {high}]"
        raise ValueError(
            f"Levels of {type(schedule).__name__} must be descending {kind}. "
            f"Received: spacing={levels.tolist()}"
        )
    return levels
