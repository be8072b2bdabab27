"""One of two processes that share samples, features, latents and experts.

shared_work_worker.py FOLDER

FOLDER/job.json says what there is; FOLDER/INDEX holds what this process got.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_cdiff import autoencoders, data, distribution, evaluation, study, training
from keras_cdiff.distribution import shared_work
from keras_cdiff.evaluation.extraction import extract
from keras_cdiff.study.convergence import ConvergenceStudy
from keras_cdiff.training.generation import decode, draw_samples


class Watched:
    """An extractor that counts what it sees, and fails at a call in one of the processes."""

    def __init__(self, extractor, fails_at_call=0, in_process=None):
        self._extractor, self.seen = extractor, 0
        self._call = fails_at(extractor, fails_at_call, in_process)

    def __call__(self, images):
        self.seen += len(images)
        return self._call(images)

    def __getattr__(self, name):
        return getattr(self._extractor, name)


def fails_at(function, call, in_process):
    """The function, but for an error at its n-th call in one of the processes."""
    calls = []

    def wrapped(*arguments):
        calls.append(arguments)
        if len(calls) == call and own_index == in_process:
            raise ValueError("the disk is on fire")
        return function(*arguments)

    return wrapped


def outcome(function, *arguments, **options):
    """What a call raises, in words."""
    try:
        function(*arguments, **options)
    except (ValueError, distribution.LostPeer) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    model, config = training.load_run(job["run"])
    own = folder / str(own_index)
    own.mkdir()
    result = {}

    shared_work._SECONDS_BETWEEN_HEARTBEATS = 0.1
    with distribution.local_work() as processes:
        time.sleep(0.5 * processes.index)  # the first gives several heartbeats

    np.save(own / "samples.npy", draw_samples(model, **job["sampling"], progress=False))
    seed = {**job["sampling"], "seed": processes.index}
    result["other seeds"] = outcome(draw_samples, model, **seed)

    extractor = evaluation.open_extractor(job["extractor"])
    images = evaluation.SourceImages(job["data"], 8)
    cached = {"cache": folder / "features", "batch_size": 3, "progress": False}

    failing = Watched(extractor, fails_at_call=2, in_process=1)
    result["failed extraction"] = outcome(extract, images, failing, **cached)
    watched = Watched(extractor)
    np.save(own / "features.npy", extract(images, watched, **cached).features)
    result["extracted"] = watched.seen
    evaluator = evaluation.Evaluator(extractor, ["frechet_distance"], progress=False)
    result["metrics"] = training.evaluate_model(
        model, config, evaluator, job["data"], num_samples=5, batch_size=2
    ).metrics

    source, autoencoder = data.open_source(job["data"]), autoencoders.open_autoencoder(job["kl"])
    options = {"batch_size": 2, "shard_size": 3, "progress": False}
    data.encode_source(source, autoencoder, 8, folder / "begun_alone", **options)
    latents = np.load(folder / "latents.npy")
    np.save(own / "decoded.npy", decode(autoencoder, latents))
    np.save(own / "decoded_one.npy", decode(autoencoder, latents[:1]))
    autoencoder.moments = fails_at(autoencoder.moments, 5, in_process=1)
    arguments = source, autoencoder, 8, folder / "begun_together"
    result["failed encoding"] = outcome(data.encode_source, *arguments, **options)

    trained = []
    train_expert = ConvergenceStudy.train_expert
    ConvergenceStudy.train_expert = lambda self, n: trained.append(n) or train_expert(self, n)
    page = study.run_study(folder / "study", job["study"], **job["experts"])
    result |= {"page": str(page), "trained": trained}
    (own / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with (
        distribution.connected(distribution.find_cluster()) as connected,
        distribution.shared_by(connected),
    ):
        own_index = connected.index
        main(Path(sys.argv[1]))
