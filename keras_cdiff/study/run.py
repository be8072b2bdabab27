"""A whole study, from a configuration to its report."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_cdiff.common.files import write_whole
from keras_cdiff.curriculum import Clusters
from keras_cdiff.data import open_source, read_images
from keras_cdiff.distribution import local_work, share, sharing
from keras_cdiff.evaluation import Evaluator, open_extractor
from keras_cdiff.schedules import EDM, Cosine, LinearBeta, RectifiedFlow
from keras_cdiff.study.convergence import ConvergenceStudy, refuse_another_study
from keras_cdiff.study.relative_entropy import measure_entropy
from keras_cdiff.study.report import write_report
from keras_cdiff.training.configuration import differences
from keras_cdiff.version import __version__

SCHEDULES = {"linear": LinearBeta, "cosine": Cosine, "edm": EDM, "flow": RectifiedFlow}


def run_study(
    folder: str | os.PathLike,
    config: dict,
    *,
    num_experts: int = 10,
    steps: int = 500,
    clusters: Clusters | None = None,
    experts: Sequence[int | str] | None = None,
    reference: str | os.PathLike | None = None,
    extractor: str = "mobilenet_v2",
    quality_images: int = 320,
    quality_every: int | None = None,
    num_steps: int | None = 10,
    loss_every: int = 20,
    schedules: Sequence[str] = ("linear",),
    num_levels: int = 40,
    num_draws: int = 256,
    entropy_images: int = 50_000,
) -> Path | None:
    """Trains the experts of a study, as far as they are missing, and writes its report.

    The processes of `distribution.shared_by` share the missing experts, each of which one process
    trains by itself, and the levels of the relative entropies. The first trains the reference and
    writes the report, while the others wait.

    Args:
        folder: of the study and its report.
        config: what `keras_cdiff.training.resolve` returned, with a curriculum, whose number of
            clusters is that of the clusters of equal difficulty.
        num_experts: N; 0 for the relative entropies alone.
        steps, clusters, reference, quality_every, num_steps, loss_every: as for `ConvergenceStudy`.
        experts: numbers of those that are to be trained now; ["none"] for none, None for all.
        extractor: network by which denoised images are compared, as `open_extractor` takes it; or
            "none", to measure the losses alone.
        quality_images: images that are compared.
        schedules: names in `SCHEDULES` along which the relative entropy is measured besides the
            configuration's own.
        num_levels, num_draws: as for `measure_entropy`.
        entropy_images: images whose mixture the marginals are, at even distances in the data; they
            are held in memory.

    Returns:
        The path of the report; None while experts are missing.

    Raises:
        ValueError: if an argument is out of its range, or the folder holds another study.
        LostPeer: if another of several processes has failed or ended.
    """
    processes = sharing()
    numbers = _numbers(experts, num_experts)
    unknown = [name for name in schedules if name not in SCHEDULES]
    if unknown:
        raise ValueError(
            f"`schedules` must be names among {', '.join(SCHEDULES)}. "
            f"Received: schedules={list(schedules)!r}"
        )
    if config["curriculum"] is None:
        raise ValueError(
            "The configuration must have a curriculum, whose number of clusters is that of the "
            'clusters of equal difficulty. Received: curriculum="none"'
        )
    source, backbone = open_source(config["data"]), config["model"]["backbone"]
    study = None
    if num_experts:
        evaluator = None
        if extractor != "none":
            network = open_extractor(extractor)
            evaluator = Evaluator(network, ["frechet_distance"], progress=False)
        study = ConvergenceStudy(
            *(folder, config, steps, num_experts, clusters, reference, evaluator),
            *(quality_images, num_steps, quality_every, loss_every),
        )
        if missing := _train(study, config, numbers):
            if processes.first:
                shown = ", ".join(map(str, missing))
                print(f"Experts still to be trained before there is a report: {shown}", flush=True)
            return None
    with local_work():
        if processes.first:
            _claim(Path(folder), config)
    images, _ = read_images(source, backbone["image_size"], backbone["channels"], entropy_images)
    began = time.perf_counter()
    own = keras.saving.deserialize_keras_object(config["model"]["schedule"])
    others = (SCHEDULES[name]() for name in dict.fromkeys(schedules))
    curves = [
        measure_entropy(images, schedule, num_levels, num_draws, config["seed"])
        for schedule in (own, *(other for other in others if type(other) is not type(own)))
    ]
    seconds = time.perf_counter() - began
    page = Path(folder) / "REPORT.md"
    with local_work():
        if processes.first:
            conditions = _conditions(config, images, num_draws, seconds, study)
            measured = study.curves() if study else ()
            write_report(folder, config, curves, measured, conditions=conditions)
            print(f"wrote {page}", flush=True)
    return page


def _train(study: ConvergenceStudy, config: dict, numbers: Sequence[int]) -> list[int]:
    """Trains the reference and missing experts of some numbers; returns those missing then."""
    with local_work() as processes:
        if processes.first:
            _claim(study.folder, config)
            if study.evaluator is not None:
                study.train_reference()
    missing = _missing(study)
    wanted = [number for number in numbers if number in missing]
    list(share(wanted, study.train_expert))
    return _missing(study)


def _missing(study: ConvergenceStudy) -> list[int]:
    """Returns which experts are missing as the first process sees it."""
    return next(share([study], ConvergenceStudy.missing))


def _claim(folder: Path, config: dict) -> None:
    """Makes the folder that of a study of `config`, and refuses that of another."""
    claimed = folder / "study.json"
    ours = json.loads(json.dumps({**config, "curriculum": None}))
    if claimed.is_file():
        refuse_another_study(folder, differences(json.loads(claimed.read_text()), ours))
    text = json.dumps(ours, indent=2, allow_nan=False) + "\n"
    write_whole(claimed, lambda path: path.write_text(text))


def _numbers(experts: Sequence[int | str] | None, num_experts: int) -> list[int]:
    everyone = range(1, num_experts + 1)
    if experts is None:
        return list(everyone)
    if [str(item) for item in experts] == ["none"]:
        return []
    numbers = [int(item) for item in experts if str(item).isdecimal()]
    if len(numbers) < len(experts) or not set(numbers) <= set(everyone):
        raise ValueError(
            f"`experts` must be numbers in 1..{num_experts}, or none. "
            f"Received: experts={','.join(map(str, experts))}"
        )
    return numbers


def _conditions(
    config: dict,
    images: np.ndarray,
    num_draws: int,
    seconds: float,
    study: ConvergenceStudy | None,
) -> list[str]:
    """What the page says about how things were measured."""
    count, size, _, channels = images.shape
    sentences = [
        f"{count:,} images of {config['data']}, {size} x {size} x {channels}, in [-1, 1]; seed "
        f"{config['seed']}; keras_cdiff {__version__} on {keras.backend.backend()}.",
        f"Relative entropies: {num_draws} draws a level, bars are standard errors; for continuous "
        "schedules the rate per squared unit of log SNR. "
        f"They took {seconds:.0f} s.",
    ]
    if study is None:
        return sentences
    training = config["training"]
    sentences.append(
        f"{study.num_experts} experts, {study.clusters.name} intervals, {study.steps} steps of "
        f"{training['batch_size']} images each at a learning rate of "
        f"{training['learning_rate']:g} after {training['warmup_steps']} steps of warm-up. The "
        f"loss is that of the weights themselves, on {study.loss_images} images of the training "
        "data, with levels and noises that stay the same; converged is the mean of its last tenth."
    )
    if study.evaluator is not None:
        sentences.append(
            f"Quality: {study.num_images} images, noised to the interval's top, denoised through "
            "the interval by the expert and finished by the reference model, against the same "
            f"images; Frechet distance in the features of {study.evaluator.extractor.name}, no "
            f"FID; {study.config['sampling']['sampler']} with about {study.num_steps} steps from "
            "most noise down."
        )
    minutes = {part: seconds / 60 for part, seconds in study.seconds().items()}
    own, whose = minutes.pop("reference", None), ""
    if study.evaluator is not None:
        whose = f", the reference model {own:.0f} min" if own else "; the reference was there"
    return [*sentences, f"The experts took {sum(minutes.values()):.0f} min in all{whose}."]
