"""The table of runs: each setting's methods, seed by seed, after those that tune its rate."""

import argparse
import dataclasses
from pathlib import Path

from settings import SIZES, Setting

__all__ = ["SIZES", "Run", "Setting", "find_run", "run_parser", "runs", "workdir_of"]


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
        table += [Run(name, "curriculum", 0, value) for value in setting.curriculum_rates]
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


def workdir_of(run: Run, size: str, output: Path) -> Path:
    """Returns the folder of a run within that of all runs."""
    return output / size / "runs" / run.name


def run_parser(words: str) -> argparse.ArgumentParser:
    """Returns the flags of a program that works on one run.

    Args:
        words: what the program does, in the first line.
    """
    parser = argparse.ArgumentParser(description=words.split("\n")[0])
    parser.add_argument("--run", required=True, help="name of the run; see run.py --list")
    parser.add_argument("--size", default="cpu", choices=SIZES)
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    return parser
