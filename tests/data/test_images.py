import numpy as np
import pytest
from PIL import Image

from keras_cdiff.data import image_grid, save_image_grid, to_uint8

pytestmark = pytest.mark.backend_free


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_to_uint8_rounds_to_the_nearest_level(dtype):
    values = np.array([-1, -0.5, 0.25, 1], dtype)
    assert to_uint8(values).tolist() == [0, 64, 159, 255]


def test_to_uint8_inverts_the_scaling_of_every_level():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_uint8(levels / np.float32(127.5) - 1), levels)


def test_to_uint8_clips():
    assert to_uint8(np.array([-3.0, -1.001, 1.001, 1e9])).tolist() == [0, 0, 255, 255]


def test_to_uint8_rejects_values_that_are_not_finite():
    with pytest.raises(ValueError, match=r"finite.*Received: images with 2 of 3 values"):
        to_uint8(np.array([0.0, np.nan, np.inf]))


def test_to_uint8_rejects_integers():
    with pytest.raises(ValueError, match=r"floats.*Received: images of dtype uint8"):
        to_uint8(np.zeros(3, np.uint8))


@pytest.mark.parametrize(("columns", "scale", "padding"), [(None, 1, 2), (2, 3, 0), (5, 2, 1)])
def test_grid_holds_every_pixel_of_every_image_and_is_white_elsewhere(columns, scale, padding):
    images = random_images(5, 3, 4, 3)
    grid = image_grid(images, columns, scale, padding)
    columns = columns or 3
    rows = -(-5 // columns)
    shape = (rows * (3 * scale + padding) + padding, columns * (4 * scale + padding) + padding, 3)
    assert grid.shape == shape
    for n, image in enumerate(images):
        top = padding + (n // columns) * (3 * scale + padding)
        left = padding + (n % columns) * (4 * scale + padding)
        window = grid[top : top + 3 * scale, left : left + 4 * scale]
        assert np.array_equal(window, np.kron(image, np.ones((scale, scale, 1), np.uint8)))
        window[:] = 255
    assert (grid == 255).all()


def test_grid_is_no_wider_than_its_images():
    assert image_grid(random_images(2, 4, 4, 1), columns=8, padding=0).shape == (4, 8, 1)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), {}, r"to_uint8.*dtype float32"),
        (random_images(4, 4, 3), {}, r"\(N, H, W, C\).*\(4, 4, 3\)"),
        (random_images(0, 4, 4, 3), {}, "at least one"),
        (random_images(1, 4, 4, 3), {"columns": 0}, "Received: columns=0"),
        (random_images(1, 4, 4, 3), {"scale": 0}, "Received: scale=0"),
        (random_images(1, 4, 4, 3), {"padding": -1}, "Received: padding=-1"),
    ],
)
def test_grid_rejects(images, options, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, **options)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_saved_grid_reads_back_and_replaces_the_file_before(tmp_path, channels):
    path = tmp_path / "samples" / "step_1.png"
    save_image_grid(random_images(1, 2, 2, channels), path)
    images = random_images(6, 5, 5, channels)
    save_image_grid(images, path, columns=3, scale=2)
    with Image.open(path) as image:
        saved = np.asarray(image).reshape(26, 38, channels)
    assert np.array_equal(saved, image_grid(images, columns=3, scale=2))
    assert [file.name for file in path.parent.iterdir()] == ["step_1.png"]


def test_a_write_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_image_grid(random_images(1, 4, 4, 3), path)
    before = path.read_bytes()

    def write_half(self, file, format):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        save_image_grid(random_images(1, 4, 4, 3), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("grid", 3, r"suffix.*Received: path="),
        ("grid.txt", 3, r"suffix.*Received: path="),
        ("grid.png", 2, r"1, 3 or 4 channels.*Received: images of shape \(1, 4, 4, 2\)"),
        ("grid.jpg", 4, r"JPEG file 1 or 3.*Received: images of shape \(1, 4, 4, 4\)"),
    ],
)
def test_save_rejects_what_no_format_holds(tmp_path, name, channels, message):
    with pytest.raises(ValueError, match=message):
        save_image_grid(random_images(1, 4, 4, channels), tmp_path / name)
    assert not list(tmp_path.iterdir())
