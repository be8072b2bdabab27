"""Two sets of images and an extractor make numbers, once, and say what they depend on."""

import csv
import json

import keras
import numpy as np
import pytest

from keras_cdiff import evaluation
from keras_cdiff.evaluation import evaluator as evaluator_module
from keras_cdiff.evaluation.features import from_model

pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of")


@pytest.fixture
def make(extractor):
    """A function: options -> an evaluator with the small extractor."""

    def make_evaluator(*arguments, **options):
        small = {"num_subsets": 5, "subset_size": 20, "splits": 4, "progress": False}
        return evaluation.Evaluator(extractor, *arguments, **{**small, **options})

    return make_evaluator


def test_the_metrics_are_those_of_the_features(make, extractor, photos):
    ours, theirs = photos(40, 1, 140), photos(50)
    result = make().evaluate(ours, theirs)
    features, logits = extractor(ours)
    reference, _ = extractor(theirs)
    kernel = evaluation.kernel_distance(reference, features, 5, 20, seed=0)
    score = evaluation.inception_score(logits, 4, seed=0)
    precision_recall = evaluation.precision_recall(reference, features, 3)
    assert result.metrics == pytest.approx(
        {
            "frechet_distance": evaluation.frechet_distance(reference, features),
            **dict(zip(("kernel_distance", "kernel_distance_std"), kernel, strict=True)),
            **dict(zip(("inception_score", "inception_score_std"), score, strict=True)),
            **dict(zip(("precision", "recall"), precision_recall, strict=True)),
        },
        rel=1e-9,
    )
    record = result.record
    assert record["generated"]["count"] == 40
    assert record["reference"]["count"] == 50
    assert record["extractor"]["name"] == "quadrants"
    assert record["settings"] == {
        **{"num_subsets": 5, "subset_size": 20, "splits": 4, "k": 3, "seed": 0},
    }


def test_the_batch_size_changes_no_digit(make, photos):
    expected = make(batch_size=40).evaluate(photos(40, 1), photos(40)).metrics
    for batch_size in (1, 7, 64):
        metrics = make(batch_size=batch_size).evaluate(photos(40, 1), photos(40)).metrics
        assert metrics == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself(make, photos):
    metrics = make().evaluate(photos(), photos()).metrics
    assert metrics["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert (metrics["precision"], metrics["recall"]) == (1.0, 1.0)


def test_a_small_set_is_told_to_be_biased(make, photos, monkeypatch):
    with pytest.warns(UserWarning, match="of 30 images is biased upwards.*distance_infinity"):
        result = make(["frechet_distance"]).evaluate(photos(30), photos(40))
    assert "biased" in str(result)
    assert f"quadrants at 8 x 8, version {result.record['extractor']['version']}" in str(result)
    monkeypatch.setattr(evaluator_module, "ENOUGH_SAMPLES", 30)
    assert make().evaluate(photos(30), photos(40)).record["notes"] == []


def test_the_extrapolation_has_a_name(make, photos):
    metrics = make(["frechet_distance_infinity"]).evaluate(photos(200, 1), photos(200)).metrics
    assert sorted(metrics) == ["frechet_distance_infinity", "frechet_distance_infinity_error"]


def test_an_extractor_without_logits_gives_no_inception_score(photos):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(images))
    options = {"num_subsets": 2, "subset_size": 5, "progress": False}
    metrics = evaluation.Evaluator(from_model(model), **options).evaluate(photos(), photos(9))
    assert "inception_score" not in metrics.metrics
    with pytest.raises(ValueError, match="without logits"):
        evaluation.Evaluator(from_model(model), ["inception_score"])


def test_statistics_are_a_reference(make, photos, tmp_path, extractor):
    evaluator = make()
    evaluator.statistics(photos(50)).save(tmp_path / "photos.npz")
    reference = f"statistics:{tmp_path / 'photos.npz'}"
    result = evaluator.evaluate(photos(40, 1), reference)
    full = evaluator.evaluate(photos(40, 1), photos(50)).metrics
    names = ("frechet_distance", "inception_score", "inception_score_std")
    assert result.metrics == pytest.approx({name: full[name] for name in names}, rel=1e-9)
    assert result.record["reference"]["count"] == 50
    with pytest.raises(ValueError, match="hold no single features"):
        make(["precision_recall"]).evaluate(photos(), reference)

    other = evaluation.Evaluator(from_model(keras.Sequential([keras.layers.Flatten()]), "flat", 2))
    with pytest.raises(ValueError, match="made with another extractor"):
        other.evaluate(photos(), reference)


def test_statistics_of_other_tools_are_taken_if_they_fit(make, photos, tmp_path, extractor):
    features, _ = extractor(photos(50))
    sigma = np.cov(features, rowvar=False)
    np.savez(tmp_path / "foreign.npz", mu=features.mean(0, dtype=np.float64), sigma=sigma)
    result = make(["frechet_distance"]).evaluate(
        photos(40, 1), f"statistics:{tmp_path / 'foreign.npz'}"
    )
    expected = make(["frechet_distance"]).evaluate(photos(40, 1), photos(50))
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-6)
    assert any("not known" in note for note in result.record["notes"])
    np.savez(tmp_path / "wide.npz", mu=np.zeros(13), sigma=np.eye(13))
    with pytest.raises(ValueError, match=r"12 features\. Received: 13"):
        make().evaluate(photos(), f"statistics:{tmp_path / 'wide.npz'}")


def test_the_reference_is_extracted_once(make_counted, photos):
    counted = make_counted()
    evaluator = evaluation.Evaluator(counted, ["frechet_distance"], progress=False)
    for seed in (1, 2, 3):
        evaluator.evaluate(photos(10, seed), photos(50))
    assert counted.seen == 50 + 3 * 10


def test_results_are_written(make, photos, tmp_path):
    result = make().evaluate(photos(), photos(50))
    record, table = result.write(tmp_path / "new")
    assert json.loads(record.read_text()) == json.loads(json.dumps(result.record))
    make(["frechet_distance"]).evaluate(photos(), photos(50)).append_csv(table)
    with open(table, newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["frechet_distance"]) == result.metrics["frechet_distance"]
    assert float(first["recall"]) == result.metrics["recall"]
    assert second["recall"] == ""
    assert (first["extractor"], first["resize"], first["num_reference"]) == (
        *("quadrants", "clean", "50"),
    )
    table.write_text("other,columns\n1,2\n")
    with pytest.raises(ValueError, match="begins 'other,columns"):
        result.append_csv(table)
    assert table.read_text() == "other,columns\n1,2\n"


@pytest.mark.parametrize("side", ["generated", "reference"])
@pytest.mark.parametrize(
    ("metrics", "least"),
    [(["frechet_distance"], 2), (["frechet_distance_infinity"], 3), (["precision_recall"], 4)],
)
def test_sets_too_small_are_refused_before_anything_is_extracted(photos, side, metrics, least):
    class Unread(evaluation.SourceImages):
        def batches(self, start, batch_size):
            raise AssertionError("read")

    few, enough = Unread(photos(least - 1)), Unread(photos())
    sets = {"generated": enough, "reference": enough, side: few}
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    evaluator = evaluation.Evaluator(model, metrics)
    with pytest.raises(ValueError, match=f"at least {least} images.*Received: {side} images"):
        evaluator.evaluate(**sets)


def test_few_images_are_divided_into_fewer_subsets_and_splits(make, photos):
    settings = make().evaluate(photos(7), photos()).record["settings"]
    assert (settings["subset_size"], settings["splits"]) == (7, 3)


def test_a_reference_of_another_size_is_noted(make, photos, tmp_path):
    large = photos().repeat(2, axis=1).repeat(2, axis=2)
    with pytest.warns(UserWarning, match="images of 8 x 8 pixels .* reference of 16 x 16"):
        result = make().evaluate(photos(), large)
    assert any("one image_size" in note for note in result.record["notes"])
    make().statistics(large).save(tmp_path / "large.npz")
    with pytest.warns(UserWarning, match="images of 8 x 8 pixels .* reference of 16 x 16"):
        make().evaluate(photos(), f"statistics:{tmp_path / 'large.npz'}")
    prepared = evaluation.SourceImages(large, image_size=8)
    assert len(make().evaluate(photos(), prepared).record["notes"]) == 1  # few images


def test_statistics_that_are_handed_out_change_nothing(make, photos):
    evaluator = make(["frechet_distance"])
    expected = evaluator.evaluate(photos(40, 1), photos(50)).metrics
    statistics = evaluator.statistics(photos(50))
    statistics.merge(evaluator.statistics(photos(20, 3)))
    assert evaluator.evaluate(photos(40, 1), photos(50)).metrics == expected


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"k": 0},
        {"num_subsets": 0},
        {"subset_size": 1},
        {"splits": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(make, bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        make(**bad)


@pytest.mark.parametrize("metrics", [["fid"], []])
def test_unknown_metrics_are_refused(make, metrics):
    with pytest.raises(ValueError, match=r"names among frechet_distance.*Received: metrics="):
        make(metrics)
