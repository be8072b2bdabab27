"""Augmentation: against the official pipeline, by its properties, and in training."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_cdiff import DiffusionModel, objectives, parameterizations, sample, schedules
from keras_cdiff.augmentation import Augmentation
from keras_cdiff.ema import FixedDecay

BACKEND = keras.backend.backend()


def numpy(tensors):
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def modes():
    """Ways to run a function of tensors: as it is, and compiled."""
    if BACKEND == "jax":
        import jax

        return {"compiled": jax.jit}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        dynamic = [tf.TensorSpec([None, *s]) for s in ((16, 16, 3), (11,), (4,))]
        return {
            "eager": lambda f: f,
            "graph": lambda f: tf.function(f, input_signature=dynamic),
            "compiled": lambda f: tf.function(f, jit_compile=True),
        }
    return {"eager": lambda f: f}


@pytest.mark.parametrize("mode", modes())
def test_images_and_parameters_equal_the_official_ones(golden, mode):
    data = golden("edm_augment")
    draws = [
        np.float32(data[f"in/cifar_nonleaky/draw_{number:02d}"]).reshape(-1, 8)
        for number in range(14)
    ]
    for coin in (0, 2):
        draws[coin] = 0.25 + 0.5 * draws[coin]  # the official ones are 0 or 1
    uniform = np.concatenate([draws[i] for i in (0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13)]).T
    normal = np.concatenate([draws[i] for i in (4, 8, 12)]).T
    images = np.moveaxis(data["in/cifar_nonleaky/images"], 1, -1)
    transform = modes()[mode](Augmentation(probability=0.5).transform)
    arrays = map(np.ascontiguousarray, (images, uniform, normal))
    images, parameters = numpy(transform(*map(ops.convert_to_tensor, arrays)))
    expected = np.moveaxis(data["out/cifar_nonleaky/images"], 1, -1)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    np.testing.assert_allclose(parameters, data["out/cifar_nonleaky/labels"], atol=1e-6)


def smooth_images(side=16):
    rows, columns = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij")
    image = np.stack([np.cos(np.pi * rows), np.cos(2 * np.pi * columns), rows * columns], axis=-1)
    return np.float32(image[None])


NOTHING = dict.fromkeys(("x_flip", "y_flip", "scale", "rotation", "anisotropy", "translation"), 0.0)


def one(uniform=None, normal=None, **multipliers):
    """A smooth image after the transformations named, with chosen random numbers."""
    u, n = np.full((1, 11), 0.5, "float32"), np.zeros((1, 4), "float32")
    for array, values in ((u, uniform or {}), (n, normal or {})):
        for index, value in values.items():
            array[0, index] = value
    augmentation = Augmentation(1.0, **{**NOTHING, **multipliers})
    arrays = map(ops.convert_to_tensor, (smooth_images(), u, n))
    image, parameters = numpy(augmentation.transform(*arrays))
    return image, parameters[0]


def test_each_transformation_does_what_its_name_says():
    image = smooth_images()
    for multipliers in ({}, {"scale": 1}, {"rotation": 1}, {"anisotropy": 1}, {"translation": 1}):
        unchanged, parameters = one(**multipliers)  # by an amount of zero
        np.testing.assert_allclose(unchanged, image, atol=1e-5)
        np.testing.assert_array_equal(parameters, np.zeros(9))
    mirrored, parameters = one({0: 0.9}, x_flip=1)
    np.testing.assert_array_equal(mirrored, image[:, :, ::-1])
    np.testing.assert_array_equal(parameters, np.eye(9)[0])
    mirrored, parameters = one({2: 0.9}, y_flip=1)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    np.testing.assert_array_equal(parameters, np.eye(9)[1])
    turned, parameters = one({5: 0.25}, rotation=1)  # a quarter turn
    np.testing.assert_allclose(np.abs(parameters), [0, 0, 0, 1, 1, 0, 0, 0, 0], atol=1e-6)
    quarters = [np.rot90(image, k, axes=(1, 2)) for k in (1, 3)]
    assert min(np.abs(turned - quarter).max() for quarter in quarters) < 2e-2
    # Two pixels to the right: 1 / 8 of the side is one standard deviation.
    moved, parameters = one(normal={2: 1.0}, translation=1)
    np.testing.assert_allclose(moved[:, :, 2:], image[:, :, :-2], atol=1e-4)
    np.testing.assert_array_equal(parameters, np.eye(9)[7])
    # Twice as large: the middle half of the image fills it.
    larger, parameters = one(normal={0: 5.0}, scale=1)
    np.testing.assert_allclose(parameters, 5 * np.eye(9)[2])
    places = (np.arange(16) + 0.5) / 32 + 0.25
    np.testing.assert_allclose(larger[0, :, 5, 0], np.cos(np.pi * places), atol=2e-2)
    # Wider, and lower by as much.
    wider, parameters = one(normal={1: 5.0}, anisotropy=1)
    np.testing.assert_allclose(parameters, 5 * np.eye(9)[5])
    np.testing.assert_allclose(wider[0, 5, :, 1], np.cos(2 * np.pi * places), atol=3e-2)
    middle = np.arange(5, 11)
    lower = np.cos(np.pi * ((middle + 0.5 - 8) / 8 + 0.5))
    np.testing.assert_allclose(wider[0, middle, 5, 0], lower, atol=3e-2)


def test_transformations_come_as_often_and_as_strong_as_asked():
    augmentation = Augmentation(0.25, y_flip=2.0, scale=3.0)
    images = ops.zeros((8000, 2, 2, 1))
    _, parameters = augmentation(images, keras.random.SeedGenerator(1))
    x, y, scale, cos, sin, aniso_x, aniso_y, move_x, move_y = ops.convert_to_numpy(parameters).T

    def frequency(values):
        return np.mean(values != 0)

    np.testing.assert_allclose(
        [frequency(x), frequency(y), frequency(scale), frequency(sin), frequency(move_x)],
        [0.5, 0.25, 0.75, 0.25, 0.25],
        atol=0.025,
    )
    assert np.all((move_x != 0) == (move_y != 0))
    np.testing.assert_allclose((cos + 1) ** 2 + sin**2, 1.0, atol=1e-5)
    anisotropic = aniso_x != 0
    np.testing.assert_allclose(np.mean(anisotropic), 0.25, atol=0.025)
    np.testing.assert_allclose(frequency(aniso_y[anisotropic]), 0.5, atol=0.05)
    amount = np.hypot(aniso_x, aniso_y)[anisotropic]
    for strength in (scale[scale != 0], move_x[move_x != 0], move_y[move_y != 0], amount):
        np.testing.assert_allclose(np.mean(strength**2), 1.0, atol=0.15)
    for values in (scale, sin, aniso_y, move_x):
        np.testing.assert_allclose(np.mean(values[values != 0]), 0.0, atol=0.12)
    assert np.corrcoef(scale, move_x)[0, 1] < 0.05


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (lambda: Augmentation(1.5), "probability=1.5"),
        (lambda: Augmentation(scale=-1), "scale=-1"),
        (lambda: Augmentation(rotation_max=2), "rotation_max=2"),
        (lambda: Augmentation(translation_std=float("nan")), "translation_std=nan"),
        (
            lambda: Augmentation()(ops.zeros((2, 8, 6, 3)), keras.random.SeedGenerator(0)),
            r"images with shape \(2, 8, 6, 3\)",
        ),
    ],
)
def test_bad_input_is_named(make, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        make()


# In a model


@keras.saving.register_keras_serializable("keras_cdiff_tests")
class ToldNetwork(keras.Model):
    """Answers scale x + gain (the sum of what it is told of the augmentation)."""

    def __init__(self, augment_features=9):
        super().__init__(autocast=False)
        self.image_size, self.channels, self.out_channels, self.num_classes = 8, 3, 3, 0
        self.augment_features = augment_features
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")
        self.built = True

    def call(self, x, level, label=None, context=None, augment=None, training=False):
        told = 0.0
        if augment is not None:
            told = self.gain * ops.sum(augment, axis=1)[:, None, None, None]
        return self.scale * x + told

    def get_config(self):
        return {"augment_features": self.augment_features}


def make_told(seed=0, augmentation=Augmentation(0.5), ema=None, **network):  # noqa: B008
    parts = parameterizations.Sample(), objectives.LogNormalSigma()
    return DiffusionModel(
        ToldNetwork(**network),
        schedules.EDM(),
        *parts,
        ema=ema,
        seed=seed,
        augmentation=augmentation,
    )


def test_a_training_batch_is_augmented_and_its_network_told(batch):
    images = batch[0]
    model = make_told()
    tensors = model({"image": images, "level": np.full(16, 0.5, "float32")}, training=True)
    drawn = keras.tree.map_structure(ops.convert_to_numpy, tensors)
    # The same random numbers, drawn by hand.
    generator = keras.random.SeedGenerator(0)
    key = model._training_key
    state = ops.convert_to_tensor([key, 0])
    generator.state.assign(ops.cast(state, generator.state.dtype))
    expected, parameters = numpy(model.augmentation(ops.convert_to_tensor(images), generator))
    assert np.abs(expected - images).max() > 0.1
    np.testing.assert_allclose(drawn["image"], expected, atol=1e-6)
    noisy = expected + 0.5 * drawn["noise"]
    c_in = drawn["coefficients"].in_[:, None, None, None]
    told = parameters.sum(axis=1)[:, None, None, None]
    np.testing.assert_allclose(drawn["output"], c_in * noisy + told, atol=1e-4)
    losses = ops.convert_to_numpy(model.process.losses(**tensors))
    error = np.mean((drawn["output"] - expected) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses / error, (losses / error)[0], rtol=1e-4)
    loss = model.compute_loss({"image": images}, y_pred=tensors)
    np.testing.assert_allclose(ops.convert_to_numpy(loss), losses.mean(), rtol=1e-5)


def test_evaluation_and_sampling_are_not_augmented(batch):
    images = ops.convert_to_tensor(batch[0])
    augmented, plain = make_told(), make_told(augmentation=None)
    drawn = [model({"image": images}) for model in (augmented, plain)]
    for name in drawn[0]:
        np.testing.assert_array_equal(*numpy(each[name] for each in drawn))
    np.testing.assert_array_equal(ops.convert_to_numpy(drawn[0]["image"]), batch[0])
    for model in (augmented, plain):
        model.compile()
    samples = [sample(model, 2, progress=False) for model in (augmented, plain)]
    np.testing.assert_array_equal(*samples)


def test_augmented_training_resumes_exactly(batch, quick):
    models = make_told(), make_told()
    weights = []
    for model in models:
        model.compile(keras.optimizers.SGD(0.01), **quick)
    for model in (models[0], *models):  # the second goes on from the first's two steps
        if weights:
            model.set_weights(weights[0])
        model.fit(batch[0][:8], batch_size=8, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for a, b in zip(weights[1], weights[2], strict=True):
        np.testing.assert_array_equal(a, b)
    # What the network makes of the parameters is trained.
    assert ops.convert_to_numpy(models[0].backbone.gain) != 1.0


def test_configuration_survives_saving(tmp_path):
    augmentation = Augmentation(0.3, y_flip=0, scale_std=0.1)
    model = make_told(augmentation=augmentation, ema=FixedDecay(0.5))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.augmentation.get_config() == augmentation.get_config()
    assert copy.get_config() == model.get_config()


def test_the_network_must_be_told():
    for parts, received in (
        ({"augment_features": 0}, "backbone=ToldNetwork with augment_features=0"),
        ({"augment_features": 8}, "backbone=ToldNetwork with augment_features=8"),
        ({"augmentation": "flips"}, "augmentation='flips'"),
    ):
        with pytest.raises(ValueError, match=f"Received: {received}"):
            make_told(**parts)
    small = {"image_size": 8, "width": 16, "depth": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="backbone=DiT with augment_features=0"):
        DiffusionModel.from_preset("dit_emoji16", **small, augmentation=Augmentation())
    assert (
        DiffusionModel.from_preset("dit_emoji16", **small, augmentation=None).augmentation is None
    )
