"""The apps, run as a user runs them."""

from pathlib import Path

import keras
import pytest

APPS = Path(__file__).parents[2] / "apps"


@pytest.fixture(scope="session")
def run_app(run_program):
    """A function: the app's name and its arguments -> the finished process, its output as text."""
    return lambda name, *arguments: run_program(APPS / f"{name}.py", *arguments)


@pytest.fixture(scope="session")
def train_small(run_program):
    """A function: arguments of apps/train.py -> its finished process, for a tiny network."""
    program = Path(__file__).parents[1] / "training" / "killed_run.py"
    return lambda *arguments: run_program(program, *arguments)


@pytest.fixture(scope="session")
def backend():
    """The flag that chooses the backend under test."""
    return f"--backend={keras.backend.backend()}"
