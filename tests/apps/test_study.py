import csv

import numpy as np
import pytest

from keras_cdiff.curriculum import Clusters


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "data.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8))
    return f"npz:{path}"


@pytest.mark.one_backend
def test_relative_entropies_need_no_training(run_app, backend, data, tmp_path):
    """And what was measured decides a curriculum."""
    process = run_app(
        "study",
        *(f"--data={data}", "--image_size=8", "--num_experts=0", "--schedule=cosine"),
        *("--num_levels=5", "--num_draws=24", "--num_clusters=3", f"--output={tmp_path}", backend),
    )
    assert process.returncode == 0, process.stderr
    assert str(tmp_path / "REPORT.md") in process.stdout
    assert (tmp_path / "relative_entropy_Cosine.png").exists()
    with open(tmp_path / "relative_entropy.csv", newline="") as file:
        found = [float(row["nats_per_dimension"]) for row in csv.DictReader(file)]
    # At sigma 0.002 each image stands alone: d / 4 for each squared unit of log SNR.
    assert found[0] == pytest.approx(0.25, rel=1e-6)
    assert Clusters.load(tmp_path / "clusters_relative_entropy.json").num_clusters == 3


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--output"),
        (("--output=x", "--preset=nothing"), "preset must be one of"),
        (("--output=x", "--data=npz:missing.npz"), "missing.npz"),
        (("--output=x", "--experts=11"), "must be numbers in 1..10, or none"),
        (("--output=x", "--extractor=keras:missing.keras"), "missing.keras"),
        (("--output=x", "--schedule=cubic"), "cubic"),
        (("--output=x", "word"), "Flags begin with --"),
    ],
)
def test_bad_arguments_say_what_is_wrong(run_app, tmp_path, arguments, message):
    arguments = [a.replace("=x", f"={tmp_path / 'x'}") for a in arguments]
    process = run_app("study", *arguments)
    assert process.returncode not in (0, 75)
    assert message in process.stderr + process.stdout
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.backend_free
def test_a_run_takes_clusters_from_a_file(run_app, tmp_path):
    Clusters([0.0, 0.5, np.inf], "measured").save(tmp_path / "clusters.json")
    process = run_app("train", "--dry_run", f"--clusters={tmp_path / 'clusters.json'}")
    assert process.returncode == 0, process.stderr
    assert '"clusters": "measured"' in process.stdout
    assert '"num_clusters": 2' in process.stdout
    process = run_app("train", "--dry_run", f"--clusters={tmp_path / 'none.json'}")
    assert process.returncode != 0
    assert "uniform, snr, quantile, or the path of a JSON file" in process.stderr
