"""The compiled evaluation of a model's network, kept between calls of `sample`."""

import weakref

import keras

from keras_cdiff.samplers.guidance import Guidance

_estimators = weakref.WeakKeyDictionary()  # model -> {options: Estimator}


class Estimator(keras.Model):
    """Runs `model.estimate` as Keras runs `predict`: compiled where the model trains compiled.

    It tracks the one network that is asked, whose weights it shares, and not the model, so that it
    lives as long as the model, changes nothing in it and is saved nowhere.
    """

    def __init__(self, model: keras.Model, use_ema: bool, guided: bool, channels: int | None):
        # Noise levels must arrive in float32 under every policy; the network keeps its own.
        super().__init__(dtype="float32", autocast=False)
        self.network = model.network(use_ema)
        self.model = weakref.ref(model)
        self.use_ema, self.guided, self.channels = use_ema, guided, channels
        self.jit_compile = model.jit_compile
        self.run_eagerly = model.run_eagerly
        self.built = True

    def call(self, inputs: dict) -> dict:
        estimate = self.model().estimate(
            inputs["x"],
            inputs["level"],
            label=inputs.get("label"),
            context=inputs.get("context"),
            guidance=inputs["guidance"] if self.guided else 1.0,
            guidance_channels=self.channels,
            use_ema=self.use_ema,
        )
        return {name: value for name, value in estimate.items() if value is not None}


def estimator(model: keras.Model, use_ema: bool, guidance: Guidance) -> Estimator:
    """Returns the estimator of `model`, the same one whenever the same graph is asked for.

    Args:
        model: a `DiffusionModel`.
        use_ema: whether the averaged weights answer.
        guidance: its scale is an input of the graph, unless it is 1.
    """
    options = (use_ema, guidance.active, guidance.channels, model.jit_compile, model.run_eagerly)
    estimators = _estimators.setdefault(model, {})
    if options not in estimators:
        estimators[options] = Estimator(model, *options[:3])
    return estimators[options]
