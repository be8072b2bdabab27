"""A run's model is evaluated with the labels of what it is compared with."""

import keras
import numpy as np
import pytest

from keras_cdiff import evaluation, training
from keras_cdiff.data import ArraySource, open_source
from keras_cdiff.training.evaluation import _held_out, evaluation_callbacks
from keras_cdiff.training.run_data import RunData

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore:the Frechet distance of"),
]


@pytest.fixture
def evaluator(extractor_file):
    model = keras.saving.load_model(extractor_file)
    return evaluation.Evaluator(model, ["frechet_distance"], progress=False)


def labelled(tmp_path, name, counts, class_names=()):
    """A source of random images whose classes have these counts."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    names = {"class_names": np.array(class_names)} if class_names else {}
    np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, **names)
    return f"npz:{tmp_path / name}.npz"


def test_samples_have_the_proportions_of_the_reference(make_model, tiny, evaluator, tmp_path):
    model, config = make_model(), tiny()
    reference = labelled(tmp_path, "three", [8, 4, 4])
    options = {"num_samples": 8, "num_steps": 2}
    result = training.evaluate_model(model, config, evaluator, reference, **options)
    assert result.record["generated"]["labels"] == {"0": 4, "1": 2, "2": 2}
    # The statistics tell as much.
    images = evaluation.SourceImages(reference, 8)
    evaluator.statistics(images).save(tmp_path / "statistics.npz")
    statistics = f"statistics:{tmp_path / 'statistics.npz'}"
    again = training.evaluate_model(model, config, evaluator, statistics, **options)
    assert again.record["generated"]["labels"] == {"0": 4, "1": 2, "2": 2}
    assert again.metrics == pytest.approx(result.metrics, rel=1e-9)
    # Of classes that the model has not, and of no classes, it shows its own in turn.
    for other in (labelled(tmp_path, "four", [4, 4, 4, 4]), "emoji"):
        few = evaluation.SourceImages(other, 8, num_images=16)
        np.savez(tmp_path / "few.npz", images=np.stack(list(next(few.batches(0, 16)))))
        result = training.evaluate_model(
            model, config, evaluator, f"npz:{tmp_path / 'few.npz'}", **options
        )
        assert result.record["generated"]["labels"] == {"0": 3, "1": 3, "2": 2}


def test_validation_classes_are_those_of_training_by_name(make_model, tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    source = ArraySource("training", images, np.arange(3), class_names=["a", "b", "c"])
    some = labelled(tmp_path, "some", [1, 1], ["c", "b"])
    _, labels = _held_out(open_source(some), 5, make_model(), source)
    np.testing.assert_array_equal(labels, [2, 1])
    other = labelled(tmp_path, "other", [1, 1], ["c", "d"])
    with pytest.raises(ValueError, match=r"classes of the training data, .* a, b, c.*, with d"):
        _held_out(open_source(other), 5, make_model(), source)


def test_the_reference_of_a_run_is_limited(
    make_model, tiny, extractor_file, tmp_path, monkeypatch, npz
):
    monkeypatch.setattr("keras_cdiff.training.evaluation.MAX_REFERENCE", 5)
    config = tiny(evaluate_every=2, extractor=f"keras:{extractor_file}")
    data = RunData(config, open_source(npz()))
    (callback,) = evaluation_callbacks(make_model(), data, None, training.Workdir(tmp_path), None)
    assert len(callback.reference) == 5
