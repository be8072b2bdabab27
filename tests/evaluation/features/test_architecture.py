"""Two models have one description if they compute the same from the same weights, anywhere."""

import os
import subprocess
import sys

import keras
import pytest
from keras import layers, ops

from keras_cdiff.evaluation.features import from_model
from keras_cdiff.evaluation.features.architecture import architecture

pytestmark = pytest.mark.backend_free

MODEL = """
import keras
from keras import layers

def make_model():
    images = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer="ones")(images)
    x = layers.BatchNormalization()(x + layers.Activation("tanh")(x))
    inner = keras.Sequential([layers.Dense(4, kernel_initializer="ones"), layers.ReLU()])
    return keras.Model(images, layers.GlobalAveragePooling2D()(inner(x)))
"""

ALONE = """
import sys
sys.modules["tensorflow"] = None  # Keras would import it to write any configuration
"""

PROGRAM = """
make_model()  # what was built before gives other names
from keras_cdiff.evaluation.features import from_model
extractor = from_model(make_model())
print(extractor.name, extractor.version)
"""


def convolution(pooling=layers.GlobalAveragePooling2D, activation="relu", **options):
    images = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation=activation, **options)(images)
    return keras.Model(images, pooling()(x))


class Own(keras.Model):
    """A model whose config cannot be had."""

    def __init__(self, pooling):
        super().__init__()
        self.pooling = pooling

    def call(self, images):
        return self.pooling(images)


class Other(Own):
    """The same, by another name."""


class Scaled(layers.Layer):
    """A layer without weights that tells its argument, or does not."""

    def __init__(self, factor, tells=True, **options):
        super().__init__(**options)
        self.factor, self.tells = factor, tells

    def call(self, images):
        return images * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor} if self.tells else {}


@pytest.mark.parametrize(
    "make",
    [
        convolution,
        lambda: keras.Sequential([keras.Input((6, 6, 3)), layers.GlobalMaxPooling2D()]),
        lambda: Own(layers.GlobalMaxPooling2D()),
        lambda: convolution(pooling=lambda: lambda x: ops.mean(Scaled(2.0)(x), (1, 2))),
    ],
)
def test_what_was_built_before_does_not_matter(make):
    assert architecture(make()) == architecture(make())


def test_models_that_differ_in_anything_differ():
    branches = []
    for swapped in (False, True):
        images = keras.Input((6, 6, 3))
        parts = [layers.Dense(3, activation=name)(images) for name in ("relu", "tanh")]
        parts = parts[::-1] if swapped else parts
        branches.append(keras.Model(images, ops.mean(parts[0] - 2 * parts[1], (1, 2))))
    models = [
        convolution(),
        convolution(layers.GlobalMaxPooling2D),
        convolution(activation="tanh"),
        convolution(dtype="mixed_bfloat16"),
        convolution(padding="same"),
        convolution(strides=2),
        convolution(dilation_rate=2),
        convolution(lambda: lambda x: ops.mean(x, (1, 2))),
        convolution(lambda: lambda x: ops.max(x, (1, 2))),
        *(convolution(lambda f=f: lambda x: ops.mean(Scaled(f)(x), (1, 2))) for f in (1.0, 2.0)),
        *branches,
        *(
            kind(pooling())
            for kind in (Own, Other)
            for pooling in (layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D)
        ),
        *(
            keras.Sequential([keras.Input((6, 6, 3)), pooling(2), layers.Flatten()])
            for pooling in (layers.MaxPooling2D, layers.AveragePooling2D)
        ),
    ]
    assert len({architecture(model) for model in models}) == len(models)


def test_average_and_max_pooling_are_two_extractors():
    versions = []
    for pooling in (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D):
        model = convolution(pooling, kernel_initializer="ones")
        versions.append(from_model(model, name="conv").version)
    assert versions[0] != versions[1]


def test_the_batch_that_built_a_model_does_not_matter():
    texts = set()
    for count in (1, 3):
        model = keras.Sequential([layers.Dense(2), layers.GlobalAveragePooling2D()])
        model(ops.zeros((count, 6, 6, 3)))
        texts.add(architecture(model))
    assert len(texts) == 1


def test_the_version_is_the_same_in_another_process_of_another_backend():
    other = "jax" if keras.backend.backend() != "jax" else "torch"
    names: dict = {}
    exec(MODEL, names)
    extractor = from_model(names["make_model"]())
    printed = subprocess.run(
        [sys.executable, "-c", ALONE + MODEL + PROGRAM],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split() == [extractor.name, extractor.version]
