"""The apps, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

APPS = Path(__file__).parents[2] / "apps"


@pytest.fixture(scope="session")
def run_app():
    """A function: the app's name and its arguments -> the finished process, its output as text."""

    def run(name, *arguments):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["PYTHONPATH"] = os.pathsep.join([str(APPS.parent), *sys.path])
        return subprocess.run(
            [sys.executable, APPS / f"{name}.py", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def backend():
    """The flag that chooses the backend under test."""
    return f"--backend={keras.backend.backend()}"
