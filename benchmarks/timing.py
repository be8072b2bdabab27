"""What the benchmarks share: flags, a model, timers, processes that take turns, and tables."""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

BACKENDS = ["tensorflow", "jax", "torch"]


def read_flags(doc, **flags):
    """Reads the flags of a program, and --worker, by which it starts itself.

    Args:
        doc: what the program does, in its first line.
        flags: by name the default, whose type the value has, or (default, help, choices). A list
            of names takes some of them, by commas; a list of numbers takes any.

    Returns:
        the values, with `error`, which ends the program with some words.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name, flag in flags.items():
        default, words, choices = (*(flag if isinstance(flag, tuple) else (flag,)), None, None)[:3]
        if isinstance(default, bool):
            options = {"action": "store_true"}
        elif isinstance(default, list):
            options = {"type": lambda text, known=default: _several(text, known)}
        else:
            options = {"type": str if default is None else type(default), "choices": choices}
        parser.add_argument(f"--{name}", default=default, help=words, **options)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.error = parser.error
    return options


def _several(text, known):
    items = text.split(",")
    if not isinstance(known[0], str):
        return [type(known[0])(item) for item in items]
    if unknown := sorted(set(items) - set(known)):
        words = f"must be among {', '.join(known)}. Received: {unknown}"
        raise argparse.ArgumentTypeError(words)
    return items


def ddpm_model(network):
    """Returns a network with DDPM's process and loss, compiled with AdamW."""
    import keras

    from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules

    parts = schedules.LinearBeta(), parameterizations.Epsilon(), objectives.UniformTimesteps()
    model = DiffusionModel(network, *parts)
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=0.0))
    return model


def random_batch(size, shape, num_classes):
    """Returns images in [-1, 1], the same each time, and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (size, *shape)).astype("float32")
    return {"image": images, "label": rng.integers(0, num_classes, size).astype("int32")}


def step_seconds(model, batch, steps, callbacks=(), wait=True):
    """Returns the seconds of steps of a call to `fit` on one batch, all callbacks included.

    Args:
        model: it is compiled.
        batch: as `random_batch` returns it.
        steps: after the first two, which are slower.
        callbacks: of the call.
        wait: whether each step's loss is waited for.
    """
    import keras

    ends = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if wait:
                float(logs["batch_loss"])
            ends.append(time.perf_counter())

    options = {"steps_per_epoch": steps + 2, "shuffle": False, "verbose": 0}
    data = ((batch,) for _ in range(steps + 2))
    model.fit(data, callbacks=[*callbacks, Clock()], **options)
    return [end - begin for begin, end in itertools.pairwise(ends[1:])]


def seconds_of(function, *arguments):
    """Returns how long a call takes."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def peak_bytes():
    """Returns the most memory that this process has needed so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Worker:
    """This program as a process of its own, with the same flags and --worker.

    Args:
        name: value of --worker.
        flags: others, which replace those of this process.
        environment: variables that it has besides.
    """

    def __init__(self, name, *flags, **environment):
        self._name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, *flags, f"--worker={name}"],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answer(self, question=None):
        """Returns what it says next by `tell`, after a question to its `serve` if there is one."""
        if question is not None:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        self._errors.seek(0)
        raise SystemExit(f"{self._errors.read()[-2000:]}\n{self._name} has ended")

    def close(self):
        """Ends it, and waits for that."""
        self._process.stdin.close()
        self._process.wait()


def measure(name, *flags, **environment):
    """Returns the one answer of a worker."""
    worker = Worker(name, *flags, **environment)
    answer = worker.answer()
    worker.close()
    return answer


def tell(value):
    """Answers, in a worker."""
    print("answer", json.dumps(value), flush=True)


def serve(function):
    """Answers each question with what a function returns, in a worker."""
    for line in sys.stdin:
        tell(function(json.loads(line)))


def ratio(numerators, denominators, digits=2):
    """Returns the median ratio of rounds in words, with the least and the most."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    middle, *ends = (
        f"{value:,.{digits}f}" for value in (statistics.median(ratios), min(ratios), max(ratios))
    )
    return f"{middle} [{', '.join(ends)}]"


def print_table(head, rows):
    """Prints a table in Markdown, row by row; columns that begin with a number are on the right."""
    for index, row in enumerate(rows):
        if index == 0:
            print(f"| {' | '.join(head)} |")
            print("|" + "".join("---:|" if cell[:1].isdigit() else "---|" for cell in row))
        print(f"| {' | '.join(row)} |", flush=True)
