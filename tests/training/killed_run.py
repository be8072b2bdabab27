"""A training run to be killed: apps/train.py with a network small enough for tests.

KERAS_BACKEND=jax PYTHONPATH=tests python tests/training/killed_run.py --workdir=DIR [FLAGS]

FLAGS are those of apps/train.py.

With --restore=WORKDIR alone it trains nothing: it gives a model the state of the newest checkpoint,
which may be that of another backend, and prints what of the state differs from it.

tests/torture.py and test_survival.py also load this file as a module, for what they share: how such
a process is started, watched and killed, and how two finished runs are compared.
"""

import contextlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import h5py
import keras
import numpy as np

from keras_cdiff import training
from keras_cdiff.presets import PRESETS, preset
from keras_cdiff.training.building import build_curriculum, build_model, build_optimizer
from keras_cdiff.training.checkpoint import CheckpointFolder, read_checkpoint

ROOT = Path(__file__).parents[2]
PRESET = "dit_to_be_killed"
INSIDE, EARLY, BETWEEN = "inside a save", "before the first record", "between two records"
TIMES = {"seconds_per_step", "time"}  # the only entries of records that may differ
POLL = 0.0005  # seconds


def small_preset() -> dict:
    """Returns a preset with a tiny network and four stages within about a hundred steps."""
    small = preset("dit_emoji16")
    small["model"]["backbone"].update(image_size=8, width=16, depth=1, num_heads=2)
    small["training"].update(batch_size=4, warmup_steps=20, weight_decay=0.01)
    small["curriculum"].update(num_clusters=4, patience=12)
    small["sampling"]["num_steps"] = 2
    return small


def variables_for(backend: str) -> dict[str, str]:
    """Returns the environment of a process that uses this package on a backend."""
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


class Life:
    """A process that begins or takes up a run, as a context manager that ends it in any case.

    Args:
        workdir: the run's folder.
        flags: other flags of apps/train.py.
        backend: "tensorflow", "jax" or "torch".
        output: file that what it prints is appended to.
        flush_seconds: what each flush to the disk takes longer, so that the process can be killed
            inside a save.
        environment: variables to set.
    """

    def __init__(
        self,
        workdir: Path,
        flags: list[str],
        backend: str,
        output: Path,
        flush_seconds: float = 0.0,
        environment: dict[str, str] | None = None,
    ):
        self.workdir, self.output, self.folder = workdir, output, workdir / "checkpoints"
        self.records, self.checkpoints = self._records(), self._checkpoints()
        variables = {
            **variables_for(backend),
            "KILLED_RUN_FLUSH_SECONDS": str(flush_seconds),
            **(environment or {}),
        }
        command = [__file__, f"--workdir={workdir}", *flags]
        self.began = time.monotonic()
        if backend == keras.backend.backend():
            self.process = forked.Program(command, output, environment=variables)
            return
        with open(output, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command], env=variables, stdout=file, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 1800) -> bool:
        """Returns whether the condition came true before the process ended."""
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() - self.began > seconds:
                raise TimeoutError(f"nothing happened in {seconds} s; see {self.output}")
            time.sleep(POLL)
        return True

    def advanced(self, times: int) -> bool:
        """Whether the process has written so many records and checkpoints."""
        new_checkpoints = len(self._checkpoints() - self.checkpoints)
        return self._records() - self.records + new_checkpoints >= times

    def saving(self) -> bool:
        """Whether the process is writing a checkpoint, or died while it did."""
        return any(self.folder.glob(f"writing-{self.process.pid}-step_*.zip"))

    def kill(self) -> str:
        """Kills the process, by SIGKILL, and returns what it was doing; "" if it had ended."""
        self.process.kill()
        if self.process.wait() != -signal.SIGKILL:
            return ""
        if self.saving():
            return INSIDE
        return BETWEEN if self.advanced(1) else EARLY

    def end(self, expected: int = 0) -> None:
        """Waits for the process to end by itself.

        Raises:
            RuntimeError: if its exit code is another than expected, with the end of its output.
        """
        code = self.process.wait(timeout=1800)
        if code != expected:
            output = self.output.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"the run left with code {code}, not {expected}:\n{output}")

    def _records(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.workdir / "log.jsonl").read_bytes().count(b"\n")
        return 0

    def _checkpoints(self) -> set[int]:
        return set(CheckpointFolder(self.folder).steps())


def kill_inside_a_save(life: Life, chance: random.Random, most: int = 10) -> str:
    """Kills a process at a random moment of one of its next saves, and returns where it was.

    Args:
        life: the process.
        chance: decides on the moment.
        most: how many records and checkpoints may come first.
    """
    before = chance.randrange(most)
    life.wait_for(lambda: life.advanced(before))
    while life.wait_for(life.saving):
        time.sleep(chance.uniform(0, 0.02))
        if life.saving():  # or else the save was over: the next one
            break
    return life.kill()


def kill_at_a_random_moment(life: Life, chance: random.Random, most: int = 15) -> str:
    """Kills a process at a random moment after it has advanced, and returns where it was."""
    before = chance.randint(1, most)
    life.wait_for(lambda: life.advanced(before))
    time.sleep(chance.uniform(0, 0.05))
    return life.kill()


def newest_checkpoint(workdir: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Returns step and arrays of the newest checkpoint; all must be whole, whatever was killed.

    Raises:
        DamagedCheckpoint: if one is not.
    """
    folder = CheckpointFolder(workdir / "checkpoints")
    step, arrays = 0, {}
    for step in folder.steps():
        arrays, _ = read_checkpoint(folder.file(step))
    return step, arrays


def differences(expected: Path, got: Path) -> Iterator[str]:
    """Yields what differs between the workdirs of two finished runs, bit by bit.

    Compared are configuration, logs but for their times, grids of samples, weights, and the newest
    checkpoint.
    """
    for name in ("config.json", "log.jsonl", "evaluations.jsonl", "validation.jsonl"):
        a, b = _lines(expected / name), _lines(got / name)
        if len(a) != len(b):
            yield f"{name}: {len(a)} lines and {len(b)}"
        for number, (line_a, line_b) in enumerate(zip(a, b, strict=False), start=1):
            if line_a != line_b:
                yield f"{name}, line {number}: {line_a} and {line_b}"
    grids_a, grids_b = (
        {path.name: path.read_bytes() for path in (workdir / "samples").iterdir()}
        for workdir in (expected, got)
    )
    for name in sorted({*grids_a, *grids_b}):
        if grids_a.get(name) != grids_b.get(name):
            yield f"samples/{name}"
    for which in ("raw", "ema"):
        name = f"weights/{which}.weights.h5"
        yield from _arrays_differ(name, _weights(expected / name), _weights(got / name))
    (step_a, arrays_a), (step_b, arrays_b) = newest_checkpoint(expected), newest_checkpoint(got)
    if step_a != step_b:
        yield f"the newest checkpoint is of step {step_a} and of step {step_b}"
    yield from _arrays_differ(f"checkpoint of step {step_a}", arrays_a, arrays_b)


def differences_after_restoring(workdir: Path, backend: str) -> list[str]:
    """Returns what of a run's newest checkpoint another process, on a backend, does not restore."""
    command = [sys.executable, __file__, f"--restore={workdir}"]
    process = subprocess.run(command, env=variables_for(backend), capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr[-3000:])
    return json.loads(process.stdout.splitlines()[-1])


def _restore(workdir: Path) -> list[str]:
    config = training.Workdir(workdir).config()
    model = build_model(config)
    model.compile(build_optimizer(config))
    model.optimizer.build(model.trainable_variables)
    build_curriculum(config).set_model(model)
    step, arrays = newest_checkpoint(workdir)
    training.restore(model, arrays)
    restored = training.snapshot(model)
    faults = [
        name
        for name in {*arrays, *restored}
        if not (
            name in arrays and name in restored and np.array_equal(arrays[name], restored[name])
        )
    ]
    iteration = int(keras.ops.convert_to_numpy(model.iteration))
    return sorted(faults) + [f"iteration {iteration}"] * (iteration != step)


def _lines(path: Path) -> list[object]:
    """The lines of a file of JSON lines, or one JSON document, without times."""
    if not path.exists():
        return []
    text = path.read_text()
    documents = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(document, object_hook=_without_times) for document in documents]


def _without_times(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in TIMES}


def _weights(path: Path) -> dict[str, np.ndarray]:
    items = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: items.update({name: item}))
        return {name: item[()] for name, item in items.items() if isinstance(item, h5py.Dataset)}


def _arrays_differ(where: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> Iterator[str]:
    for name in sorted({*a, *b}):
        x, y = a.get(name), b.get(name)
        if x is None or y is None:
            yield f"{where}: only one has {name}"
        elif (x.dtype, x.shape, x.tobytes()) != (y.dtype, y.shape, y.tobytes()):
            yield f"{where}: {name}"


def _slow_down_flushes(seconds: float) -> None:
    flush = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        flush(descriptor)

    os.fsync = slow


if __name__ == "__main__":
    if float(os.environ.get("KILLED_RUN_FLUSH_SECONDS", 0)):
        _slow_down_flushes(float(os.environ["KILLED_RUN_FLUSH_SECONDS"]))
    PRESETS[PRESET] = small_preset()
    if sys.argv[1].startswith("--restore="):
        print(json.dumps(_restore(Path(sys.argv[1].partition("=")[2]))))
        sys.exit()
    program = ROOT / "apps" / "train.py"
    sys.path.insert(0, str(program.parent))  # as Python does for a program
    sys.argv = [str(program), f"--preset={PRESET}", *sys.argv[1:]]
    runpy.run_path(str(program), run_name="__main__")
