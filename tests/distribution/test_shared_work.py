"""Two processes draw, extract, encode and train together what one alone would, once each."""

import json
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_cdiff import autoencoders, data, evaluation, sample, training
from keras_cdiff.distribution import LostPeer, local_work, shared_work, sharing
from keras_cdiff.evaluation.extraction import extract
from keras_cdiff.training.building import build_model
from keras_cdiff.training.generation import decode

pytestmark = pytest.mark.one_backend

SAMPLING = {"num_samples": 5, "seed": 7, "label": [0, 1, 2, 0, 1], "batch_size": 2}
ENCODING = {"batch_size": 2, "shard_size": 3, "progress": False}
EXPERTS = {
    "num_experts": 3,
    "steps": 3,
    "extractor": "none",
    "loss_every": 2,
    "schedules": [],
    "num_levels": 3,
    "num_draws": 8,
}


def run_two(launch, folder):
    """Runs the worker in two processes at once, and returns what both wrote and printed."""
    codes, outputs = launch("shared_work_worker.py", folder, processes=2, exact=True)
    assert codes == [0, 0], outputs
    written = [folder / str(index) / "result.json" for index in range(2)]
    return [
        {**json.loads(path.read_text()), "said": said}
        for path, said in zip(written, outputs, strict=True)
    ]


def shard_bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("moments-*.npy"))]


@pytest.fixture(scope="module")
def small(tiny):
    config = tiny(num_classes=3)
    config["training"]["warmup_steps"] = 1
    return config


@pytest.fixture(scope="module")
def together(launch, small, npz, autoencoder, extractor_file, tmp_path_factory):
    """What two processes made of one job, the folder it lies in, and the model."""
    folder = tmp_path_factory.mktemp("together")
    keras.utils.set_random_seed(0)
    model = build_model(small)
    run = training.Workdir(folder / "run")
    run.claim(small)
    run.save_weights(model)

    begun, calls = autoencoders.open_autoencoder(autoencoder.name), []
    compute = begun.moments

    def interrupted(images):
        calls.append(len(images))
        if len(calls) > 5:
            raise KeyboardInterrupt
        return compute(images)

    begun.moments = interrupted
    with pytest.raises(KeyboardInterrupt):
        data.encode_source(data.open_source(npz()), begun, 8, folder / "begun_alone", **ENCODING)
    assert len(shard_bytes(folder / "begun_alone")) == 1
    job = {
        "run": str(run.path),
        "data": npz(),
        "kl": autoencoder.name,
        "extractor": f"keras:{extractor_file}",
        "sampling": SAMPLING,
        "study": small,
        "experts": EXPERTS,
    }
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float32)
    np.save(folder / "latents.npy", latents)
    (folder / "job.json").write_text(json.dumps(job))
    return run_two(launch, folder), folder, model


def test_both_get_the_samples_of_one_alone(together):
    results, folder, model = together
    expected = sample(model, **SAMPLING, progress=False)
    for index, result in enumerate(results):
        np.testing.assert_allclose(
            np.load(folder / str(index) / "samples.npy"), expected, atol=1e-5
        )
        assert "All processes must have the same samples to draw" in result["other seeds"]


def test_both_get_the_features_of_one_alone(together, npz, extractor_file):
    """And go on after an error of one of them with what both had extracted."""
    results, folder, _ = together
    extractor = evaluation.open_extractor(f"keras:{extractor_file}")
    images = evaluation.SourceImages(npz(), 8)
    expected = extract(images, extractor, progress=False)
    for index in range(2):
        np.testing.assert_allclose(
            np.load(folder / str(index) / "features.npy"), expected.features, atol=1e-5
        )
    assert results[1]["failed extraction"] == "ValueError: the disk is on fire"
    assert results[0]["failed extraction"].startswith("LostPeer: ")
    assert "the disk is on fire" in results[0]["failed extraction"]
    assert [result["extracted"] for result in results] == [6, 4]  # 6 of the 16 were there

    cached = {"cache": folder / "features", "progress": False}
    (features,) = (folder / "features").glob("*/features.npy")
    before = features.stat().st_mtime_ns
    found = extract(images, extractor, **cached).features
    np.testing.assert_array_equal(found, np.load(folder / "0" / "features.npy"))
    assert features.stat().st_mtime_ns == before  # the cache of two is that of one


def test_both_get_the_metrics_of_one_alone(together, small, npz, extractor_file):
    results, _, model = together
    extractor = evaluation.open_extractor(f"keras:{extractor_file}")
    evaluator = evaluation.Evaluator(extractor, ["frechet_distance"], progress=False)
    with pytest.warns(UserWarning, match="biased"):
        expected = training.evaluate_model(model, small, evaluator, npz(), num_samples=5).metrics
    for result in results:
        assert result["metrics"] == pytest.approx(expected, rel=1e-3)


def test_latents_are_the_bytes_of_one_alone(together, npz, autoencoder, tmp_path):
    """However many processes began them, and however many go on."""
    results, folder, _ = together
    source = data.open_source(npz())
    data.encode_source(source, autoencoder, 8, tmp_path, **ENCODING)
    expected = shard_bytes(tmp_path)
    assert len(expected) == 6
    assert shard_bytes(folder / "begun_alone") == expected
    assert results[1]["failed encoding"] == "ValueError: the disk is on fire"
    assert results[0]["failed encoding"].startswith("LostPeer: ")
    progress = json.loads((folder / "begun_together" / "progress.json").read_text())
    assert [shard["file"] for shard in progress["shards"]] == [
        "moments-00000.npy",
        "moments-00001.npy",
    ]
    data.encode_source(source, autoencoder, 8, folder / "begun_together", **ENCODING)
    for name in ("begun_alone", "begun_together"):
        assert shard_bytes(folder / name) == expected
        assert (folder / name / "index.json").read_bytes() == (tmp_path / "index.json").read_bytes()


def test_both_decode_what_one_alone_does(together, autoencoder):
    """Even a single one."""
    _, folder, _ = together
    expected = decode(autoencoder, np.load(folder / "latents.npy")).astype(int)
    for index in range(2):
        for name, rows in (("decoded", 3), ("decoded_one", 1)):
            found = np.load(folder / str(index) / f"{name}.npy").astype(int)
            np.testing.assert_allclose(found, expected[:rows], atol=1)


def test_experts_are_shared(together):
    results, folder, _ = together
    assert [result["trained"] for result in results] == [[1, 3], [2]]
    for result in results:
        assert Path(result["page"]) == folder / "study" / "REPORT.md"
    assert [result["said"].count("REPORT.md") for result in results] == [1, 0]


@pytest.mark.backend_free
def test_those_that_are_done_wait(in_threads, monkeypatch):
    monkeypatch.setattr(shared_work, "_SECONDS_BETWEEN_HEARTBEATS", 0.02)
    done = []

    def work(processes):
        heartbeat = shared_work._Heartbeat(processes)
        if not processes.first:
            threading.Event().wait(0.3)
            done.append(processes.index)
        heartbeat.finish()
        assert done == [1]

    assert in_threads(2, work) == [None, None]


@pytest.mark.backend_free
def test_a_failure_ends_the_others(in_threads, monkeypatch):
    monkeypatch.setattr(shared_work, "_SECONDS_BETWEEN_HEARTBEATS", 0.02)

    def work(processes):
        heartbeat = shared_work._Heartbeat(processes)
        if processes.first:
            heartbeat.fail(OSError("the disk is full"))
        else:
            heartbeat.finish()

    first, *others = in_threads(3, work)
    assert first is None
    assert len(others) == 2
    for error in others:
        assert isinstance(error, LostPeer)
        assert "process 0: OSError: the disk is full" in str(error)


@pytest.mark.backend_free
def test_one_process_alone_keeps_its_errors():
    with local_work() as processes:
        assert processes is sharing()
    with pytest.raises(ZeroDivisionError), local_work():
        1 / 0  # noqa: B018
