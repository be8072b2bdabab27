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


@pytest.fixture(scope="module")
def tensorflow_alone(tmp_path_factory):
    """A folder of packages with what TensorFlow needs, except for Keras."""
    folder = tmp_path_factory.mktemp("packages")
    for name in requirements_of("tensorflow") - {"keras"}:
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top != ".." and not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / top)
    return folder


SEEDS = [7, 8, 2**62, 0]

# Both in one process, since TensorFlow takes seconds to be imported.
PROGRAM = """
import importlib.util, runpy, sys
print([name for name in ("keras", "keras_cdiff", "numpy") if importlib.util.find_spec(name)])
exec(sys.argv.pop(1))
print(images.dtype, images.shape)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def there(served, tensorflow_alone, card_code, tmp_path_factory):
    """What the model card's program and the example print in a new process that finds only those
    packages, and the folder in which they ran.
    """
    folder = tmp_path_factory.mktemp("there")
    options = ("--seeds", *map(str, SEEDS), "--label=2", "--guidance=1.5")
    programs = (PROGRAM, card_code(served, "assets.extra"), EXAMPLE)
    process = subprocess.run(
        [sys.executable, "-S", "-c", *programs, served, *options],  # without the site's packages
        env={"PYTHONPATH": str(tensorflow_alone), "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines(), folder


def test_it_needs_tensorflow_alone(there):
    assert there[0] == ["['numpy']", "<dtype: 'uint8'> (4, 8, 8, 3)"]


def test_a_restart_changes_no_byte(served, there):
    sample = tf.saved_model.load(str(served)).signatures["sample"]
    here = sample(
        seeds=tf.constant(SEEDS, tf.int64), label=tf.fill([4], 2), guidance=tf.constant(1.5)
    )["images"].numpy()
    for seed, image in zip(SEEDS, here, strict=True):
        np.testing.assert_array_equal(Image.open(there[1] / f"sample_{seed}.png"), image)
