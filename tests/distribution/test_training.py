"""Runs on one device, on several, in several processes: the same training."""

import json
import signal

import keras
import numpy as np
import pytest

from keras_cdiff import distribution, training
from keras_cdiff.distribution import Processes
from keras_cdiff.training.checkpoint import read_checkpoint

BACKEND = keras.backend.backend()
# Kinds of layout, their devices, and whether XLA compiles TensorFlow's steps.
LAYOUTS = {
    "jax": [
        ("data", 2, "auto"),
        pytest.param("data", 8, "auto", marks=pytest.mark.exhaustive),
        ("model", 8, "auto"),
    ],
    "tensorflow": [
        ("data", 2, False),  # test_step.py has steps that XLA compiles
        pytest.param("data", 2, "auto", marks=pytest.mark.exhaustive),
    ],
    "torch": [],  # a device a process
}[BACKEND]
STEPS = 20


@pytest.fixture(scope="module")
def config(tiny, npz, extractor_file):
    """A run whose curriculum passes through three stages in 20 steps, and which is evaluated."""

    def make(steps=STEPS, jit_compile=BACKEND == "jax", evaluate=True):
        made = tiny(
            steps=steps,
            batch_size=8,
            horizontal_flip=True,
            num_clusters=3,
            patience=2,
            log_every=1,
            checkpoint_every=5,
            keep_last=10,
            evaluate_every=15,
            evaluate_samples=8,
            extractor=f"keras:{extractor_file}",
            validate_every=15,
            validation_data=npz(),
            validation_images=4,
            global_clipnorm=1.0,
            jit_compile=jit_compile,
        )
        made["training"].update(learning_rate_schedule="constant", warmup_steps=0)
        if not evaluate:
            made["evaluation"] = None
        return made

    return make


@pytest.fixture(scope="module")
def write(config, tmp_path_factory):
    """A function: steps, jit_compile -> the path of the configuration."""

    def as_file(*arguments, **options):
        path = tmp_path_factory.mktemp("config") / "config.json"
        path.write_text(json.dumps(config(*arguments, **options)))
        return path

    return as_file


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The workdir of a run on one device that nothing happened to."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    training.train(config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def compiled(config, tmp_path_factory):
    """The same, compiled by XLA, under which TensorFlow's random numbers are others."""
    workdir = tmp_path_factory.mktemp("compiled") / "run"
    training.train(config(jit_compile="auto"), workdir)
    return workdir


def assert_same(workdir, alone, read_log, evaluated=True):
    """Losses, stages, and all that a checkpoint holds are equal to 1e-5."""
    records, expected = read_log(workdir), read_log(alone)
    assert len({record["stage"] for record in expected}) == 3
    for name in ("loss", "batch_loss"):
        np.testing.assert_allclose(
            [r[name] for r in records], [r[name] for r in expected], rtol=1e-5
        )
    for name in ("step", "stage", "interval", "images"):
        assert [r[name] for r in records] == [r[name] for r in expected]
    file = f"checkpoints/step_{STEPS:08d}.zip"
    (arrays, _), (wanted, _) = (read_checkpoint(path / file) for path in (workdir, alone))
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        finite = np.isfinite(array)
        assert np.array_equal(finite, np.isfinite(arrays[name]))
        scale = np.abs(array[finite]).max(initial=0.0)
        np.testing.assert_allclose(
            arrays[name][finite], array[finite], rtol=0, atol=1e-5 * scale, err_msg=name
        )
    found, reference = (read_log(path, "validation.jsonl")[-1] for path in (workdir, alone))
    assert found["step"] == reference["step"]
    np.testing.assert_allclose(found["loss"], reference["loss"], rtol=1e-5)
    if evaluated:
        found, reference = (read_log(path, "evaluations.jsonl")[-1] for path in (workdir, alone))
        assert found["step"] == reference["step"]
        distances = [record["metrics"]["frechet_distance"] for record in (found, reference)]
        np.testing.assert_allclose(*distances, rtol=1e-3)


if LAYOUTS:

    @pytest.mark.parametrize(("kind", "devices", "jit_compile"), LAYOUTS)
    def test_virtual_devices_of_one_process(
        kind, devices, jit_compile, request, launch, write, tmp_path, read_log
    ):
        path = write(jit_compile=jit_compile)
        by_xla = BACKEND == "tensorflow" and jit_compile
        alone = request.getfixturevalue("compiled" if by_xla else "alone")
        codes, (output,) = launch("train_worker.py", path, tmp_path / "run", kind, devices=devices)
        assert codes == [0], output
        split = ", 4 for a copy of the model" if kind == "model" else ""
        assert f"{devices} devices of 1 process{split}, into" in output
        assert_same(tmp_path / "run", alone, read_log)


def assert_killed(codes, outputs, index):
    """One of two processes was killed, and the other has ended by that, with a message."""
    assert codes[index] == -signal.SIGKILL
    output = outputs[1 - index]
    assert codes[1 - index] == 1, output
    assert "error: Another process of this task has ended" in output


def test_one_of_two_processes_is_killed_and_one_alone_goes_on(
    config, launch, write, alone, tmp_path, read_log
):
    arguments = ("train_worker.py", write(), tmp_path / "run", "data", 1, 13)
    codes, outputs = launch(*arguments, processes=2)
    assert_killed(codes, outputs, 1)
    assert max(tmp_path.glob("run/checkpoints/*")).name == "step_00000010.zip"
    training.train(config(), tmp_path / "run")
    assert_same(tmp_path / "run", alone, read_log)


@pytest.mark.exhaustive
def test_two_processes_of_which_one_is_killed(launch, write, alone, tmp_path, read_log):
    arguments = ("train_worker.py", write(), tmp_path / "run", "data")
    codes, outputs = launch(*arguments, 1, 13, processes=2)
    assert_killed(codes, outputs, 1)
    assert max(tmp_path.glob("run/checkpoints/*")).name == "step_00000010.zip"
    codes, outputs = launch(*arguments, processes=2)
    assert codes == [0, 0], outputs
    assert "goes on from step 10" in outputs[0]
    assert "step" not in outputs[1]
    assert_same(tmp_path / "run", alone, read_log)


@pytest.mark.exhaustive
def test_from_one_process_to_two_and_back(config, launch, write, alone, tmp_path, read_log):
    """Without evaluations, which test_shared_work.py compares."""
    workdir = tmp_path / "run"
    training.train(config(5, evaluate=False), workdir)
    arguments = ("train_worker.py", write(15, evaluate=False), workdir, "data")
    codes, outputs = launch(*arguments, 0, 8, processes=2)
    assert_killed(codes, outputs, 0)
    codes, outputs = launch(*arguments, processes=2)
    assert codes == [0, 0], outputs
    training.train(config(evaluate=False), workdir)
    assert_same(workdir, alone, read_log, evaluated=False)


class Other(Processes):
    """One of two processes, of which the other is asked to end."""

    count = 2

    def __init__(self, index):
        self.index = index

    def _all_gather(self, message):
        answer = b".1" if message == b".0" else message
        return [message, answer] if self.first else [answer, message]


@pytest.mark.parametrize("index", [0, 1])
def test_all_end_where_one_is_asked_to(index, config, tmp_path, capsys):
    engine = distribution.Engine(Other(index))
    watched_by_none = {**config(), "evaluation": None, "validation": None}
    with pytest.raises(training.Interrupted, match="by another process of this task at step 1"):
        training.train(watched_by_none, tmp_path / "run", engine=engine)
    assert training.Interrupted.exit_code == 75
    left = [path.name for path in tmp_path.glob("run/checkpoints/*")]
    assert left == (["step_00000001.zip"] if index == 0 else [])
    assert (tmp_path / "run/log.jsonl").exists() == (index == 0)
    assert bool(capsys.readouterr().out) == (index == 0)
