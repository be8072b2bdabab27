"""The apps, run as a user runs them."""

from pathlib import Path

import forked
import keras
import pytest

APPS = Path(__file__).parents[2] / "apps"


@pytest.fixture(scope="session")
def run_app(tmp_path_factory):
    """A function: the app's name and its arguments -> the finished process, its output as text."""

    def run(name, *arguments):
        return forked.run([APPS / f"{name}.py", *arguments], tmp_path_factory.mktemp("app"))

    return run


@pytest.fixture(scope="session")
def train_small(tmp_path_factory):
    """A function: arguments of apps/train.py -> its finished process, for a tiny network."""
    program = Path(__file__).parents[1] / "training" / "killed_run.py"

    def run(*arguments):
        return forked.run([program, *arguments], tmp_path_factory.mktemp("app"))

    return run


@pytest.fixture(scope="session")
def backend():
    """The flag that chooses the backend under test."""
    return f"--backend={keras.backend.backend()}"
