"""Features are extracted once, whatever interrupts that; what is no longer whole is found."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from keras_cdiff import evaluation
from keras_cdiff.evaluation import extraction
from keras_cdiff.evaluation.extraction import extract

pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of")

HOLD_A_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


class Wrong(evaluation.SourceImages):
    """A set that yields more or fewer images than it says."""

    def __init__(self, images, says):
        super().__init__(images)
        self._says = says

    def __len__(self):
        return self._says

    def batches(self, start, batch_size):
        for first in range(start, 70, batch_size):
            yield [self._read(index) for index in range(first, min(first + batch_size, 70))]


class Interrupts:
    """Logits in whose copying the user loses patience."""

    def __array__(self, dtype=None, copy=None):
        raise KeyboardInterrupt


@pytest.fixture
def images(photos):
    """A set of 70 images."""
    return evaluation.SourceImages(photos(70))


@pytest.fixture(scope="module")
def expected(extractor, photos):
    """The features of these 70 images."""
    return extract(evaluation.SourceImages(photos(70)), extractor, progress=False)


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_cached_features_are_not_extracted_again(make_counted, photos, tmp_path):
    results = []
    for images in (90, 0):
        counted = make_counted()
        options = {"num_subsets": 2, "subset_size": 9, "progress": False}
        evaluator = evaluation.Evaluator(counted, cache=tmp_path, **options)
        results.append(evaluator.evaluate(photos(40, 1), photos(50)).metrics)
        assert counted.seen == images
    assert results[0] == results[1]
    counted = make_counted()  # other images, other features
    evaluation.Evaluator(counted, cache=tmp_path, **options).evaluate(photos(40, 2), photos(50))
    assert counted.seen == 40


def test_cached_features_cannot_be_written_to(extractor, images, expected, tmp_path):
    for _ in range(2):
        found = extract(images, extractor, tmp_path, progress=False)
        assert_equal(found, expected)
        with pytest.raises(ValueError, match="read-only"):
            found.features[0] = 0


def test_another_format_takes_nothing_from_the_cache(images, make_counted, tmp_path, monkeypatch):
    for version in (1, 2):
        monkeypatch.setattr(extraction, "CACHE_FORMAT", version)
        counted = make_counted()
        extract(images, counted, tmp_path, progress=False)
        assert counted.seen == 70


@pytest.mark.parametrize("stop_after", [0, 32, 66])
def test_an_interrupted_extraction_goes_on(images, make_counted, expected, tmp_path, stop_after):
    with pytest.raises(KeyboardInterrupt):
        extract(images, make_counted(stop_after), tmp_path, batch_size=2, progress=False)
    counted = make_counted()
    found = extract(images, counted, tmp_path, batch_size=2, progress=False)
    assert counted.seen == 70 - stop_after
    assert_equal(found, expected)


def test_an_interruption_between_features_and_logits_is_no_row(
    images, make_counted, expected, tmp_path, monkeypatch
):
    counted, half = make_counted(), make_counted()
    monkeypatch.setattr(extraction, "_SECONDS_BETWEEN_NOTES", 0.0)
    half.change = lambda seen, outputs: (-outputs[0], Interrupts()) if seen > 20 else outputs
    with pytest.raises(KeyboardInterrupt):
        extract(images, half, tmp_path, batch_size=10, progress=False)
    assert_equal(extract(images, counted, tmp_path, batch_size=10, progress=False), expected)
    assert counted.seen == 50


@pytest.mark.parametrize(("seconds", "noted"), [(0.0, 60), (3600.0, 0)])
def test_what_a_killed_process_leaves_is_gone_on_with(
    images, make_counted, expected, tmp_path, monkeypatch, seconds, noted
):
    monkeypatch.setattr(extraction, "_SECONDS_BETWEEN_NOTES", seconds)
    killed, left = tmp_path / "killed", tmp_path / "left"
    counted = make_counted()
    # All that is on disk in the middle of it, before anything could be put in order.
    counted.before = lambda seen: seen == 60 and shutil.copytree(killed, left)
    extract(images, counted, killed, batch_size=10, progress=False)
    counted = make_counted()
    assert_equal(extract(images, counted, left, batch_size=10, progress=False), expected)
    assert counted.seen == 70 - noted


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("progress.json", lambda path: path.write_text('{"done": 1')),
        ("progress.json", lambda path: path.write_text('{"done": 71}')),
        ("progress.json", lambda path: path.write_text('{"done": "70"}')),
        ("features.npy", lambda path: path.write_text("no array")),
        ("features.npy", lambda path: os.truncate(path, path.stat().st_size - 4)),
        ("logits.npy", lambda path: os.truncate(path, path.stat().st_size + 4)),
        ("logits.npy", lambda path: np.save(path, np.zeros((70, 4), "float32"))),
        ("logits.npy", lambda path: path.unlink()),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_damaged_features_are_found(images, make_counted, tmp_path, name, change, complete):
    if complete:
        extract(images, make_counted(), tmp_path, progress=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract(images, make_counted(60), tmp_path, batch_size=10, progress=False)
    (folder,) = tmp_path.iterdir()
    change(folder / name)
    with pytest.raises(ValueError, match=r"damaged.*: remove the folder\. Received: folder="):
        extract(images, make_counted(), tmp_path, progress=False)
    shutil.rmtree(folder)
    extract(images, make_counted(), tmp_path, progress=False)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("says", "message"), [(80, "yield 70"), (60, "yield more")])
def test_a_set_of_another_length_is_refused(
    photos, make_counted, tmp_path, monkeypatch, cached, says, message
):
    monkeypatch.setattr(extraction, "_SECONDS_BETWEEN_NOTES", 0.0)
    cache = tmp_path if cached else None
    for _ in range(2):  # nothing of it is taken for done
        counted = make_counted()
        with pytest.raises(ValueError, match=f"as its len.*{message}"):
            extract(Wrong(photos(70), says), counted, cache, batch_size=10, progress=False)
        assert counted.seen >= 60


def test_two_processes_do_not_write_to_one_folder(images, make_counted, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(images, make_counted(20), tmp_path, batch_size=10, progress=False)
    (folder,) = tmp_path.iterdir()
    before = json.loads((folder / "progress.json").read_text())
    command = [sys.executable, "-c", HOLD_A_LOCK, str(folder / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=r"extracted by another process.*Received: folder="):
            extract(images, make_counted(), tmp_path, progress=False)
        assert json.loads((folder / "progress.json").read_text()) == before
        other.kill()
    counted = make_counted()
    assert_equal(extract(images, counted, tmp_path, batch_size=10, progress=False), expected)
    assert counted.seen == 50
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:  # readers need no lock
        assert other.stdout.readline() == b"held\n"
        assert_equal(extract(images, make_counted(), tmp_path, progress=False), expected)
        other.kill()


def test_images_of_several_sizes_are_resized_one_by_one(extractor, photos):
    class Mixed(evaluation.SourceImages):
        def _read(self, index):
            image = super()._read(index)
            return image.repeat(2, axis=0).repeat(2, axis=1) if index % 2 else image

    found = extract(Mixed(photos(6)), extractor, progress=False).features
    large = photos(6)[1::2].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(found[::2], extractor(photos(6)[::2])[0])
    np.testing.assert_allclose(found[1::2], extractor(large)[0], atol=1e-3)
