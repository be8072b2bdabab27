"""Sets of images: read from sources, drawn from models."""

import numpy as np
import pytest

from keras_cdiff import data, sample
from keras_cdiff.evaluation.image_sets import GeneratedImages, SourceImages, proportional_labels
from keras_cdiff.samplers import Heun


def read(images, start=0, batch_size=4):
    return [image for batch in images.batches(start, batch_size) for image in batch]


@pytest.mark.backend_free
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_source_is_read_in_order_from_any_image_on(photos, batch_size):
    array = photos(7)
    images = SourceImages(array)
    assert len(images) == 7
    np.testing.assert_array_equal(read(images, batch_size=batch_size), array)
    np.testing.assert_array_equal(read(images, 4, batch_size), array[4:])
    assert images.describe() == {
        **{"images": "array", "count": 7, "image_size": [8, 8], "labels": None}
    }


@pytest.mark.backend_free
def test_some_images_lie_at_even_distances(photos):
    array, labels = photos(10), np.repeat([0, 1], 5)
    images = SourceImages(data.ArraySource("ten", array, labels), num_images=4)
    np.testing.assert_array_equal(read(images), array[[0, 3, 6, 9]])
    np.testing.assert_array_equal(images.labels(), [0, 0, 1, 1])
    assert images.describe()["labels"] == {"0": 2, "1": 2}


@pytest.mark.backend_free
def test_a_path_is_a_source(photos, tmp_path):
    np.savez(tmp_path / "a.npz", images=photos(3))
    assert len(SourceImages(tmp_path / "a.npz")) == 3
    data.save_image_grid(photos(1), tmp_path / "folder" / "a.png", padding=0)
    np.testing.assert_array_equal(read(SourceImages(tmp_path / "folder")), photos(1))


@pytest.mark.backend_free
def test_images_are_prepared_as_for_training():
    source = data.open_source("emoji")
    (image,) = read(SourceImages("emoji", image_size=16, channels=1, num_images=1))
    expected = data.to_uint8(data.prepare_image(source[0]["image"], 16, 1))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.backend_free
def test_transparency_is_laid_on_white_and_grey_stays():
    rgba = np.zeros((2, 4, 4, 4), np.uint8)
    np.testing.assert_array_equal(read(SourceImages(rgba)), np.full((2, 4, 4, 3), 255))
    assert np.shape(read(SourceImages(rgba[..., :1]))) == (2, 4, 4, 1)
    assert np.shape(read(SourceImages(rgba[..., :1], channels=3))) == (2, 4, 4, 3)


@pytest.mark.backend_free
def test_the_digest_tells_whatever_decides_the_pixels(photos):
    array = photos(7)
    sets = [
        SourceImages(array),
        SourceImages(array, num_images=6),
        SourceImages(array, image_size=4),
        SourceImages(array, channels=1),
        SourceImages(photos(7, seed=1)),
    ]
    assert len({images.digest() for images in sets}) == len(sets)
    assert SourceImages(array.copy(), name="again").digest() == sets[0].digest()


@pytest.mark.backend_free
@pytest.mark.parametrize("num_images", [0, 8])
def test_a_source_has_only_so_many_images(photos, num_images):
    with pytest.raises(ValueError, match=f"in \\[1, 7\\].*Received: num_images={num_images}"):
        SourceImages(photos(7), num_images=num_images)


def test_sample_i_is_that_of_its_seed_and_label(make_model):
    model = make_model(depth=1)
    for weight in model.ema_backbone.trainable_variables + model.ema_backbone.weights:
        weight.assign(weight + 0.01)
    images = GeneratedImages(model, 5, Heun(2), seed=3, guidance=2.0, batch_size=2)
    label = [0, 1, 2, 0, 1]
    options = {"seed": 3, "label": label, "guidance": 2.0, "progress": False}
    expected = data.to_uint8(sample(model, 5, Heun(2), batch_size=2, **options))
    np.testing.assert_array_equal(read(images), expected)
    np.testing.assert_allclose(np.int32(read(images, 3)), np.int32(expected[3:]), atol=1)
    model.iteration.assign(12)
    described = images.describe()
    assert described["sampler"].startswith("Heun(num_steps=2")
    assert described["ema"] == "FixedDecay(decay=0.9)"
    assert described["seeds"] == [3, 7]
    assert described["labels"] == {"0": 2, "1": 2, "2": 1}
    assert (described["guidance"], described["iteration"]) == (2.0, 12)
    assert described["image_size"] == [8, 8]
    model.iteration.assign(0)  # as of a weights file alone
    assert (images.describe()["iteration"], images.describe()["ema"]) == (None, None)


@pytest.mark.backend_free
def test_samples_that_are_not_finite_are_told_apart(make_model):
    model = make_model()
    weight = model.ema_backbone.weights[0]
    weight.assign(weight * np.nan)
    with pytest.raises(FloatingPointError, match="samples of 'samples' that are not finite"):
        read(GeneratedImages(model, 2, Heun(2)))


@pytest.mark.backend_free
def test_the_digest_of_samples_tells_whatever_decides_them(make_model):
    model = make_model()
    options = {"num_images": 4, "sampler": Heun(2)}
    changes = [
        {},
        {"num_images": 5},
        {"sampler": Heun(3)},
        {"seed": 1},
        {"label": 2},
        {"guidance": 2.0},
    ]
    digests = {GeneratedImages(model, **{**options, **change}).digest() for change in changes}
    assert len(digests) == len(changes)
    again = GeneratedImages(model, **options, batch_size=3, name="again").digest()
    assert again in digests
    weight = model.ema_backbone.weights[0]
    weight.assign(weight + 0.1)
    assert GeneratedImages(model, **options).digest() not in digests
    raw = GeneratedImages(model, **options, use_ema=False)
    assert raw.describe()["ema"] is None
    assert raw.digest() == again  # of equal weights, as they were


@pytest.mark.backend_free
@pytest.mark.parametrize("bad", [{"num_images": 0}, {"seed": -1}, {"batch_size": 0.5}])
def test_numbers_out_of_range_are_refused(make_model, bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        GeneratedImages(make_model(), **{"num_images": 2, **bad})


@pytest.mark.backend_free
def test_latents_are_refused(make_model):
    with pytest.raises(ValueError, match="Received: a model of 4 channels"):
        GeneratedImages(make_model(channels=4), 2)


@pytest.mark.backend_free
def test_labels_follow_the_proportions_of_a_data_set():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    drawn = proportional_labels(labels, 10)
    np.testing.assert_array_equal(np.bincount(drawn), [5, 3, 2])
    assert not np.array_equal(drawn, np.sort(drawn))
    np.testing.assert_array_equal(drawn, proportional_labels(np.flip(labels), 10))
    np.testing.assert_array_equal(np.bincount(proportional_labels(labels, 1000)), [500, 300, 200])
