"""A step on two replicas, where much depends on the batch being one."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_cdiff import distribution

BACKEND = keras.backend.backend()


@pytest.fixture(scope="module")
def both(launch, tmp_path_factory):
    """What steps leave on one device, and on two replicas."""
    path = tmp_path_factory.mktemp("steps") / "left.npz"
    replicas = {"processes": 2} if BACKEND == "torch" else {"devices": 2}
    codes, outputs = launch("step_worker.py", path, **replicas)
    assert set(codes) == {0}, outputs
    script = Path(__file__).with_name("step_worker.py")
    specification = importlib.util.spec_from_file_location("step_worker", script)
    worker = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(worker)
    with distribution.distribute("none") as engine:
        alone = worker.take_steps(engine)
    with np.load(path) as file:
        return alone, dict(file)


def arrays(left, name):
    return {key: array for key, array in left.items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize(("name", "tolerance"), [("random", 1e-5), ("half", 5e-3)])
def test_dropout_accumulation_clipping_and_loss_scale(both, name, tolerance):
    """float16's gradients are rounded differently for parts of a batch."""
    alone, together = (arrays(left, name) for left in both)
    assert alone.keys() == together.keys()
    losses = alone[f"{name}/losses"]
    assert np.isnan(losses).tolist() == [False, False, False, True, False, False]
    for key, array in alone.items():
        if array.dtype.kind in "iu":
            np.testing.assert_array_equal(together[key], array, err_msg=key)
            continue
        finite = np.isfinite(array)
        np.testing.assert_array_equal(np.isfinite(together[key]), finite, err_msg=key)
        scale = np.abs(array[finite]).max(initial=1e-6)  # of less there is only rounding
        np.testing.assert_allclose(
            together[key][finite], array[finite], rtol=0, atol=tolerance * scale, err_msg=key
        )


def test_what_is_not_finite_on_one_replica_is_skipped_on_all(both):
    for left in both:
        steps = {k.split("/")[-1]: v for k, v in arrays(left, "half").items() if "optimizer" in k}
        assert steps["scale"] == 2.0**14  # 2^15, halved once
        updates = [v for k, v in arrays(left, "half/optimizer").items() if "iteration" in k]
        assert max(updates) == 5


if BACKEND == "tensorflow":

    def test_what_strategies_cannot_do_is_refused(both):
        foreign, optimizer, batch = both[1]["refusals"]
        assert "in the scope of keras_cdiff.distribution.distribute" in foreign
        assert "The optimizer of a model of several devices must be made in the scope" in optimizer
        assert "use fit and evaluate for a model of several devices" in batch
