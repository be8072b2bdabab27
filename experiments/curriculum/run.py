"""Runs the table: each run is trained, then measured, and leaves one line in results.jsonl.

    python experiments/curriculum/data_sets.py --output=evidence/data
    python experiments/curriculum/run.py --output=evidence --jobs=2 --extractor=mobilenet_v2@64
    python experiments/curriculum/report.py --results=evidence/results.jsonl \
        --page=evidence/evidence.md

A repeated command goes on: what is in results.jsonl is done, a run that was interrupted continues
from its newest checkpoint. --list shows the table and what is done, --dry_run the configuration of
each run, opening no data; --size=gpu and --size=paper answer the same for larger networks.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from analysis import read_results
from data_sets import path_of
from settings import METHODS, SIZES, Run, runs

HERE = Path(__file__).parent
EXIT_INTERRUPTED = 75  # as training.EXIT_INTERRUPTED, without Keras in the process that waits
# Which flags of a source each program takes.
TAKES = {"one_run": ("data", "held_out"), "measure": ("reference",)}
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
        options.sources = {kind: by_setting(kind, options) for kind in SOURCES}
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
    """Returns the runs of --size that --only names."""
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
    """Returns a flag's values SETTING=SOURCE, by setting."""
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
        elif setting.preset["data"].endswith("PATH") and name not in options.sources["data"]:
            raise ValueError(
                f"{name} needs its images: --data={name}={setting.preset['data']}. Received: none"
            )


def dry_run(table: list[Run], options: argparse.Namespace) -> None:
    """Prints the configuration of each run as a line of JSON."""
    from one_run import configuration

    for run in table:
        data, held_out = (options.sources[kind].get(run.setting) for kind in TAKES["one_run"])
        clusters = "quantile" if METHODS[run.method].measured_clusters else None
        folder = options.output or Path("OUTPUT")
        config = configuration(run, options.size, folder, data, held_out, clusters)
        if clusters:
            config["curriculum"] |= {"clusters": "those of a study", "edges": None}
        if METHODS[run.method].unordered:
            config["curriculum"] = {"kind": "unordered", "of": METHODS[run.method].unordered}
        print(json.dumps({"run": run.name, **config}, allow_nan=False))


def finished(output: Path, size: str) -> set[str]:
    """Returns the names of the runs that results.jsonl holds."""
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


def work(pending: list[str], options: argparse.Namespace) -> int:
    """Trains and measures runs, some at a time, in order; returns an exit code."""
    end = time.monotonic() + 60.0 * (math.inf if options.minutes is None else options.minutes)
    cores = _cores(options.jobs)
    busy: dict[int, tuple[str, str, subprocess.Popen, float]] = {}
    failed = []
    queue = [(name, "one_run") for name in pending]
    try:
        while queue or busy:
            for slot in range(options.jobs):
                if slot in busy and busy[slot][2].poll() is not None:
                    name, program, process, began = busy.pop(slot)
                    seconds = time.monotonic() - began
                    print(
                        f"{name}: {program} ended with {process.returncode} in {seconds:.0f} s",
                        flush=True,
                    )
                    if process.returncode:
                        failed.append(name)
                    elif program == "one_run":
                        queue.insert(0, (name, "measure"))
                if slot not in busy and queue:
                    name, program = queue.pop(0)
                    process = _start(name, program, options, cores[slot])
                    busy[slot] = (name, program, process, time.monotonic())
            if time.monotonic() > end:
                print("out of time; the same command goes on", flush=True)
                return EXIT_INTERRUPTED
            time.sleep(0.5)
    finally:
        for *_, process, _ in busy.values():
            process.send_signal(signal.SIGTERM)
        for *_, process, _ in busy.values():
            process.wait()
    if failed:
        print(f"failed: {', '.join(failed)}; see their .log files", flush=True)
    return 1 if failed else 0


def _start(name: str, program: str, options: argparse.Namespace, core: set) -> subprocess.Popen:
    """Starts a program on a run, with its output in a file beside the run's folder."""
    log = options.output / options.size / "logs" / f"{name.replace('/', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, HERE / f"{program}.py", f"--run={name}", f"--size={options.size}"]
    command.append(f"--output={options.output}")
    setting = name.split("/")[0]
    sources = ((kind, options.sources[kind].get(setting)) for kind in TAKES[program])
    command += [f"--{kind}={value}" for kind, value in sources if value]
    backend = options.train_backend
    if program == "measure":
        command.append(f"--extractor={options.extractor}")
        backend = options.measure_backend
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "JAX_COMPILATION_CACHE_DIR": str(options.output / "jax_cache"),
    }
    if core:
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
    with open(log, "a") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=file,
            stderr=file,
            preexec_fn=(lambda: os.sched_setaffinity(0, core)) if core else None,
        )


def _cores(jobs: int) -> list[set[int]]:
    """Returns the core of each job, empty if a single job may have them all."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [set()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [{cores[index % len(cores)]} for index in range(jobs)]


if __name__ == "__main__":
    main()
