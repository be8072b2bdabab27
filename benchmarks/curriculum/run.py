"""Runs the table: each run is trained, then measured, and leaves one line in results.jsonl.

    python benchmarks/curriculum/data_sets.py --output=evidence/data
    python benchmarks/curriculum/run.py --output=evidence --jobs=2 --extractor=mobilenet_v2@64
    python benchmarks/curriculum/report.py --results=evidence/results.jsonl \
        --page=evidence/evidence.md

A repeated command goes on: what is in results.jsonl is done, a run that was interrupted continues
from its newest checkpoint. --list shows the table and what is done, --dry_run the configuration of
each run, opening no data; --size=gpu and --size=paper ask the same for larger networks.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from data_sets import path_of
from records import read_results
from table import SIZES, Run, runs
from workers import EXIT_INTERRUPTED, GIVEN, work

SOURCES = {
    "data": "training images",
    "held_out": "images held out, for the validation loss",
    "reference": "images that samples are compared with, else the training images,",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder of data, runs and results")
    parser.add_argument("--size", default="cpu", help="smoke, cpu, gpu or paper")
    parser.add_argument("--only", default="", help="runs whose name begins so, several by commas")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each on a core of its own; 1 on a GPU"
    )
    parser.add_argument("--minutes", type=float, help="interrupt what runs after so long")
    parser.add_argument(
        "--train_backend",
        default=os.environ.get("KERAS_BACKEND", "jax"),
        help="that trains fastest here; KERAS_BACKEND, or else jax",
    )
    parser.add_argument("--measure_backend", default="tensorflow", help="that sees images fastest")
    parser.add_argument("--extractor", default="mobilenet_v2", help="as for apps/evaluate.py")
    for kind, words in SOURCES.items():
        help_ = f"SETTING=SOURCE: {words} where the table names none; may be repeated"
        parser.add_argument(f"--{kind}", action="append", default=[], help=help_)
    parser.add_argument("--list", action="store_true", help="show the table and stop")
    parser.add_argument("--dry_run", action="store_true", help="show all configurations and stop")
    options = parser.parse_args()
    try:
        table = select(options)
        options.given = {kind: by_setting(kind, options) for kind in SOURCES}
        if options.dry_run:
            dry_run(table, options)
            return
        if options.output is None:
            raise ValueError("--output must name the folder of data, runs and results.")
        options.output = options.output.resolve()
        done = finished(options.output, options.size)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for run in table:
            print(f"{'done' if run.name in done else '    '}  {run.name}")
        return
    pending = [run for run in table if run.name not in done]
    try:
        check_data({run.setting for run in pending}, options)
    except ValueError as error:
        parser.error(str(error))
    print(f"{len(table)} runs, {len(table) - len(pending)} of them done", flush=True)
    # So that what runs is interrupted as well, and keeps its state.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    sys.exit(work([run.name for run in pending], options))


def select(options: argparse.Namespace) -> list[Run]:
    """Returns the runs that are asked for.

    Raises:
        ValueError: if there are none, or a number is out of its range.
    """
    if options.size not in SIZES:
        raise ValueError(f"--size must be one of {', '.join(SIZES)}. Received: {options.size!r}")
    if options.jobs < 1 or (options.minutes is not None and not options.minutes > 0.0):
        raise ValueError(
            "--jobs must be at least 1, and --minutes above 0. "
            f"Received: jobs={options.jobs}, minutes={options.minutes}"
        )
    table, prefixes = runs(options.size), options.only.split(",")
    for prefix in prefixes:
        if not any(run.name.startswith(prefix) for run in table) or (not prefix and prefixes[1:]):
            raise ValueError(
                f"Each of --only must begin the name of a run, see --list. Received: {prefix!r}"
            )
    return [run for run in table if run.name.startswith(tuple(prefixes))]


def by_setting(kind: str, options: argparse.Namespace) -> dict[str, str]:
    """Returns what was given as SETTING=SOURCE, by setting.

    Raises:
        ValueError: if that is not what was given, or the table names another source.
    """
    settings, values = SIZES[options.size], getattr(options, kind)
    for value in values:
        name, equals, _ = value.partition("=")
        if not equals or name not in settings:
            raise ValueError(
                f"--{kind} must be SETTING=SOURCE, with a setting of {', '.join(settings)}. "
                f"Received: {value!r}"
            )
        if settings[name].data is not None:
            raise ValueError(f"{name} has images of its own. Received: --{kind}={value}")
    return dict(value.split("=", 1) for value in values)


def check_data(settings: set[str], options: argparse.Namespace) -> None:
    """Raises a ValueError, before anything starts, if a setting's images are missing."""
    for name in sorted(settings):
        setting = SIZES[options.size][name]
        if setting.data is not None:
            folder = options.output / "data"
            if not all(path_of(folder, setting.data, p).is_file() for p in ("train", "held_out")):
                raise ValueError(
                    f"{name} needs its images: run data_sets.py --output={folder} "
                    f"--names={setting.data} first. Received: no {setting.data}_*.npz there"
                )
        elif setting.preset["data"].endswith("PATH") and name not in options.given["data"]:
            raise ValueError(
                f"{name} needs its images: --data={name}={setting.preset['data']}. Received: none"
            )


def dry_run(table: list[Run], options: argparse.Namespace) -> None:
    """Prints the configuration of each run as a line of JSON."""
    from methods import METHODS
    from one_run import configuration

    for run in table:
        data, held_out = (options.given[kind].get(run.setting) for kind in GIVEN["one_run"])
        clusters = "quantile" if METHODS[run.method].measured_clusters else None
        folder = options.output or Path("OUTPUT")
        config = configuration(run, options.size, folder, data, held_out, clusters)
        if clusters:
            config["curriculum"] |= {"clusters": "those of a study", "edges": None}
        if METHODS[run.method].unordered:
            config["curriculum"] = {"kind": "unordered", "of": METHODS[run.method].unordered}
        print(json.dumps({"run": run.name, **config}, allow_nan=False))


def finished(output: Path, size: str) -> set[str]:
    """Returns the names of the runs that results.jsonl holds.

    Raises:
        ValueError: if a line is damaged, or of a run with another budget than the table's.
    """
    path = output / "results.jsonl"
    records = read_results(path, size) if path.is_file() else []
    for record in records:
        setting = SIZES[size].get(record["setting"])
        if setting is None:
            continue
        wanted = {
            "steps": setting.preset["training"]["steps"],
            "batch_size": setting.preset["training"]["batch_size"],
            "curve_samples": setting.curve_samples,
            "final_samples": setting.final_samples,
        }
        found = {name: record[name] for name in wanted}
        if found != wanted:
            raise ValueError(
                f"{path} holds a run that the table has with another budget, {wanted}: give "
                f"another --output, or remove the line. Received: {record['run']} with {found}"
            )
    return {record["run"] for record in records}


if __name__ == "__main__":
    main()
