"""The table of runs, and the program that works it off."""

import collections
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import keras
import pytest

from keras_cdiff import presets, training
from keras_cdiff.curriculum import Clusters

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text()
COMMANDS = [
    tuple(shlex.split(line)[2:])
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if "curriculum/run.py" in line
]


def dry_run(program, capsys, monkeypatch, *flags):
    """The configurations that a command would train, by run."""
    monkeypatch.setattr(sys, "argv", ["run.py", *flags, "--dry_run"])
    program.run.main()
    lines = capsys.readouterr().out.splitlines()
    return {config["run"]: config for config in map(json.loads, lines)}


@pytest.mark.parametrize("size", ["smoke", "cpu", "gpu"])
def test_all_methods_of_a_setting_have_one_budget_and_one_rate(program, size):
    table = program.settings.runs(size)
    assert len({run.name for run in table}) == len(table)
    assert len({run.name.replace("/", "_") for run in table}) == len(table)  # their logs
    for name, setting in program.settings.SIZES[size].items():
        rate = setting.preset["training"]["learning_rate"]
        ours = [run for run in table if run.setting == name]
        assert {run.method for run in ours} == {*setting.methods}
        for method, seeds in setting.methods.items():
            at_rate = [r.seed for r in ours if r.method == method and r.learning_rate == rate]
            assert at_rate == list(range(seeds))
        tried = {next(iter(setting.methods)): setting.learning_rates}
        tried["curriculum"] = setting.curriculum_rates
        for method in setting.methods:
            others = [r.learning_rate for r in ours if r.method == method]
            wanted = [value for value in tried.get(method, ()) if value != rate]
            assert [value for value in others if value != rate] == wanted
        assert not setting.learning_rates or rate in setting.learning_rates
        assert setting.preset["training"]["steps"] % setting.points == 0


def test_the_dry_run_of_the_comparison_shows_each_method(program, capsys, monkeypatch):
    configs = dry_run(program, capsys, monkeypatch, "--only=emoji_edm/")
    by_method = {name.split("/")[1]: config for name, config in configs.items()}
    assert {*by_method} == {*program.settings.SIZES["cpu"]["emoji_edm"].methods}
    plain = by_method.pop("vanilla")
    assert plain["curriculum"] is None
    curricula = {name: config["curriculum"] for name, config in by_method.items()}
    assert curricula.pop("vanilla_min_snr") is None
    kinds = {name: c["kind"] for name, c in curricula.items() if c["kind"] != "paper"}
    assert kinds == {m: m for m in ("hard_to_easy", "isolated", "unordered")}
    assert "patience" not in curricula["fixed"]
    assert curricula["difficulty"]["clusters"] == "those of a study"
    assert curricula["curriculum"]["clusters"] == "quantile"
    assert curricula["n20_tau200"]["num_clusters"] == 20
    for name, config in by_method.items():
        assert config["training"] == plain["training"]
        assert config["validation"] == plain["validation"]
        weighted = config["model"]["objective"]["config"].pop("weighting")["class_name"]
        assert weighted == ("MinSNR" if "min_snr" in name else "EDMWeight")


def test_the_steps_of_stages_come_in_random_order_and_go_on_exactly(program, make_model):
    clusters = Clusters([0.0, 0.5, 1.0, 8.0], coordinate="sigma")

    def intervals(first, last, seed=0):
        """The range of each step, of a run that stands at `first`."""
        model = make_model()
        model.iteration.assign(first)
        unordered = program.one_run.UnorderedStages(clusters, 20, seed, block=5)
        unordered.set_model(model)
        unordered.on_train_begin()
        seen = []
        for batch in range(last - first):
            seen.append(tuple(keras.ops.convert_to_numpy(model.noise_interval).tolist()))
            unordered.on_train_batch_end(batch)
        return seen

    seen = intervals(0, 60)
    partial = seen[:40]  # as many steps of each range as of two stages of 20
    assert collections.Counter(partial) == {(1.0, 8.0): 20, (0.5, 8.0): 20}
    assert set(seen[40:]) == {(0.0, 8.0)}
    assert all(len(set(partial[start : start + 5])) == 1 for start in range(0, 40, 5))
    assert partial != sorted(partial, reverse=True)
    assert intervals(0, 17) + intervals(17, 45) + intervals(45, 60) == seen
    assert intervals(0, 60, seed=1) != seen
    for block in (0, 15):
        with pytest.raises(ValueError, match=f"Received: block={block}, stage_steps=20"):
            program.one_run.UnorderedStages(clusters, 20, block=block)


def test_the_unordered_control_takes_the_steps_of_the_method_it_names(
    program, monkeypatch, tmp_path
):
    seen = []
    samples = types.SimpleNamespace(write=lambda *_: None)
    monkeypatch.setattr(program.one_run, "Samples", lambda *_: samples)
    monkeypatch.setattr(training, "train", lambda *arguments: seen.append(arguments))
    for method in ("fixed", "unordered"):
        run = program.settings.Run("emoji_edm", method, 3, 4e-3)
        program.one_run.train(run, "cpu", tmp_path)
    (ordered, _, (_,)), (config, _, (_, control)) = seen
    assert config["curriculum"] is None
    assert (
        control.clusters.edges.tolist() == Clusters(ordered["curriculum"]["edges"]).edges.tolist()
    )
    steps = ordered["curriculum"]["stage_steps"]
    counts = collections.Counter(control.stages.tolist())
    assert counts == dict.fromkeys((1, 2, 3, 4), steps // control.block)


def test_the_clusters_are_those_of_the_paper(program, capsys, monkeypatch):
    configs = dry_run(program, capsys, monkeypatch, "--only=emoji_ddpm")
    curricula = {name.split("/")[1]: config["curriculum"] for name, config in configs.items()}
    assert curricula["curriculum"]["clusters"] == "snr"
    assert curricula["uniform"]["edges"] == [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]


def test_the_page_says_what_the_results_do(program, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    with pytest.raises(SystemExit) as end:
        program.report.main()
    assert end.value.code == 0
    figures = re.findall(r"\]\((evidence/\w+\.png)\)", PAGE)
    assert figures
    assert all((ROOT / "docs" / path).is_file() for path in figures)


def test_the_page_has_commands_for_the_papers_settings():
    assert {f for flags in COMMANDS for f in flags if f.startswith("--only=")} >= {
        "--only=ffhq256",
        "--only=imagenet256",
        "--only=cifar10",
    }
    assert any("--size=gpu" in flags for flags in COMMANDS)


@pytest.mark.parametrize("flags", COMMANDS, ids=" ".join)
def test_each_command_of_the_page_can_be_tried(program, capsys, monkeypatch, flags):
    configs = dry_run(program, capsys, monkeypatch, *flags)
    size = next((f.split("=")[1] for f in flags if f.startswith("--size=")), "cpu")
    only = tuple(next((f.split("=")[1] for f in flags if f.startswith("--only=")), "").split(","))
    expected = [run.name for run in program.settings.runs(size) if run.name.startswith(only)]
    assert [*configs] == expected
    if size != "paper":
        return
    for config in configs.values():
        preset = presets.preset(config["preset"])
        assert config["model"]["backbone"] == preset["model"]["backbone"] | {"dtype": "float32"}
        assert preset["training"].items() <= config["training"].items()
        if config["curriculum"] is not None:
            assert preset["curriculum"].items() <= config["curriculum"].items()
            assert config["curriculum"]["kind"] == "paper"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--size=huge",), "cpu, gpu, paper.*'huge'"),
        (("--only=emoji_edm,cat",), "begin the name.*'cat'"),
        (("--only=emoji_edm,",), "begin the name.*''"),
        (("--jobs=0",), "at least 1.*jobs=0"),
        (("--minutes=0",), "above 0.*minutes=0"),
        (("--data=emoji",), "SETTING=SOURCE.*'emoji'"),
        (("--data=dog=emoji",), "a setting of.*'dog=emoji'"),
        (("--data=emoji_edm=emoji",), "images of its own.*--data=emoji_edm=emoji"),
    ],
)
def test_bad_flags_are_named(program, capsys, monkeypatch, flags, message):
    with pytest.raises(SystemExit):
        dry_run(program, capsys, monkeypatch, *flags)
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--output must name"),
        (("--output=nowhere",), r"data_sets.py --output=.*nowhere/data --names=cifar10 first"),
        (("--output=nowhere", "--size=paper", "--only=ffhq"), "--data=ffhq256=latents:PATH"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    program, capsys, monkeypatch, tmp_path, flags, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    with pytest.raises(SystemExit):
        program.run.main()
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert [*tmp_path.iterdir()] == []


def test_results_of_another_budget_are_refused(program, capsys, monkeypatch, tmp_path):
    (tmp_path / "results.jsonl").write_text(json.dumps(make_record("emoji_edm/a", steps=7)) + "\n")
    monkeypatch.setattr(sys, "argv", ["run.py", f"--output={tmp_path}", "--list"])
    with pytest.raises(SystemExit):
        program.run.main()
    assert re.search("another budget.*'steps': 7", capsys.readouterr().err.replace("\n", " "))


def test_an_unknown_run_is_named(program):
    with pytest.raises(ValueError, match=r"--size=cpu --list.*run='emoji'"):
        program.settings.find_run("cpu", "emoji")


def make_record(run, **changes):
    setting, method = run.split("/")
    return {
        "run": run,
        "size": "cpu",
        "data": "x.npz",
        "setting": setting,
        "method": method,
        "seed": 0,
        "learning_rate": 0.1,
        "steps": 5,
        "batch_size": 2,
        "parameters": 6,
        "seconds_per_step": 1.0,
        "stages": [],
        "curve": [{"step": 5}],
        "curve_samples": 2,
        "final": {},
        "final_samples": 3,
        "reference_images": 4,
        "trained_by": "jax",
        "measured_by": "jax",
        "extractor": {},
        "keras_cdiff": "1",
        **changes,
    }


@pytest.fixture
def table_program(tmp_path):
    """run.py beside programs that only note that they were called; the run "s/bad" fails, and
    "t/long" lasts until it is interrupted.
    """
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("run", "analysis"):
        shutil.copy(ROOT / "experiments" / "curriculum" / f"{name}.py", folder)
    records = {name: make_record(name) for name in ("s/a", "s/bad", "t/long", "s/b")}
    (folder / "data_sets.py").write_text("path_of = None")
    (folder / "settings.py").write_text(
        textwrap.dedent(f"""
        from types import SimpleNamespace
        preset = {{"data": "emoji", "training": {{"steps": 5, "batch_size": 2}}}}
        setting = SimpleNamespace(data=None, preset=preset, curve_samples=2, final_samples=3)
        METHODS, Setting = {{}}, None
        SIZES = {{"cpu": {{"s": setting, "t": setting}}}}
        Run = SimpleNamespace
        def runs(size):
            return [Run(name=n, setting=n.split("/")[0]) for n in {[*records]}]
        """)
    )
    called = """
        import json, os, pathlib, signal, sys, time
        flags = dict(f.removeprefix("--").split("=", 1) for f in sys.argv[1:])
        output = pathlib.Path(flags.pop("output"))
        signal.signal(signal.SIGTERM, lambda *_: (print("interrupted", flush=True), sys.exit(75)))
        print(json.dumps([sys.argv[0].rpartition("/")[2], os.environ["KERAS_BACKEND"], flags]))
        sys.stdout.flush()
        """
    (folder / "one_run.py").write_text(
        textwrap.dedent(called)
        + textwrap.dedent("""
        if flags["run"] == "t/long" and not (output / "short").exists():
            time.sleep(1800)
        sys.exit(flags["run"] == "s/bad")
        """)
    )
    (folder / "measure.py").write_text(
        textwrap.dedent(called)
        + textwrap.dedent(f"""
        with open(output / "results.jsonl", "a") as file:
            file.write(json.dumps({records}[flags["run"]]) + "\\n")
        """)
    )
    output = tmp_path / "output"
    output.mkdir()
    command = [sys.executable, folder / "run.py", f"--output={output}", "--jobs=2"]

    def start(*flags):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        del environment["KERAS_BACKEND"]
        return subprocess.Popen([*command, *flags], env=environment, **streams)

    return types.SimpleNamespace(start=start, output=output)


def test_runs_are_worked_off_and_what_is_done_stays_done(table_program):
    results = table_program.output / "results.jsonl"
    process = table_program.start("--extractor=keras:x", "--held_out=s=emoji", "--reference=s=y")
    until = time.monotonic() + 1800
    while not results.exists() or len(results.read_text().splitlines()) < 2:
        assert time.monotonic() < until, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    words, errors = process.communicate(timeout=1800)
    assert process.returncode == 75, errors
    assert "4 runs, 0 of them done" in words
    logs = {
        path.stem: path.read_text().splitlines()
        for path in (table_program.output / "cpu" / "logs").iterdir()
    }
    common = {"run": "s/a", "size": "cpu"}
    assert [json.loads(line) for line in logs["s_a"]] == [
        ["one_run.py", "jax", {**common, "held_out": "emoji"}],
        ["measure.py", "tensorflow", {**common, "reference": "y", "extractor": "keras:x"}],
    ]
    assert len(logs["s_bad"]) == 1
    assert logs["t_long"][-1] == "interrupted"

    process = table_program.start("--minutes=0.02", "--only=t")
    words, errors = process.communicate(timeout=1800)
    assert process.returncode == 75, errors
    assert "the same command goes on" in words

    (table_program.output / "short").touch()
    process = table_program.start()
    words, _ = process.communicate(timeout=1800)
    assert process.returncode == 1
    assert "4 runs, 2 of them done" in words
    assert "failed: s/bad" in words
    runs = [json.loads(line)["run"] for line in results.read_text().splitlines()]
    assert runs == ["s/a", "s/b", "t/long"]
    listed = table_program.start("--list").communicate(timeout=1800)[0].splitlines()
    assert listed == ["done  s/a", "      s/bad", "done  t/long", "done  s/b"]


def test_a_method_of_measured_clusters_needs_them(program, tmp_path):
    run = program.settings.find_run("cpu", "emoji_edm/difficulty/lr0.004/seed0")
    with pytest.raises(ValueError, match=r"a study has measured.*clusters=None"):
        program.one_run.configuration(run, "cpu", tmp_path)
