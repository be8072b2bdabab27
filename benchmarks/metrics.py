"""Seconds and peak memory of the metrics, beside torch-fidelity and clean-fid on the same features.

Every measurement has its own process. The time is that of the metric alone, not of imports; the
memory is what the process needed at its peak beyond what it needed after the imports, the features
included. Here they are memory maps of the .npy files; the peers are given arrays, read before the
clock starts. torch-fidelity's precision and recall are those of its low-memory mode: the other one
keeps whole matrices of distances, 10 GB each for 50,000 images.

    pip install clean-fid torch-fidelity torchvision    # the peers
    python benchmarks/metrics.py                        # or --num_images=2000 --width=256
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timing

METRICS = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance, 100 subsets of 1,000",
    "inception_score": "Inception Score, 10 splits",
    "precision_recall": "precision and recall, k = 3",
}
CONTENDERS = {
    "keras_cdiff": tuple(METRICS),
    "torch-fidelity": tuple(METRICS),
    "clean-fid": ("frechet", "kernel"),
}
NUM_CLASSES = 1008
RANK = 64  # of the features, before noise and the rectifier


def write_inputs(folder, num_images, width):
    """Writes features like those of an average-pooled rectifier, and logits, block by block."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(RANK, width)) / np.sqrt(RANK)
    to_logits = rng.normal(size=(width, NUM_CLASSES)) / np.sqrt(width)

    def array(name, columns):
        return np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.float32, (num_images, columns)
        )

    logits = array("logits", NUM_CLASSES)
    for name, mean in (("real", 0.0), ("generated", 0.1)):
        features = array(name, width)
        for start in range(0, num_images, 1000):
            rows = slice(start, min(start + 1000, num_images))
            hidden = rng.normal(mean, 1, (rows.stop - start, RANK)) @ mixing
            features[rows] = np.maximum(hidden + 0.3 * rng.normal(size=hidden.shape), 0)
            if name == "generated":
                logits[rows] = 4 * features[rows] @ to_logits


def our_metrics():
    from keras_cdiff import evaluation

    return {
        "frechet": evaluation.frechet_distance,
        "kernel": lambda *sets: evaluation.kernel_distance(*sets)[0],
        "precision_recall": lambda *sets: evaluation.precision_recall(*sets)[0],
        "inception_score": lambda logits: evaluation.inception_score(logits)[0],
    }


def import_torchvision():
    """Imports what the peers import, also where its operations are for another build of PyTorch;
    returns what must live as long as torchvision, if anything.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # It only wants to know of these two operations; the metrics need none.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


def torch_fidelity_metrics():
    import torch
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    quiet, subsets = {"verbose": False}, {"kid_subsets": 100, "kid_subset_size": 1000}
    low_memory = {"prc_neighborhood": 3, "save_cpu_ram": True}

    def frechet(generated, real):
        moments = [metric_fid.fid_features_to_statistics(set_) for set_ in (generated, real)]
        return metric_fid.fid_statistics_to_metric(*moments, **quiet)

    def on_tensors(function):
        return lambda *sets: next(iter(function(*map(torch.from_numpy, sets[::-1])).values()))

    functions = {
        "frechet": frechet,
        "kernel": lambda *sets: metric_kid.kid_features_to_metric(*sets, **subsets, **quiet),
        "precision_recall": lambda *sets: metric_prc.prc_features_to_metric(
            *sets, **low_memory, **quiet
        ),
        "inception_score": lambda logits: metric_isc.isc_features_to_metric(
            logits, splits=10, shuffle=False
        ),
    }
    return {metric: on_tensors(function) for metric, function in functions.items()}


def clean_fid_metrics():
    from cleanfid import fid

    def frechet(*sets):
        moments = [(s.mean(axis=0), np.cov(s, rowvar=False)) for s in sets]
        return fid.frechet_distance(*moments[0], *moments[1])

    return {"frechet": frechet, "kernel": fid.kernel_distance}


def work(contender, metric, folder):
    """Returns value, seconds and bytes of one measurement."""
    ours = contender == "keras_cdiff"
    library = None if ours else import_torchvision()
    peers = {"torch-fidelity": torch_fidelity_metrics, "clean-fid": clean_fid_metrics}
    function = (our_metrics if ours else peers[contender])()[metric]
    names = ("logits",) if metric == "inception_score" else ("real", "generated")
    # BLAS allots its buffers at the first product.
    np.ones((300, 300)) @ np.ones((300, 300))
    before = timing.peak_bytes()
    sets = [np.load(f"{folder}/{name}.npy", mmap_mode="r" if ours else None) for name in names]
    began = time.perf_counter()
    value = float(function(*sets))
    seconds = time.perf_counter() - began
    del library
    return {"value": value, "seconds": seconds, "bytes": timing.peak_bytes() - before}


def main():
    options = timing.read_flags(
        __doc__,
        num_images=50_000,
        width=2048,
        rounds=1,
        metrics=list(METRICS),
        contenders=list(CONTENDERS),
        folder=(None, "for the features, 1 GB; a temporary one by default"),
    )
    if options.worker:
        timing.tell(work(options.worker, options.metrics[0], options.folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_inputs(folder, options.num_images, options.width)
        print(f"{options.num_images:,d} x {options.width:,d} features, {os.cpu_count()} cores\n")
        timing.print_table(
            ("metric", "by", "value", "seconds", "MB", "times our seconds", "times our MB"),
            (row for metric in options.metrics for row in compare(metric, folder, options)),
        )


def compare(metric, folder, options):
    """Yields the rows of one metric. The contenders take turns; ratios are taken round by round."""
    contenders = [name for name in options.contenders if metric in CONTENDERS[name]]
    flags, backend = (f"--metrics={metric}", f"--folder={folder}"), {"KERAS_BACKEND": "jax"}
    backend |= {name: os.environ[name] for name in backend if name in os.environ}
    rounds = [
        {name: timing.measure(name, *flags, **backend) for name in contenders}
        for _ in range(options.rounds)
    ]
    for contender in contenders:
        results = [results[contender] for results in rounds]
        cells = [METRICS[metric], contender, f"{results[0]['value']:.6g}"]
        cells.append(f"{statistics.median(r['seconds'] for r in results):.2f}")
        cells.append(f"{statistics.median(r['bytes'] for r in results) / 1e6:,.0f}")
        for name in ("seconds", "bytes"):
            ours = [results["keras_cdiff"][name] for results in rounds if "keras_cdiff" in results]
            known = min(ours, default=0) > (1e6 if name == "bytes" else 0)  # else that of imports
            cells.append(timing.ratio([r[name] for r in results], ours) if known else "")
        yield cells


if __name__ == "__main__":
    main()
