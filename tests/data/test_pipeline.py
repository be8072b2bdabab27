import itertools

import numpy as np
import pytest

from keras_cdiff.data import (
    ArraySource,
    make_dataset,
    open_source,
    prepare_image,
    read_images,
)

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


class Examples(list):
    """A source of examples that are what a test says."""

    name = "examples"

    def labels(self):
        return np.array([example["label"] for example in self])


def latents(length=10, std=0.0, views=2):
    """The latent of image n is n, that of the mirrored image 100 + n; its label is n."""
    moments = np.zeros((length, views, 4, 4, 2 * 5), np.float16)
    moments[..., :5] = np.arange(length)[:, None, None, None, None]
    moments[:, 1:, ..., :5] += 100
    moments[..., 5:] = std
    return Examples({"moments": m, "label": np.int32(n)} for n, m in enumerate(moments))


def latent_batches(source, count, **options):
    dataset = make_dataset(source, image_size=4, batch_size=5, channels=5, **options)
    return list(itertools.islice(dataset, count))


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
    count = 200
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


@pytest.mark.parametrize("shuffle", [True, False])
def test_order_and_flips_are_those_of_the_first_release(shuffle):
    """A run that was begun with an older version goes on with the batches it would have seen."""
    options = {"horizontal_flip": True, "seed": 7, "shuffle": shuffle}
    seen = batches(numbered_source(), 2, **options)
    order = [[3, 8, 2], [1, 0, 4]] if shuffle else [[0, 1, 2], [3, 4, 5]]
    assert [batch["label"].tolist() for batch in seen] == order
    left = [batch["image"][:, 0, 0, 0] > batch["image"][:, 0, 3, 0] for batch in seen]
    assert np.array_equal(left, [[True, False, True], [True, False, False]])


# Latents


def test_a_latent_is_its_mean_plus_its_std_times_noise_drawn_anew():
    draws = {n: [] for n in range(10)}
    for batch in latent_batches(latents(std=0.5), 60):
        assert batch["image"].shape == (5, 4, 4, 5)
        assert batch["image"].dtype == np.float32
        for latent, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            draws[label].append((latent - label) / 0.5)
    noise = np.stack([draws[n] for n in range(10)])  # (10, 30, 4, 4, 5)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)
    # Neither two draws of a latent nor the draws of two latents are alike.
    assert len(np.unique(noise[..., 0, 0, 0])) == 300


def test_latents_without_std_are_their_means_in_the_order_of_images():
    seen = latent_batches(latents(), 6, seed=3)
    for batch in seen:
        assert (batch["image"] == batch["label"][:, None, None, None]).all()
    images = make_dataset(numbered_source(), 4, batch_size=5, channels=1, seed=3)
    for batch, expected in zip(seen, images, strict=False):
        assert np.array_equal(batch["label"], expected["label"])


def test_a_flip_takes_the_latent_of_the_mirrored_image():
    seen = latent_batches(latents(), 60, horizontal_flip=True, seed=7)
    flips = []
    for batch in seen:
        difference = batch["image"] - batch["label"][:, None, None, None]
        assert np.isin(difference, [0, 100]).all()
        flips.extend(difference[:, 0, 0, 0] == 100)
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / np.sqrt(300)


@pytest.mark.parametrize("start_step", [1, 5])
def test_latents_of_a_batch_depend_on_its_number_alone(start_step):
    options = {"horizontal_flip": True, "seed": 5}
    whole = latent_batches(latents(std=1.0), 7, **options)
    rest = latent_batches(latents(std=1.0), 7 - start_step, start_step=start_step, **options)
    for batch, expected in zip(rest, whole[start_step:], strict=True):
        assert np.array_equal(batch["image"], expected["image"])
    other = latent_batches(latents(std=1.0), 7, **{**options, "seed": 6})
    assert not np.array_equal(other[0]["image"], whole[0]["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, r"of 4 x 4 and 5 channels.*image_size=8, channels=5"),
        ({"channels": 4}, r"of 4 x 4 and 5 channels.*image_size=4, channels=4"),
        ({"horizontal_flip": True}, r"--mirrored.*Received: horizontal_flip=True"),
    ],
)
def test_make_dataset_rejects_what_latents_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(
            latents(views=1), **{"image_size": 4, "channels": 5, "batch_size": 3, **options}
        )


def test_latents_read_as_images_are_refused():
    with pytest.raises(ValueError, match=r"source is one of latents.*\(2, 4, 4, 10\)"):
        next(iter(make_dataset(latents(), image_size=4, batch_size=3)))
    with pytest.raises(ValueError, match="source is one of latents"):
        read_images(latents(), 4)


def test_read_images_draws_each_latent_once_and_the_same_each_time():
    read, labels = read_images(latents(std=0.5), 4, 5)
    again, _ = read_images(latents(std=0.5), 4, 5)
    assert read.shape == (10, 4, 4, 5)
    assert read.dtype == np.float32
    assert np.array_equal(read, again)
    some, some_labels = read_images(latents(std=0.5), 4, 5, num_images=4)
    assert some_labels.tolist() == [0, 3, 6, 9]
    assert np.array_equal(some, read[some_labels])  # seeded by place, not by row
    noise = (read - labels[:, None, None, None]) / 0.5
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 4 / np.sqrt(80)


# Contexts


def with_contexts(source, count=3, dtype=np.float32):
    """Context k of example n is 10 n + k throughout."""
    for n in range(len(source)):
        contexts = np.full((count, 2, 3), 10 * n, dtype) + np.arange(count)[:, None, None]
        source[n] = {**source[n], "contexts": contexts.astype(dtype)}
    return source


def images_of(source):
    return Examples(source[n] for n in range(len(source)))


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_one_of_the_contexts_is_taken_at_random(kind):
    source = with_contexts(images_of(numbered_source()) if kind == "images" else latents())
    channels = 1 if kind == "images" else 5
    counts = np.zeros((10, 3))
    dataset = make_dataset(source, 4, 5, channels=channels, seed=3)
    for batch in itertools.islice(dataset, 60):
        assert set(batch) == {"image", "label", "context"}
        assert batch["context"].shape == (5, 2, 3)
        assert batch["context"].dtype == np.float32
        chosen = batch["context"][:, 0, 0] - 10 * batch["label"]
        assert (batch["context"] == batch["context"][:, :1, :1]).all()
        np.add.at(counts, (batch["label"], chosen.astype(int)), 1)
    assert counts.sum() == 300
    share = counts.sum(axis=0) / 300
    assert (np.abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / 300)).all()
    assert (counts > 0).all()


def test_contexts_change_neither_order_nor_images_nor_draws():
    plain = latent_batches(latents(std=1.0), 5, horizontal_flip=True)
    source = with_contexts(latents(std=1.0))
    for batch, expected in zip(latent_batches(source, 5, horizontal_flip=True), plain, strict=True):
        assert np.array_equal(batch["image"], expected["image"])
        assert np.array_equal(batch["label"], expected["label"])


def test_an_example_without_captions_has_the_null_text():
    source = with_contexts(latents(), count=0, dtype=np.float16)
    (batch,) = latent_batches(source, 1)
    assert batch["context"].dtype == np.float32
    assert np.array_equal(batch["context"], np.zeros((5, 2, 3)))


# shards


@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_the_rows_of_each_batch(count):
    """With flips, drawn latents and a start in the middle, over the end of an epoch."""
    source = latents(std=0.5)
    options = {"batch_size": 6, "channels": 5, "horizontal_flip": True, "seed": 3, "start_step": 2}
    whole = list(itertools.islice(make_dataset(source, 4, **options), 4))
    parts = [
        list(itertools.islice(make_dataset(source, 4, **options, shard=(index, count)), 4))
        for index in range(count)
    ]
    for number, batch in enumerate(whole):
        for name, rows in batch.items():
            together = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(together, rows)


def test_a_process_reads_its_share_alone():
    class Counted(ArraySource):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    images = np.zeros((100, 4, 4, 1), np.uint8)
    source = Counted("counted", images, np.arange(100))
    dataset = make_dataset(source, 4, 20, channels=1, num_epochs=1, shard=(1, 4))
    assert len([batch["label"] for batch in dataset]) == 5
    assert source.read == 25


@pytest.mark.parametrize("shard", [(0, 2), (3, 3), (-1, 3)])
def test_shards_that_do_not_exist_are_refused(shard):
    message = r"A shard is \(index, count\), with a count that divides the batch"
    with pytest.raises(ValueError, match=message):
        batches(numbered_source(), 1, shard=shard)
