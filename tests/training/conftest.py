"""Runs of a network small enough for tests."""

import contextlib
import json
import os
import signal

import numpy as np
import pytest

from keras_cdiff import training


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    """A function: number of classes, 0 for no labels -> the source of 16 small RGB images."""
    folder = tmp_path_factory.mktemp("npz")

    def write(num_classes=3):
        images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
        labels = {"labels": np.arange(16) % num_classes} if num_classes else {}
        path = folder / f"{num_classes}_classes.npz"
        np.savez(path, images=images, **labels)
        return f"npz:{path}"

    return write


@pytest.fixture(scope="session")
def tiny(npz, quick):
    """A function: arguments of `resolve` -> a configuration with a very small network."""

    def make(network=None, **arguments):
        small_run = {"data": npz(), "image_size": 8, "steps": 3, "batch_size": 4}
        config = training.resolve("dit_emoji16", **{**small_run, **quick, **arguments})
        small = {"width": 16, "depth": 1, "num_heads": 2}
        config["model"]["backbone"].update(small, **(network or {}))
        config["sampling"]["num_steps"] = 2
        return config

    return make


@pytest.fixture(scope="session")
def read_log():
    """A function: a workdir and the name of a log -> its records, read as strict JSON."""

    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    def read(workdir, name="log.jsonl"):
        lines = (workdir / name).read_text().splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    return read


@pytest.fixture(scope="session")
def signal_at():
    """A context manager: within it a run sends itself a signal after a step."""

    @contextlib.contextmanager
    def send(step, number):
        original = training.StopAt.on_train_batch_end

        def then_signal(callback, batch, logs=None):
            original(callback, batch, logs)
            if callback.step == step:
                os.kill(os.getpid(), number)

        # Background jobs of a shell ignore SIGINT, and runs respect that.
        before = signal.signal(number, signal.default_int_handler)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(training.StopAt, "on_train_batch_end", then_signal)
            yield
        signal.signal(number, before)

    return send
