"""Measures the samples of one trained run, and adds its record to results.jsonl.

    KERAS_BACKEND=tensorflow python experiments/curriculum/measure.py --output=evidence \
        --run=emoji_edm/curriculum/lr0.004/seed0 --extractor=mobilenet_v2

run.py starts it. It is a program of its own since on a CPU the backend that trains fastest is not
the one that sees images fastest.
"""

import json
import math
import time
import warnings
from pathlib import Path

import keras
import numpy as np
from settings import METHODS, SIZES, Run, Setting, find_run, run_parser, workdir_of

from keras_cdiff import training
from keras_cdiff.common.files import FolderLock, append_record, strict_json
from keras_cdiff.data import open_source
from keras_cdiff.evaluation import Evaluator, SourceImages, open_extractor
from keras_cdiff.training.building import build_model

# The reference is the training data, as far as this, or as there are samples.
REFERENCE_IMAGES = 10_000
SUBSETS = 5  # of 1,000 images, of the kernel distance


def measure(
    run: Run, size: str, output: Path, extractor: str, reference: str | None = None
) -> dict:
    """Returns the record of a trained run: its curve, its end, its stages and its times."""
    began = time.monotonic()
    method = METHODS[run.method]
    setting, workdir = SIZES[size][run.setting], workdir_of(run, size, output)
    config = training.Workdir(workdir).config()
    network = open_extractor(extractor)
    evaluator = Evaluator(
        network,
        ["frechet_distance", "kernel_distance"],
        cache=output / "features",
        cache_generated=False,
        num_subsets=SUBSETS,
        progress=False,
    )
    reference = _reference(config, setting, reference)
    with FolderLock(output / "features_queue", None):  # of several runs one extracts the reference
        evaluator.statistics(reference)

    def distances(name: str) -> dict:
        path = workdir / "images" / f"{name}.npz"
        with warnings.catch_warnings():  # a small sample's bias; the record has its size
            warnings.filterwarnings("ignore", "the Frechet distance of", UserWarning)
            metrics = evaluator.evaluate(f"npz:{path}", reference).metrics
        return {name: float(value) for name, value in metrics.items()}

    logs, validation = (_read(workdir / name) for name in ("log.jsonl", "validation.jsonl"))
    losses = {r["step"]: {key: r[key] for key in ("loss", "cluster_loss")} for r in validation}
    points = sorted(path.stem for path in (workdir / "images").glob("[0-9]*.npz"))
    return strict_json(
        {
            "run": run.name,
            "size": size,
            "data": config["data"].rpartition("/")[2],
            "setting": run.setting,
            "method": run.method,
            "seed": run.seed,
            "learning_rate": run.learning_rate,
            "steps": config["training"]["steps"],
            "batch_size": config["training"]["batch_size"],
            "parameters": build_model(config).backbone.count_params(),
            "weighting": method.options.get("weighting"),
            "curriculum": config["curriculum"],
            "cluster_edges": (config["validation"] or {}).get("edges"),
            "stages": _stages(logs),
            # Of the log's intervals the fastest tenth: free of compilation and of other programs.
            "seconds_per_step": float(np.percentile([r["seconds_per_step"] for r in logs], 10)),
            "training_seconds": logs[-1]["time"] - logs[0]["time"],
            "study_steps": math.prod(setting.study) if method.measured_clusters else 0,
            "curve": [
                {"step": int(point), **distances(point), **losses.get(int(point), {})}
                for point in points
            ],
            "curve_samples": setting.curve_samples,
            "final": distances("final"),
            "final_samples": setting.final_samples,
            "reference_images": len(reference),
            "extractor": network.describe(),
            "trained_by": config["backend"],
            "measured_by": keras.backend.backend(),
            "measuring_seconds": time.monotonic() - began,
            "keras_cdiff": config["keras_cdiff"],
        }
    )


def _reference(config: dict, setting: Setting, reference: str | None) -> SourceImages:
    """The images to compare with, of the samples' size."""
    backbone, encoded = config["model"]["backbone"], config.get("autoencoder")
    size, channels, data = backbone["image_size"], backbone["channels"], config["data"]
    if encoded:
        size, channels, data = encoded["image_size"], 3, encoded["images"]
    source = open_source(reference or data)
    count = min(len(source), max(setting.final_samples, REFERENCE_IMAGES))
    return SourceImages(source, size, channels, count)


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _stages(logs: list[dict]) -> list[dict]:
    """The first logged step of each stage, to an interval of the log."""
    stages = {}
    for record in logs:
        stages.setdefault(record["stage"], {"stage": record["stage"], "step": record["step"]})
    return list(stages.values())


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument("--reference", help="images to compare with, else the training images")
    parser.add_argument("--extractor", default="mobilenet_v2", help="as for apps/evaluate.py")
    options = parser.parse_args()
    run = find_run(options.size, options.run)
    record = measure(run, options.size, options.output, options.extractor, options.reference)
    append_record(options.output / "results.jsonl", record)
    print(f"{run.name}: Frechet distance {record['final']['frechet_distance']:.3f}", flush=True)


if __name__ == "__main__":
    main()
