"""A run that is killed ends as one that nothing happened to: the short version of torture.py."""

import importlib.util
import random
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from keras_cdiff import training
from keras_cdiff.presets import PRESETS

_spec = importlib.util.spec_from_file_location(
    "killed_run", Path(__file__).parent / "killed_run.py"
)
killed_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(killed_run)

RUN = {
    "steps": 24,
    "checkpoint_every": 7,
    "log_every": 5,
    "sample_every": 10,
    "patience": 3,
    "global_clipnorm": 0.5,
}


@pytest.fixture
def compiled_once(tmp_path, monkeypatch):
    """Variables for processes that compile on JAX, as this one does, what none has before."""
    if keras.backend.backend() != "jax":
        yield {}
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.one_backend  # tests/distribution kills a process on each
def test_a_run_killed_inside_a_save_and_again_ends_like_one_that_was_not(
    tmp_path, monkeypatch, quick, compiled_once, read_log
):
    monkeypatch.setitem(PRESETS, killed_run.PRESET, killed_run.small_preset())
    config = training.resolve(killed_run.PRESET, **RUN, **quick)
    training.train(config, tmp_path / "undisturbed")
    assert len({record["stage"] for record in read_log(tmp_path / "undisturbed")}) >= 3

    flags = [f"--{name}={str(value).lower()}" for name, value in {**RUN, **quick}.items()]
    chance = random.Random(0)
    workdir = tmp_path / "killed"

    def life():
        return killed_run.Life(
            workdir,
            flags,
            keras.backend.backend(),
            tmp_path / "output.txt",
            flush_seconds=0.2,
            environment=compiled_once,
        )

    with life() as process:
        process.wait_for((workdir / "checkpoints" / "step_00000007.zip").exists)
        where = killed_run.kill_inside_a_save(process, chance, most=1)
    assert where == killed_run.INSIDE, process.output.read_text()
    first, _ = killed_run.newest_checkpoint(workdir)
    assert first >= 7
    with life() as process:
        where = killed_run.kill_at_a_random_moment(process, chance, most=2)
    assert where, process.output.read_text()
    assert f"goes on from step {first}" in process.output.read_text()

    training.train(config, workdir)
    assert list(killed_run.differences(tmp_path / "undisturbed", workdir)) == []
    assert not list(workdir.glob("checkpoints/writing-*"))

    # The comparison sees the least change in each of its parts.
    log = (workdir / "log.jsonl").read_text()
    (workdir / "log.jsonl").write_text(log.replace('"images": 40,', '"images": 41,'))
    (workdir / "samples" / "step_000010.png").unlink()
    with h5py.File(workdir / "weights" / "ema.weights.h5", "r+") as file:
        kernel = file["final_projection/vars/0"]
        kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(1))
    (workdir / "checkpoints" / "step_00000024.zip").unlink()
    changed = list(killed_run.differences(tmp_path / "undisturbed", workdir))
    assert changed[0].startswith("log.jsonl, line 2: {'step': 10, ")
    assert changed[1:4] == [
        "samples/step_000010.png",
        "weights/ema.weights.h5: final_projection/vars/0",
        "the newest checkpoint is of step 24 and of step 21",
    ]
    assert any(fault.startswith("checkpoint of step 24: backbone/") for fault in changed[4:])
