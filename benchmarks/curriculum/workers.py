"""Works off runs, some at a time, each by two programs: one trains it, the other measures it."""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
EXIT_INTERRUPTED = 75  # as training.EXIT_INTERRUPTED, without Keras in the process that waits
# Which sources, given by setting, each program takes.
GIVEN = {"one_run": ("data", "held_out"), "measure": ("reference",)}


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
    given = ((kind, options.given[kind].get(setting)) for kind in GIVEN[program])
    command += [f"--{kind}={value}" for kind, value in given if value]
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
