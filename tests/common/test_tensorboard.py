import io
import time

import numpy as np
import pytest
from PIL import Image

from keras_cdiff.common.tensorboard import TensorBoardWriter

pytestmark = pytest.mark.backend_free


def test_scalars_are_read_back(tmp_path, read_events):
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    writer.scalars(10, {"loss": 0.5, "curriculum/stage": 1})
    writer.scalars(2**40, {"loss": float("inf")})
    writer.close()
    events = read_events(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss", "curriculum/stage"}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(10, 0.5), (2**40, float("inf"))]
    assert [event.value for event in events.Scalars("curriculum/stage")] == [1.0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_read_back(tmp_path, read_events, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    writer.image(5, "samples", image)
    writer.close()
    (event,) = read_events(tmp_path).Images("samples")
    assert (event.step, event.height, event.width) == (5, 4, 6)
    decoded = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    np.testing.assert_array_equal(decoded.reshape(image.shape), image)


def test_events_can_be_read_while_the_run_goes_on(tmp_path, read_events):
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    writer.scalars(1, {"loss": 0.5})
    assert [event.step for event in read_events(tmp_path).Scalars("loss")] == [1]
    writer.close()


def test_nothing_is_written_before_the_first_value(tmp_path):
    TensorBoardWriter(tmp_path / "tensorboard").close()
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_replaces_what_lay_beyond(tmp_path, read_events):
    for resumed_at, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        writer = TensorBoardWriter(tmp_path / "tensorboard", resumed_at)
        for step in steps:
            writer.scalars(step, {"loss": step + (resumed_at or 0)})
        writer.close()
    losses = [(event.step, event.value) for event in read_events(tmp_path).Scalars("loss")]
    assert losses == [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]


def test_a_run_within_the_same_second_comes_after_what_is_there(tmp_path, read_events):
    """Whatever the other file's name goes on with after its second."""
    first = TensorBoardWriter(tmp_path / "tensorboard")
    first.scalars(1, {"loss": 0.5})
    first.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name(f"events.out.tfevents.{int(time.time()):010d}.zzz"))
    second = TensorBoardWriter(tmp_path / "tensorboard", resumed_at=1)
    second.scalars(2, {"loss": 0.25})
    second.close()
    assert [event.step for event in read_events(tmp_path).Scalars("loss")] == [1, 2]
