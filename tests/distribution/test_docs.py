"""docs/distributed.md, the files for clusters that it names, and the plan that it shows."""

import re
import shlex
import subprocess
from pathlib import Path

import keras
import pytest

from keras_cdiff import backbones
from keras_cdiff.presets import preset

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text()
SLURM, KUBERNETES = (
    (ROOT / "examples" / "cluster" / name).read_text() for name in ("slurm.sh", "kubernetes.yaml")
)


@pytest.fixture(scope="module")
def run(run_program):
    """A function: a program and its arguments -> its finished process, the output as text."""
    return lambda path, *arguments: run_program(ROOT / path, *arguments)


def find_commands():
    """(program, flags) of each command of a program in the page's code and the clusters' files."""
    code = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    code += SLURM.replace("\\\n", " ") + re.sub(r"\n +(?=--)", " ", KUBERNETES)
    # A variable stands for a number, or for a host.
    code = re.sub(r"\$\([^()\n]*\)|\$\w+", "0", code)
    for app, flags in re.findall(r"apps/(\w+)\.py((?: +--\w+=[^\s']+)+)", code):
        yield app, tuple(flags.split())


COMMANDS = list(dict.fromkeys(find_commands()))


def test_there_is_a_command_for_each_engine_and_program():
    trained = [flags for app, flags in COMMANDS if app == "train"]
    for backend in ("jax", "tensorflow", "torch"):
        assert any({f"--backend={backend}", "--distribution=data"} <= {*f} for f in trained)
    assert any({"--distribution=model", "--model_devices=4"} <= {*flags} for flags in trained)
    assert {app for app, _ in COMMANDS} == {"train", "sample", "evaluate"}
    assert len(trained) >= 10


@pytest.mark.parametrize("flags", [flags for app, flags in COMMANDS if app == "train"])
def test_commands_that_train_can_be_tried(run, flags):
    process = run("apps/train.py", *flags, "--dry_run")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("app", ["sample", "evaluate", "encode", "study"])
def test_other_programs_have_the_flags(run, app):
    used = {flag.partition("=")[0] for name, flags in COMMANDS if name == app for flag in flags}
    used |= {"--job_addresses", "--num_processes", "--process_id"}
    known = set(
        re.findall(r"^ +(--)(?:\[no\])?(\w+)", run(f"apps/{app}.py", "--help").stdout, re.M)
    )
    assert used <= {"".join(flag) for flag in known}


def test_the_job_script_is_a_script():
    process = subprocess.run(["bash", "-n"], input=SLURM, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    options = re.findall(r"^#SBATCH (\S+)", SLURM, re.MULTILINE)
    assert {"--signal=TERM@120", "--requeue", "--ntasks-per-node=1"} <= set(options)


def test_the_manifest_fits_together():
    service, job = KUBERNETES.split("\n---\n")
    assert "kind: Service" in service
    assert "clusterIP: None" in service
    assert "completionMode: Indexed" in job
    (name,) = re.findall(r"^  name: (\S+)$", service, re.MULTILINE)
    (job_name,) = re.findall(r"^  name: (\S+)$", job, re.MULTILINE)
    assert f"job-name: {job_name}" in service
    assert f"subdomain: {name}" in job
    assert f"--job_addresses={job_name}-0.{name}:" in job
    counts = re.findall(r"(?:completions: |parallelism: |--num_processes=)(\d+)", job)
    assert len(counts) == 3
    assert len(set(counts)) == 1
    assert "\t" not in KUBERNETES


@pytest.fixture(scope="module")
def plan(run):
    process = run("benchmarks/scaling_plan.py")
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_the_page_shows_the_plan(plan):
    assert "`python benchmarks/scaling_plan.py`" in PAGE
    assert f"\n\n{plan}\n\n" in PAGE


def test_the_plan_counts_the_parameters_of_the_network(plan):
    network = preset("dit_s_2_imagenet256")["model"]["backbone"]
    del network["class_name"]
    built = backbones.DiT(**network)
    count = sum(int(keras.ops.size(weight)) for weight in built.trainable_weights)
    assert f"| DiT-S/2 | {count:,} |" in plan


def test_the_plan_follows_its_formulas(run):
    """By hand, for DiT-S/2 on 16 devices in twos: 256 tokens of 384, 12 blocks, float32."""
    arguments = "--sizes=s --devices=16 --model_devices=2 --images=1 --dtype_policy=float32"
    rows = run("benchmarks/scaling_plan.py", *shlex.split(arguments)).stdout.splitlines()[-2:]
    data, model = ([cell.strip() for cell in row.split("|")[5:9]] for row in rows)
    vectors = 12 * 15 * 384 + 5 * 384 + 32  # biases
    matrices = 32_865_056 - vectors
    assert data == ["0.7", "0.2", f"{2 * 15 / 16 * 4 * (matrices + vectors) / 1e6:.0f}", "0"]
    gradients = 2 * 7 / 8 * 4 * (matrices / 2 + vectors)
    sent = 2 * 1 / 2 * 12 * 4 * 2 * 256 * 384 * 4
    assert model == ["0.3", "0.3", f"{gradients / 1e6:.0f}", f"{sent / 1e6:.0f}"]


@pytest.mark.parametrize("flag", ["--sizes=xxl", "--model_devices=3", "--patch_size=3"])
def test_a_bad_argument_is_named(run, flag):
    process = run("benchmarks/scaling_plan.py", flag)
    assert process.returncode == 2
    assert flag.partition("=")[0] in process.stderr
