"""An export serves where nothing but TensorFlow is installed."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

pytestmark = pytest.mark.backend_free

EXAMPLE = Path(__file__).parents[2] / "examples" / "sample_from_export.py"


def requirements_of(name):
    """The names of all distributions that one needs, itself among them."""
    found, left = set(), [name]
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for other systems
        found.add(name)
        left += [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]
    return found


@pytest.fixture
def tensorflow_alone(tmp_path):
    """A folder of packages with what TensorFlow needs, except for Keras."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in requirements_of("tensorflow") - {"keras"}:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top != ".." and not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / top)
    return folder


def run_there(packages, folder, *command):
    """What a program prints in a new process that finds only those packages."""
    process = subprocess.run(
        [sys.executable, "-S", *command],  # without the site's packages
        env={"PYTHONPATH": str(packages), "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_it_needs_tensorflow_alone(served, tmp_path, tensorflow_alone, card_code):
    absent = "import importlib.util as u; print([n for n in ('keras', 'keras_cdiff', 'numpy') if "
    absent += "u.find_spec(n)])"
    assert run_there(tensorflow_alone, tmp_path, "-c", absent) == "['numpy']"
    program = card_code(served, "assets.extra") + "print(images.dtype, images.shape)"
    printed = run_there(tensorflow_alone, tmp_path, "-c", program)
    assert printed == "<dtype: 'uint8'> (4, 8, 8, 3)"


def test_a_restart_changes_no_byte(served, tmp_path, tensorflow_alone):
    seeds = [7, 8, 2**62, 0]
    sample = tf.saved_model.load(str(served)).signatures["sample"]
    here = sample(
        seeds=tf.constant(seeds, tf.int64), label=tf.fill([4], 2), guidance=tf.constant(1.5)
    )["images"].numpy()
    options = ("--seeds", *map(str, seeds), "--label=2", "--guidance=1.5")
    run_there(tensorflow_alone, tmp_path, EXAMPLE, served, *options)
    for seed, image in zip(seeds, here, strict=True):
        np.testing.assert_array_equal(Image.open(tmp_path / f"sample_{seed}.png"), image)
