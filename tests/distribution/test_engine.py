"""What engines refuse, and what they say of themselves."""

import keras
import pytest

from keras_cdiff import distribution
from keras_cdiff.distribution import Processes

BACKEND = keras.backend.backend()


class Two(Processes):
    """The second of two processes, of which the first answers as it does."""

    index, count = 1, 2

    def _all_gather(self, message):
        return [message, message]


def test_one_device_is_the_rule():
    with distribution.distribute("none") as engine:
        assert engine.shard == (0, 1)
        assert engine.num_replicas == 1
        assert engine.describe() == ""
        dataset = object()
        assert engine.batches(dataset) is dataset
        engine.check_batch_size(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pipeline",), "must be one of none, data, model. Received: distribution='pipeline'"),
        (("none", Two()), "give distribution data or model.*'none' with 2 processes"),
        (("data", None, 4), "`model_devices` is for distribution 'model'.*model_devices=4"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message), distribution.distribute(*arguments):
        pass


if BACKEND == "jax":

    def test_the_devices_of_a_copy_must_divide_those_of_the_process():
        with (
            pytest.raises(ValueError, match=r"must divide its 1 devices.*model_devices=3"),
            distribution.distribute("model", None, 3),
        ):
            pass

else:

    def test_models_are_cut_by_jax_alone():
        with (
            pytest.raises(ValueError, match=f"Only JAX cuts models.*'model' on {BACKEND}"),
            distribution.distribute("model"),
        ):
            pass


def test_one_device_by_the_engine_trains_as_without(make_model, batch):
    images, labels = batch
    losses = []
    for kind in ("none", "data"):
        with distribution.distribute(kind) as engine:
            with engine.scope():
                keras.utils.set_random_seed(0)
                model = make_model()
                model.compile("sgd")
            history = model.fit(images, labels, batch_size=8, epochs=1, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


if BACKEND == "tensorflow":

    def test_a_strategy_of_ones_own_is_refused():
        from types import SimpleNamespace

        from keras_cdiff.distribution.tensorflow import check_prepared

        class Strategy(SimpleNamespace):
            __hash__ = object.__hash__

        with pytest.raises(ValueError, match=r"scope of keras_cdiff\.distribution\.distribute"):
            check_prepared(Strategy())


def test_a_batch_must_be_divisible():
    engine = distribution.Engine(Two())
    engine.num_replicas = 4
    engine.check_batch_size(8)
    with pytest.raises(ValueError, match=r"a multiple of their number, 4\. Received: batch_size=6"):
        engine.check_batch_size(6)
    assert engine.describe() == ", 4 devices of 2 processes"
