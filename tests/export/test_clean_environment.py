"""An export serves where nothing but TensorFlow is installed."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_cdiff import export_sampler, samplers

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


def test_it_needs_tensorflow_alone(make_model, tmp_path, tensorflow_alone):
    export_sampler(make_model("ddpm"), tmp_path / "model", samplers.DDIM(2))
    absent = "import importlib.util as u; print([n for n in ('keras', 'keras_cdiff', 'numpy') if "
    absent += "u.find_spec(n)])"
    for command in (["-c", absent], [EXAMPLE, tmp_path / "model", "--seeds", "7", "8"]):
        process = subprocess.run(
            [sys.executable, "-S", *command],  # without the site's packages
            env={"PYTHONPATH": str(tensorflow_alone), "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        if command[0] == "-c":
            assert process.stdout.strip() == "['numpy']"
    for seed in (7, 8):
        assert (tmp_path / f"sample_{seed}.png").read_bytes().startswith(b"\x89PNG")
