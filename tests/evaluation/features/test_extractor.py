"""Extractors: what the network sees, what a result says of it, and input that is refused."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff.evaluation.features import (
    from_model,
    inception,
    mobilenet_v2,
    open_extractor,
)
from keras_cdiff.evaluation.features.resize import MODES, resize_image
from keras_cdiff.weights.weights_file import weights_version


class Pixels(keras.Model):
    """Gives the pixels that it sees as features, and keeps count of its graphs."""

    def __init__(self):
        super().__init__()
        self.graphs = 0

    def call(self, images):
        self.graphs += 1
        return ops.reshape(images, (-1, images.shape[1] * images.shape[2] * images.shape[3]))


@pytest.fixture
def photos():
    """uint8 images (3, 5, 7, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype("uint8")


@pytest.fixture
def small_model():
    """A function: seed -> a model with weights, of features (B, 4) and logits (B, 3)."""

    def make(seed=0, size=6):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((size, size, 3))
        x = keras.layers.Conv2D(4, 3)(inputs)
        x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, [x, keras.layers.Dense(3)(x)], name="small")

    return make


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_network_sees_resized_pixels_in_its_range_in_float32(photos, policy):
    model = Pixels()  # of the policy float32 in any case
    keras.config.set_dtype_policy(policy)
    extractor = from_model(model, image_size=(4, 6), value_range=(-1, 1), resize="clean")
    actual, logits = extractor(photos)
    expected = [resize_image(image, (4, 6), "clean").ravel() / 127.5 - 1 for image in photos]
    assert (actual.dtype, logits, extractor.feature_width) == (np.float32, None, 72)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_resize_is_the_one_named(photos, mode):
    extractor = from_model(Pixels(), image_size=3, resize=mode)
    expected = [resize_image(image, (3, 3), mode).ravel() for image in photos]
    np.testing.assert_allclose(extractor(photos)[0], expected, rtol=0, atol=1e-3)
    assert extractor.describe()["resize"] == extractor.resize == mode


def test_grey_images_are_repeated(photos):
    extractor = from_model(Pixels(), image_size=(5, 7))
    grey = extractor(photos[..., :1])[0]
    np.testing.assert_array_equal(grey, photos[..., :1].repeat(3, axis=-1).reshape(3, -1))


def test_a_network_of_grey_images(photos):
    inputs = keras.Input((5, 7, 1))
    extractor = from_model(keras.Model(inputs, keras.layers.Flatten()(inputs)))
    assert (extractor.channels, extractor.image_size) == (1, (5, 7))
    np.testing.assert_array_equal(extractor(photos[..., :1])[0], photos[..., 0].reshape(3, -1))
    with pytest.raises(ValueError, match=r"C being 1; .*Received: images of shape"):
        extractor(photos)


def test_features_and_logits_do_not_depend_on_the_batch(small_model, photos):
    model = small_model()
    extractor = from_model(model)
    assert (extractor.feature_width, extractor.num_logits) == (4, 3)
    whole = extractor(photos)
    resized = np.stack([resize_image(image, (6, 6)) for image in photos])
    for actual, expected in zip(whole, model(resized, training=False), strict=True):
        np.testing.assert_allclose(actual, ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-3)
    for part in (slice(0, 1), slice(1, 3)):
        for actual, expected in zip(extractor(photos[part]), whole, strict=True):
            np.testing.assert_allclose(actual, expected[part], rtol=1e-4, atol=1e-4)


def test_a_short_last_batch_needs_no_graph_of_its_own(photos):
    model = Pixels()
    extractor = from_model(model, image_size=2)
    model.run_eagerly = False
    extractor(photos)
    graphs = model.graphs
    parts = [extractor(photos[:count])[0] for count in (1, 2)]
    if keras.backend.backend() != "torch":  # which has no graphs
        assert model.graphs == graphs
    np.testing.assert_allclose(parts[1], extractor(photos)[0][:2], rtol=1e-6)
    np.testing.assert_allclose(parts[0], parts[1][:1], rtol=1e-6)


@pytest.mark.backend_free
def test_images_of_several_sizes(photos):
    extractor = from_model(Pixels(), image_size=2)
    for images in (photos, photos[:, :4], photos):
        expected = [resize_image(image, (2, 2)).ravel() for image in images]
        np.testing.assert_allclose(extractor(images)[0], expected, rtol=0, atol=1e-3)


@pytest.mark.backend_free
def test_what_a_result_says_of_its_extractor(small_model):
    extractor = from_model(small_model(), name="mine", resize="legacy_pytorch")
    assert json.loads(json.dumps(extractor.describe())) == {
        "name": "mine",
        "version": extractor.version,
        "feature_width": 4,
        "num_logits": 3,
        "image_size": [6, 6],
        "resize": "legacy_pytorch",
    }
    assert re.fullmatch("[0-9a-f]{16}", extractor.version)
    assert from_model(small_model()).name == "small"
    names = {from_model(keras.Sequential([keras.layers.Flatten()]), None, 2).name for _ in "ab"}
    assert names == {"sequential"}  # not sequential_1 and the like
    assert (
        from_model(keras.Sequential([keras.layers.Flatten()], name="net_2"), None, 2).name
        == "net_2"
    )


@pytest.mark.backend_free
def test_the_version_is_of_what_the_network_computes(small_model):
    model = small_model(seed=1)
    version = from_model(model).version
    again = small_model(seed=2)  # its layers have other names
    assert from_model(again).version != version
    again.set_weights(model.get_weights())
    assert from_model(again).version == version
    assert from_model(model, value_range=(0, 1)).version != version
    assert from_model(keras.Model(model.inputs, model.outputs[0])).version != version
    model.layers[1].bias.assign(np.ones(4))
    assert from_model(model).version != version


@pytest.mark.backend_free
@pytest.mark.parametrize("mode", MODES)
def test_inception_sees_what_the_graph_of_2015_sees(monkeypatch, photos, mode):
    asked = []
    answer = Pixels(), {"weight": np.ones(1)}
    monkeypatch.setattr(
        "keras_cdiff.evaluation.features.extractor.inception_network",
        lambda state: asked.append(state) or answer,
    )
    extractor = inception({"fc.weight": np.ones(1)}, resize=mode)
    assert asked == [{"fc.weight": np.ones(1)}]
    assert (extractor.name, extractor.image_size) == ("inception", (299, 299))
    resized = resize_image(photos[0], (299, 299), mode)
    actual = extractor(photos[:1])[0].reshape(299, 299, 3)
    np.testing.assert_allclose(actual, (resized - 128) / 128, rtol=0, atol=1e-5)


@pytest.mark.backend_free
def test_mobilenet_v2_from_a_file(torchvision, random_weights, run_torch, photos, tmp_path):
    import torch

    reference = torchvision.models.mobilenet_v2(weights=None).eval()
    state_dict = random_weights(reference)
    tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
    reference.load_state_dict(tensors)
    torch.save(tensors, tmp_path / "weights.pth")

    keras.config.set_dtype_policy("mixed_bfloat16")  # which extractors do not follow
    extractor = open_extractor(f"mobilenet_v2:{tmp_path / 'weights.pth'}@32")
    assert extractor.image_size == (32, 32)
    assert (extractor.feature_width, extractor.num_logits) == (1280, 1000)
    used = {name: array for name, array in state_dict.items() if array.ndim}
    assert extractor.version == weights_version(used)
    resized = np.stack([resize_image(image, (32, 32)) for image in photos])
    normalized = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = run_torch(reference, normalized.astype("float32"))
    actual = extractor(photos)[1]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * expected.max())


@pytest.mark.backend_free
def test_published_weights_are_fetched(monkeypatch, tmp_path):
    asked = []
    np.savez(tmp_path / "other.npz", weight=np.zeros(1))
    monkeypatch.setattr(
        "keras_cdiff.evaluation.features.extractor.fetch",
        lambda n: asked.append(n) or tmp_path / "other.npz",
    )
    with pytest.raises(ValueError, match="must be those of the FID Inception-v3"):
        open_extractor("inception")
    with pytest.raises(ValueError, match="must be those of torchvision's mobilenet_v2"):
        open_extractor("mobilenet_v2@96")
    assert asked == ["inception", "mobilenet_v2"]


@pytest.mark.backend_free
def test_a_saved_model_is_opened(small_model, photos, tmp_path):
    model = small_model()
    model.save(tmp_path / "model.keras")
    extractor = open_extractor(f"keras:{tmp_path / 'model.keras'}", resize="legacy_pytorch")
    expected = from_model(model, resize="legacy_pytorch")
    assert extractor.describe() == expected.describe()
    np.testing.assert_array_equal(extractor(photos)[0], expected(photos)[0])


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 5, 7, 3), "float32"),
        np.zeros((2, 5, 7, 3), "int64"),
        np.zeros((5, 7, 3), "uint8"),
        np.zeros((0, 5, 7, 3), "uint8"),
        np.zeros((2, 5, 7, 4), "uint8"),
        np.zeros((2, 3, 5, 7), "uint8"),
    ],
)
def test_images_that_are_refused(images):
    extractor = from_model(Pixels(), image_size=2)
    message = f"takes uint8 images .*Received: images of shape {images.shape}, dtype {images.dtype}"
    with pytest.raises(ValueError, match=re.sub(r"([()])", r"\\\1", message)):
        extractor(images)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": "bicubic"}, "Received: resize='bicubic'"),
        ({"image_size": 0}, r"Received: image_size=\(0, 0\)"),
        ({"value_range": (1, -1)}, r"Received: value_range=\(1, -1\)"),
        ({"value_range": (0, np.inf)}, r"Received: value_range=\(0, inf\)"),
        ({"image_size": 8}, r"must take float32 images \(None, 8, 8, 3\).*a network 'small'"),
    ],
)
def test_arguments_that_are_refused(small_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_model(small_model(), **arguments)


@pytest.mark.backend_free
def test_models_that_are_refused():
    inputs = keras.Input((4, 4, 3))
    with pytest.raises(ValueError, match=r"output shapes \[\(None, 4, 4, 3\)\]"):
        from_model(keras.Model(inputs, keras.layers.ReLU()(inputs)))
    vectors = keras.Input((4,))
    with pytest.raises(ValueError, match=r"inputs \[\(None, 4\)\]"):
        from_model(keras.Model(vectors, keras.layers.ReLU()(vectors)))
    with pytest.raises(ValueError, match=r"made from a keras\.Model"):
        from_model(keras.layers.Flatten())


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "spec", ["vgg", "keras", "keras:", "inception@96", "mobilenet_v2@x", "mobilenet_v2:", "", None]
)
def test_specs_that_are_refused(spec):
    with pytest.raises(ValueError, match=f"An extractor is .*Received: extractor={spec!r}"):
        open_extractor(spec)


@pytest.mark.backend_free
def test_files_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no such file of weights"):
        open_extractor("inception:missing.pth")
    (tmp_path / "model.keras").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="must be a model saved by Keras"):
        open_extractor(f"keras:{tmp_path / 'model.keras'}")
    with pytest.raises(ValueError, match=r"at least 32 pixels.*Received: image_size=16"):
        mobilenet_v2(image_size=16)
