import itertools
import sys

import numpy as np
import pytest

from keras_cdiff.evaluation.inception_score import inception_score

pytestmark = pytest.mark.backend_free

RNG = np.random.default_rng(0)


def reference(parts):
    scores = []
    for logits in parts:
        p = np.exp(logits.astype(np.float64))
        p /= p.sum(axis=1, keepdims=True)
        scores.append(np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("name", ["logits", "logits_uneven"])
@pytest.mark.parametrize("splits", [1, 10])
@pytest.mark.parametrize("shuffle", [False, True])
def test_matches_torch_fidelity(golden, name, splits, shuffle):
    data = golden("metrics")
    logits = data[f"in/{name}"]
    if shuffle:
        logits = logits[data[f"in/{name}_permutation"]]
    expected = data[f"out/is/{name}/torchfidelity_splits{splits}_shuffle{shuffle}"]
    np.testing.assert_allclose(inception_score(logits, splits), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["logits", "logits_uneven"])
@pytest.mark.parametrize("split_size", [60, 5000])
def test_matches_guided_diffusion(golden, name, split_size):
    data = golden("metrics")
    score, _ = inception_score(data[f"in/{name}"], split_size=split_size)
    assert score == pytest.approx(
        float(data[f"out/is/{name}/guided_split_size_{split_size}"]), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_is_the_definition(dtype):
    logits = (5 * RNG.normal(size=(23, 6))).astype(dtype)
    edges = [0, 5, 11, 17, 23]  # i 23 // 4
    parts = [logits[a:b] for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(inception_score(logits, 4), reference(parts), rtol=1e-12)
    parts = [logits[:10], logits[10:20], logits[20:]]
    np.testing.assert_allclose(inception_score(logits, split_size=10), reference(parts), rtol=1e-12)


def test_blocks_of_rows_do_not_matter(golden, monkeypatch):
    logits = golden("metrics")["in/logits"]
    expected = inception_score(logits, 3)
    module = sys.modules[inception_score.__module__]  # the package has a function of this name
    monkeypatch.setattr(module, "block_rows", lambda *_: 7)
    np.testing.assert_allclose(inception_score(logits, 3), expected, rtol=1e-12)


@pytest.mark.parametrize("sharpness", [1e3, 1e6, 1e30])
def test_sure_images_of_all_classes_score_their_number(sharpness):
    """Probabilities underflow to 0, and 0 log 0 is 0; two more classes never occur."""
    logits = np.pad(np.tile(np.eye(5), (4, 1)) * sharpness, ((0, 0), (0, 2)))
    assert inception_score(logits, 1) == (pytest.approx(5.0, rel=1e-12), 0.0)
    assert inception_score(logits, 4) == (pytest.approx(5.0, rel=1e-12), pytest.approx(0.0))


def test_score_of_one_class_or_of_undecided_images_is_1():
    assert inception_score(np.tile([[0.0, 99.0, 1.0]], (6, 1)), 2)[0] == pytest.approx(1.0)
    assert inception_score(np.full((6, 3), 4.0), 2)[0] == pytest.approx(1.0)
    assert inception_score(RNG.normal(size=(6, 1)), 2)[0] == pytest.approx(1.0)


def test_a_constant_added_to_an_image_s_logits_changes_nothing():
    logits = RNG.normal(size=(30, 4))
    shifted = logits + 1e4 * RNG.normal(size=(30, 1))
    np.testing.assert_allclose(inception_score(shifted, 3), inception_score(logits, 3), rtol=1e-9)


def test_seed_shuffles_images_that_come_class_by_class():
    logits = 20 * np.repeat(np.eye(4), 50, axis=0)
    assert inception_score(logits, 4)[0] == pytest.approx(1.0)
    score, _ = inception_score(logits, 4, seed=0)
    assert 3.5 < score < 4
    assert inception_score(logits, 4, seed=0)[0] == score != inception_score(logits, 4, seed=1)[0]
    assert inception_score(logits, 1, seed=0)[0] == pytest.approx(inception_score(logits, 1)[0])


@pytest.mark.parametrize(
    "bad", [{"splits": 0}, {"splits": 7}, {"splits": 2.0}, {"split_size": 0}, {"seed": -1}]
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=f"Received: {next(iter(bad))}="):
        inception_score(RNG.normal(size=(6, 3)), **{"splits": 2, **bad})
