"""Kills training runs at random moments and compares them with a run that nothing happened to.

On each backend a small run of apps/train.py (embedded emoji, curriculum, label dropout, clipped
gradients, an average of the weights, validation, evaluation, grids of samples) is

  killed       by SIGKILL, at random moments, inside saves too, and repeated each time;
  interrupted  by SIGTERM within a log interval, and repeated;
  carried      over to another backend from the checkpoint that the interruption left.

The first two must end with the weights, averages, optimizer, logs and grids of the undisturbed run,
bit for bit; the third must go on from the same arrays and end.

    python tests/torture.py
    python tests/torture.py --backend=jax --kills=30 --seed=1 --workdir=torture
    python tests/torture.py -- --dtype_policy=mixed_float16 --gradient_accumulation_steps=3
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import json
import math
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_cdiff.training.interruption import EXIT_INTERRUPTED

BACKENDS = ("tensorflow", "jax", "torch")
STEPS, CHECKPOINT_EVERY, LOG_EVERY = 300, 7, 5  # neither a divisor of the other
INSIDE_A_SAVE = 3  # kills, at least
MOST_RUNS = 6  # should runs end before all kills are done

_spec = importlib.util.spec_from_file_location(
    "killed_run", Path(__file__).parent / "training" / "killed_run.py"
)
killed_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(killed_run)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: all")
    parser.add_argument("--kills", type=int, default=12, help="a backend; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=Path, help="a new folder, kept; default: temporary")
    parser.add_argument("flags", nargs="*", help="other flags of apps/train.py, after --")
    options = parser.parse_args()
    if options.kills < INSIDE_A_SAVE:
        parser.error(f"--kills must be at least {INSIDE_A_SAVE}. Received: kills={options.kills}")
    if options.workdir is not None and options.workdir.exists():
        parser.error(f"--workdir must not exist yet. Received: workdir={options.workdir}")
    failed = False
    with contextlib.ExitStack() as stack:
        if options.workdir is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            root = options.workdir.resolve()
            root.mkdir(parents=True)
        flags = [*make_flags(root), *options.flags]
        for backend in dict.fromkeys(options.backend or BACKENDS):
            torture = Torture(root / backend, flags, backend, random.Random(options.seed))
            for name, faults in torture.rounds(options.kills):
                verdict = "FAILED" if faults else "passed"
                print(f"{backend} {name}: {verdict}", flush=True)
                for fault in faults[:3]:
                    print(f"  {fault[:2000]}", flush=True)
                failed = failed or bool(faults)
    sys.exit(1 if failed else 0)


def make_flags(root: Path) -> list[str]:
    """The flags of the run, whose extractor of features is saved into a folder."""
    pixels = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(pixels))
    extractor = root / "extractor.keras"
    keras.Model(pixels, features, name="quadrants").save(extractor)
    flags = {
        "steps": STEPS,
        "checkpoint_every": CHECKPOINT_EVERY,
        "log_every": LOG_EVERY,
        "keep_last": 2,
        "keep_every": 49,
        "sample_every": 60,
        "validate_every": 45,
        "validation_data": "emoji",
        "validation_images": 6,
        "evaluate_every": 75,
        "evaluate_samples": 6,
        "extractor": f"keras:{extractor}",
        "global_clipnorm": 0.5,
    }
    return [f"--{name}={value}" for name, value in flags.items()]


class Torture:
    """The rounds on one backend.

    Args:
        folder: a new folder for its runs.
        flags: flags of apps/train.py.
        backend: name of the Keras backend.
        chance: decides on the moments.
    """

    def __init__(self, folder: Path, flags: list[str], backend: str, chance: random.Random):
        self.folder, self.flags, self.backend, self.chance = folder, flags, backend, chance
        self.undisturbed, self.carried = folder / "undisturbed", folder / "carried"
        self.seconds_to_start = 5.0
        folder.mkdir()

    def rounds(self, kills: int) -> Iterator[tuple[str, list[str]]]:
        """Yields the name of each round and what went wrong in it."""
        for name, round_ in (
            ("undisturbed", self._run_undisturbed),
            ("killed", lambda: self._kill(kills)),
            ("interrupted", self._interrupt),
            ("carried over", self._carry_over),
        ):
            try:
                yield name, round_()
            # What ends a program must not keep the other rounds and backends from being tried.
            except Exception as error:
                yield name, [f"{type(error).__name__}: {error}"]

    def _life(self, workdir: Path, backend: str | None = None) -> object:
        output = self.folder / f"{workdir.name}.txt"
        return killed_run.Life(workdir, self.flags, backend or self.backend, output)

    def _run_undisturbed(self) -> list[str]:
        with self._life(self.undisturbed) as life:
            life.wait_for(lambda: life.advanced(1))
            self.seconds_to_start = time.monotonic() - life.began
            life.end()
        stages = {record["stage"] for record in read_log(self.undisturbed)}
        return [] if len(stages) >= 3 else [f"the run has only the stages {stages}"]

    def _kill(self, kills: int) -> list[str]:
        planned, met, faults = self._plan(kills), collections.Counter(), []
        for number in range(MOST_RUNS):
            workdir = self.folder / f"killed_{number}"
            while planned and not finished(workdir):
                life, where = self._kill_once(workdir, planned[0])
                if not where:
                    continue
                planned.pop(0)
                met[where] += 1
                self._tell(sum(met.values()), where, life)
                if not planned and met[killed_run.INSIDE] < INSIDE_A_SAVE:
                    planned.append(killed_run.kill_inside_a_save)
            if not planned and not finished(workdir):
                life, where = self._kill_once(workdir, kill_at_the_end)
                if where:
                    self._tell("at the end", where, life)
            if not finished(workdir):
                with self._life(workdir) as life:
                    life.end()
            faults += killed_run.differences(self.undisturbed, workdir)
            if not planned:
                break
        else:
            faults.append(f"{len(planned)} kills were not done in {MOST_RUNS} runs")
        shown = ", ".join(f"{count} {where}" for where, count in met.items())
        print(f"{self.backend}: {sum(met.values())} kills: {shown}", flush=True)
        return faults

    def _plan(self, kills: int) -> list:
        """So many ways to kill, in random order."""
        inside, start = max(INSIDE_A_SAVE, math.ceil(kills / 3)), kills // 6
        planned = [killed_run.kill_inside_a_save] * inside
        kill_at_the_start = functools.partial(kill_within, longest=0.9 * self.seconds_to_start)
        planned += [kill_at_the_start] * start
        planned += [killed_run.kill_at_a_random_moment] * (kills - inside - start)
        self.chance.shuffle(planned)
        return planned

    def _kill_once(self, workdir: Path, kill: object) -> tuple[object, str]:
        with self._life(workdir) as life:
            where = kill(life, self.chance)
        if not where:
            life.end()  # which tells if it was for a fault
        return life, where

    def _tell(self, number: object, where: str, life: object) -> None:
        step, _ = killed_run.newest_checkpoint(life.workdir)
        seconds = time.monotonic() - life.began
        print(
            f"{self.backend} kill {number}: {where}, after {seconds:.1f} s; "
            f"newest checkpoint of step {step}",
            flush=True,
        )

    def _interrupt(self) -> list[str]:
        workdir, faults = self.folder / "interrupted", []
        for _ in range(10):
            times = self.chance.randint(1, 4)
            with self._life(workdir) as life:
                life.wait_for(lambda life=life, times=times: life.advanced(times))
                time.sleep(self.chance.uniform(0, 0.05))
                life.process.send_signal(signal.SIGTERM)
                life.end(EXIT_INTERRUPTED)
            step, arrays = killed_run.newest_checkpoint(workdir)
            (iteration,) = (
                v for name, v in arrays.items() if re.fullmatch("model/.*/iteration", name)
            )
            if iteration != step or f" at step {step}," not in life.output.read_text():
                faults.append(f"the newest checkpoint is of step {step}, iteration {iteration}")
            if step % CHECKPOINT_EVERY and step % LOG_EVERY:
                break
        else:
            faults.append("no interruption fell within an interval")
        shutil.copytree(workdir, self.carried)
        print(f"{self.backend}: interrupted at step {step}", flush=True)
        with self._life(workdir) as life:
            life.end()
        return [*faults, *killed_run.differences(self.undisturbed, workdir)]

    def _carry_over(self) -> list[str]:
        other = BACKENDS[(BACKENDS.index(self.backend) + 1) % len(BACKENDS)]
        change, _ = killed_run.newest_checkpoint(self.carried)
        faults = killed_run.differences_after_restoring(self.carried, other)
        faults = [f"not restored: {name}" for name in faults]
        with self._life(self.carried, other) as life:
            life.end()
        print(f"{self.backend}: went on from step {change} on {other}", flush=True)
        expected, got = read_log(self.undisturbed), read_log(self.carried)
        if len(expected) != len(got):
            faults.append(f"{len(got)} records of {len(expected)}")
        for a, b in zip(expected, got, strict=False):
            before = {name for name in a if name not in killed_run.TIMES}
            shared = before if a["step"] <= change else {"step", "images"}
            faults += [f"step {a['step']}: {k} {a[k]} and {b[k]}" for k in shared if a[k] != b[k]]
            if not isinstance(b["loss"], float):
                faults.append(f"step {b['step']}: loss {b['loss']}")
        return faults


def kill_within(life: object, chance: random.Random, longest: float) -> str:
    """Kills a process at a random moment of its first seconds, and returns where it was."""
    time.sleep(chance.uniform(0, longest))
    return life.kill()


def kill_at_the_end(life: object, chance: random.Random) -> str:
    """Kills a process after its last checkpoint, and returns where it was."""
    last = life.workdir / "checkpoints" / f"step_{STEPS:08d}.zip"
    life.wait_for(last.exists)
    time.sleep(chance.uniform(0, 0.1))
    return life.kill()


def finished(workdir: Path) -> bool:
    """Whether a run has written its weights, the last that it does."""
    return (workdir / "weights" / "raw.weights.h5").exists()


def read_log(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
