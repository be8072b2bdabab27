"""The table of runs: each setting's methods, seed by seed, after those that tune its rate."""

import dataclasses

from settings import SIZES, Setting

__all__ = ["SIZES", "Run", "Setting", "find_run", "runs"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One cell of the table."""

    setting: str
    method: str
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.method}/lr{self.learning_rate:g}/seed{self.seed}"


def runs(size: str) -> list[Run]:
    """Returns all runs of a size: those that tune the rate first, then seed by seed."""
    table = []
    for name, setting in SIZES[size].items():
        rate = setting.preset["training"]["learning_rate"]
        first = next(iter(setting.methods))
        table += [Run(name, first, 0, value) for value in setting.learning_rates]
        for seed in range(max(setting.methods.values())):
            table += [Run(name, m, seed, rate) for m, n in setting.methods.items() if seed < n]
    return list(dict.fromkeys(table))


def find_run(size: str, name: str) -> Run:
    """Returns the run of a name.

    Raises:
        ValueError: if the table has none.
    """
    for run in runs(size):
        if run.name == name:
            return run
    raise ValueError(
        f"A run must be one of the table's, which run.py --size={size} --list shows. "
        f"Received: run={name!r}"
    )
