import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_cdiff import presets
from keras_cdiff.model.diffusion_model import DiffusionModel

pytestmark = pytest.mark.one_backend

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run_example(monkeypatch, capsys):
    """A function: runs an example as a program and returns what it printed."""
    # A tiny network, and no XLA, which would compile for longer than these few steps run.
    backbone = presets.PRESETS["dit_emoji16"]["model"]["backbone"]
    for name, value in {"width": 16, "depth": 1, "num_heads": 2}.items():
        monkeypatch.setitem(backbone, name, value)
    monkeypatch.setattr(DiffusionModel, "prefers_jit", lambda self: False)

    def run(name, *arguments):
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def random_images(count, size):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def check_grid(path, rows, columns):
    """The file holds rows x columns images of 64 x 64 pixels that differ."""
    grid = np.asarray(Image.open(path))
    assert grid.shape == (rows * 66 + 2, columns * 66 + 2, 3)
    cells = grid[2:, 2:].reshape(rows, 66, columns, 66, 3)[:, :64, :, :64]
    cells = cells.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    assert len(np.unique(cells, axis=0)) == rows * columns
    assert (cells.std(axis=1) > 0).all()


def test_train_on_images(run_example, tmp_path):
    np.savez(tmp_path / "mine.npz", images=random_images(8, 16))
    output = tmp_path / "grid.png"
    printed = run_example(
        "train_on_images.py",
        f"--data=npz:{tmp_path / 'mine.npz'}",
        "--epochs=2",
        "--batch_size=4",
        f"--output={output}",
    )
    assert "Epoch 2/2" in printed
    assert "Curriculum stage 1/5" in printed
    check_grid(output, 4, 4)


@pytest.mark.parametrize("classes", [["cats", "dogs"], []], ids=["classes", "no_classes"])
def test_train_on_folder(run_example, tmp_path, classes):
    folder = tmp_path / "pets"
    for index, image in enumerate(random_images(6, 24)):
        subfolder = folder / classes[index % 2] if classes else folder
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(subfolder / f"{index}.png")
    output = tmp_path / "grid.png"
    printed = run_example(
        "train_on_folder.py", folder, "--steps=3", "--batch_size=4", f"--output={output}"
    )
    assert "3/3" in printed
    assert "Curriculum stage 1/5" in printed
    check_grid(output, 2, 8)
