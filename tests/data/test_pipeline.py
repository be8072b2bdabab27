import itertools

import numpy as np
import pytest

from keras_cdiff.data import ArraySource, make_dataset, open_source, prepare_image

pytestmark = pytest.mark.backend_free


def random_image(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def numbered_source(length=10, labelled=True):
    """Image n is n on the left and 100 + n on the right; its label is n."""
    images = np.repeat(np.arange(length, dtype=np.uint8), 16).reshape(length, 4, 4, 1).copy()
    images[:, :, 2:] += 100
    return ArraySource("numbered", images, np.arange(length) if labelled else None)


def batches(source, count, **options):
    dataset = make_dataset(source, image_size=4, batch_size=3, channels=1, **options)
    return list(itertools.islice(dataset, count))


def labels(source, count, **options):
    return [batch["label"].tolist() for batch in batches(source, count, **options)]


# prepare_image


def bicubic_rows(image, length):
    """Antialiased bicubic resize (a = -1/2) of the first axis, from the definition."""
    stretch = max(len(image) / length, 1.0)
    centres = (np.arange(length)[:, None] + 0.5) * len(image) / length
    x = np.abs((np.arange(len(image)) + 0.5 - centres) / stretch)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.einsum("lh,hwc->lwc", weights, image), 0, 255)


def reference(image, size):
    image = image.astype(np.float64)
    while min(image.shape[:2]) >= 2 * size:
        height, width, channels = image.shape
        blocks = image.reshape(height // 2, 2, width // 2, 2, channels)
        image = blocks.mean(axis=(1, 3))
    scale = size / min(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    image = bicubic_rows(image.swapaxes(0, 1), width).swapaxes(0, 1)
    image = bicubic_rows(image, height)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "shape",
    [
        (8, 8, 3),  # as it is
        (16, 16, 3),  # one halving
        (64, 64, 3),  # three
        (13, 13, 3),  # bicubic alone
        (40, 72, 3),  # halving, bicubic and cropping
        (52, 28, 3),
        (8, 20, 3),  # cropping alone
        (5, 7, 3),  # enlarging
        (24, 36, 1),
    ],
)
def test_resize_and_crop_follow_the_definition(shape):
    image = random_image(*shape)
    prepared = prepare_image(image, 8, channels=shape[2])
    assert prepared.shape == (8, 8, shape[2])
    assert prepared.dtype == np.float32
    # Pillow keeps 8 bits between the passes, of which there are up to four.
    assert np.abs((prepared + 1) * 127.5 - reference(image, 8)).max() < 2.5


def test_halving_averages_boxes_exactly():
    image = np.kron(random_image(8, 8, 3), np.ones((4, 4, 1), np.uint8))
    assert np.array_equal(prepare_image(image, 8), prepare_image(random_image(8, 8, 3), 8))


def test_the_crop_is_central():
    image = np.zeros((4, 10, 1), np.uint8)
    image[:, 3:7] = 255
    assert (prepare_image(image, 4, channels=1) == 1).all()


def test_values_span_minus_one_to_one():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    prepared = prepare_image(image, 16, channels=1).ravel()
    assert prepared[0] == -1
    assert prepared[-1] == 1
    assert np.allclose(np.diff(prepared), 1 / 127.5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1)])
def test_grey_becomes_three_equal_channels(shape):
    image = random_image(*shape)
    prepared = prepare_image(image, 6)
    expected = image.reshape(6, 6, 1) / 127.5 - 1
    assert np.allclose(prepared, np.broadcast_to(expected, (6, 6, 3)), atol=1e-6)


def test_rgb_becomes_luma():
    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    prepared = (prepare_image(image, 2, channels=1) + 1) * 127.5
    assert np.allclose(prepared.ravel(), [76, 150, 29, 255], atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_rgba_lies_on_white(channels):
    image = np.zeros((1, 1, 4), np.uint8)
    for opacity, level in [(0, 255), (255, 0), (51, 204)]:
        image[..., 3] = opacity
        prepared = (prepare_image(image, 1, channels) + 1) * 127.5
        assert np.allclose(prepared, level, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "image_size", "channels", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), 8, 3, r"uint8.*Received: image .*float32"),
        (np.zeros((8, 8, 2), np.uint8), 8, 3, r"C being 1, 3 or 4.*\(8, 8, 2\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), 8, 3, r"Received: image of shape \(2, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), 8, 3, r"pixels.*Received: image of shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), 0, 3, "Received: image_size=0"),
        (np.zeros((8, 8, 3), np.uint8), 4.0, 3, "integer.*Received: image_size=4.0"),
        (np.zeros((8, 8, 3), np.uint8), 8, 4, "Received: channels=4"),
    ],
)
def test_prepare_image_rejects(image, image_size, channels, message):
    with pytest.raises(ValueError, match=message):
        prepare_image(image, image_size, channels)


# make_dataset


@pytest.mark.parametrize("labelled", [True, False])
def test_batches_are_what_fit_takes(labelled):
    (batch,) = batches(numbered_source(labelled=labelled), 1)
    assert set(batch) == ({"image", "label"} if labelled else {"image"})
    assert batch["image"].shape == (3, 4, 4, 1)
    assert batch["image"].dtype == np.float32
    if labelled:
        assert batch["label"].dtype == np.int32
        assert np.allclose((batch["image"][:, 0, 0, 0] + 1) * 127.5, batch["label"], atol=1e-4)


def test_captions_are_left_out_and_labels_if_unwanted():
    (batch,) = itertools.islice(make_dataset(open_source("emoji"), 32, batch_size=2), 1)
    assert set(batch) == {"image", "label"}
    (unlabelled,) = itertools.islice(make_dataset(open_source(), 32, 2, labels=False), 1)
    assert set(unlabelled) == {"image"}
    assert np.array_equal(unlabelled["image"], batch["image"])


def test_every_epoch_holds_every_image_once_in_an_order_of_its_own():
    order = np.ravel(labels(numbered_source(), 20)).reshape(6, 10)
    assert np.array_equal(np.sort(order), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in order.tolist()}) == 6
    assert np.arange(10).tolist() not in order.tolist()


def test_without_shuffle_the_source_keeps_its_order():
    order = np.ravel(labels(numbered_source(), 10, shuffle=False))
    assert np.array_equal(order, np.tile(np.arange(10), 3))


def test_the_seed_decides_everything():
    def seen(seed):
        return np.array([b["image"] for b in batches(numbered_source(), 10, **options, seed=seed)])

    options = {"horizontal_flip": True}
    assert np.array_equal(seen(3), seen(3))
    assert not np.array_equal(seen(3), seen(4))


@pytest.mark.parametrize("start_step", [1, 3, 7])
def test_starting_at_a_step_is_skipping_the_batches_before(start_step):
    options = {"horizontal_flip": True, "seed": 5}
    whole = batches(numbered_source(), 10, **options)
    rest = batches(numbered_source(), 10 - start_step, start_step=start_step, **options)
    assert len(rest) == 10 - start_step
    for batch, expected in zip(rest, whole[start_step:], strict=True):
        assert np.array_equal(batch["image"], expected["image"])
        assert np.array_equal(batch["label"], expected["label"])


def test_starting_far_on_is_immediate():
    assert np.shape(labels(numbered_source(), 1, start_step=10**12)) == (1, 3)


def test_half_the_images_are_flipped_whatever_the_image():
    count = 400
    flipped = np.zeros(10)
    for batch in batches(numbered_source(), count, horizontal_flip=True):
        left, right = batch["image"][:, 0, 0, 0], batch["image"][:, 0, 3, 0]
        assert np.allclose(np.abs(right - left), 100 / 127.5)
        np.add.at(flipped, batch["label"], left > right)
    share = flipped / (count * 3 / 10)
    assert abs(share.mean() - 0.5) < 4 * 0.5 / np.sqrt(count * 3)
    assert (np.abs(share - 0.5) < 0.25).all()


def test_flips_leave_the_order_alone():
    plain = labels(numbered_source(), 10)
    assert labels(numbered_source(), 10, horizontal_flip=True) == plain


def test_a_batch_of_one_flipped_image_is_contiguous():
    dataset = make_dataset(numbered_source(), 4, batch_size=1, channels=1, horizontal_flip=True)
    assert all(b["image"].flags["C_CONTIGUOUS"] for b in itertools.islice(dataset, 20))


def test_epochs_end_and_the_remainder_is_dropped():
    assert len(labels(numbered_source(), 100, num_epochs=2)) == 6
    assert len(labels(numbered_source(), 100, num_epochs=2, start_step=4)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 11}, r"'numbered' with 10 images.*Received: batch_size=11"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"batch_size": 2.0}, "integer.*Received: batch_size=2.0"),
        ({"image_size": 0}, "Received: image_size=0"),
        ({"channels": 2}, "Received: channels=2"),
        ({"seed": -1}, "Received: seed=-1"),
        ({"num_epochs": 0}, "Received: num_epochs=0"),
        ({"start_step": -1}, "Received: start_step=-1"),
        ({"num_epochs": 2, "start_step": 6}, r"6 batches in 2 epochs.*Received: start_step=6"),
    ],
)
def test_make_dataset_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(numbered_source(), **{"image_size": 4, "batch_size": 3, **options})
