import dataclasses
import json

import pytest

from keras_cdiff import training
from keras_cdiff.presets import PRESETS
from keras_cdiff.training import settings


def test_a_run_keeps_everything_in_its_workdir(tmp_path, train_small, backend, quick):
    workdir = tmp_path / "run"
    arguments = (
        f"--workdir={workdir}",
        backend,
        "--data=emoji",
        "--steps=3",
        "--batch_size=4",
        "--num_clusters=2",
        f"--jit_compile={str(quick.get('jit_compile', 'auto')).lower()}",
        "--log_every=2",
    )
    process = train_small(*arguments)
    assert process.returncode == 0, process.stderr
    assert "Curriculum stage 1/2 at iteration 0: sigma in [" in process.stdout
    assert "step 3/3  12 images  loss" in process.stdout
    files = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.")}
    assert len(events) == 1
    assert files - events == {
        "config.json",
        "log.jsonl",
        "checkpoints/step_00000003.zip",
        "lock",
        "samples/step_000003.png",
        "weights/ema.weights.h5",
        "weights/raw.weights.h5",
        "weights/step.json",
    }
    config = json.loads((workdir / "config.json").read_text())
    assert backend.endswith(config["backend"])
    records = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 3]

    again = train_small(*arguments[:-1], "--log_every=1", "--seed=1")
    assert again.returncode == 1
    assert "seed was 0 and is now 1" in again.stderr
    assert "log_every" not in again.stderr  # it may change
    assert "Traceback" not in again.stderr


def test_a_dry_run_prints_the_configuration_and_opens_no_data(tmp_path, run_app, backend):
    given = {
        "data": "npz:nowhere.npz",
        "image_size": 8,
        "num_classes": 2,
        "steps": 3,
        "batch_size": 4,
        "learning_rate": 0.5,
        "curriculum": "isolated",
        "clusters": "snr",
        "num_clusters": 2,
        "patience": 7,
        "dtype_policy": "mixed_bfloat16",
        "jit_compile": "true",
        "checkpoint_every": 7,
        "keep_last": 2,
        "keep_every": 70,
        "max_nonfinite": 3,
        "gradient_accumulation_steps": 2,
        "global_clipnorm": 1.5,
        "rematerialize": True,
        "seed": 4,
        "log_every": 5,
        "sample_every": 6,
        "evaluate_every": 7,
        "evaluate_samples": 8,
        "extractor": "inception:nowhere.npz",
        "validate_every": 9,
        "validation_data": "npz:elsewhere.npz",
        "validation_images": 10,
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    process = run_app(
        "train", "--dry_run", backend, f"--workdir={tmp_path / 'run'}", "--horizontal_flip", *flags
    )
    assert process.returncode == 0, process.stderr
    expected = training.resolve("dit_emoji16", horizontal_flip=True, **given)
    assert json.loads(process.stdout) == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir must name the folder"),
        (("--patience=0",), "patience"),
        (("--num_clusters=0",), "num_clusters"),
        (("--curriculum=random",), "paper|none|hard_to_easy|isolated"),
        (("--backend=cntk",), "tensorflow|jax|torch"),
        (("--batch_size=0",), "batch_size"),
        (("run",), "Received: run"),
    ],
)
def test_flags_out_of_range_fail_at_once(tmp_path, run_app, arguments, message):
    workdir = (f"--workdir={tmp_path / 'run'}",) if arguments else ()
    process = run_app("train", *workdir, *arguments)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset=dit_huge",), "edm_emoji16. Received: name='dit_huge'"),
        (("--data=npz:nowhere.npz",), "There is no such file"),
    ],
)
def test_what_cannot_be_trained_ends_with_a_message(tmp_path, run_app, arguments, message):
    process = run_app("train", f"--workdir={tmp_path / 'run'}", *arguments)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
def test_the_help_has_examples_all_settings_under_headings_and_the_presets(run_app):
    process = run_app("train", "--help")
    assert process.returncode == 0
    words = " ".join(process.stdout.split())
    assert "python apps/train.py --workdir=runs/emoji" in words
    assert ", ".join(PRESETS) in words
    place = words.index("This program:")
    for group in settings.GROUPS:
        place = words.index(group.__doc__.rstrip(".") + ":", place)
        for field in dataclasses.fields(group):
            setting, kind = settings.describe(field)
            flag = f"--[no]{field.name} " if kind is bool else f"--{field.name}="
            place = words.index(flag, place)
            assert setting.help in words[place:]
            assert not setting.choices or f"<{'|'.join(setting.choices)}>" in words[place:]
    assert words.index("Where it runs:") > place
