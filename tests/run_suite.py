"""Runs the tests in five parts: one a backend, and two for the tests that need no backend.

    python tests/run_suite.py                 what `make test` runs
    python tests/run_suite.py --all           what `make test-all` runs
    python tests/run_suite.py --coverage      measures which lines and branches run
    python tests/run_suite.py jax torch       some of the parts

Two parts run at a time, the longest first. What a part prints is shown at its end, and is until
then in .venv/reports.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / ".venv" / "reports"  # what each part printed last, and its tests
CACHES = ROOT / ".venv" / "caches"  # compiled programs, kept from run to run

# These folders take half of the time of the backend_free tests.
SLOW = ("tests/apps", "tests/export", "tests/training")

# Backend, marker expression and other arguments of pytest, the longest part first.
PARTS = {
    "tensorflow": ("tensorflow", "not backend_free"),
    "jax": ("jax", "not backend_free"),
    "torch": ("torch", "not backend_free"),
    "free_slow": ("tensorflow", "backend_free", *SLOW),
    "free_rest": ("tensorflow", "backend_free", *[f"--ignore={folder}" for folder in SLOW]),
}

VARIABLES = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # As many threads as parts: threads that wait for each other slow both parts down.
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    # Most of the time goes into compiling what runs once: XLA's passes run as always, LLVM's
    # optimization does not.
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    # JAX compiles each new model anew, also one that differs by name alone; its cache notices.
    "JAX_COMPILATION_CACHE_DIR": str(CACHES / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TORCHINDUCTOR_CACHE_DIR": str(CACHES / "torch"),
}


class Test(NamedTuple):
    seconds: float
    part: str
    name: str


class Part(NamedTuple):
    """What came of one part: counts of tests, seconds, and the memory of its largest process in
    bytes.
    """

    name: str
    code: int
    passed: int
    failed: int
    skipped: int
    seconds: float
    memory: int
    tests: list[Test]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--all", action="store_true", help="what `make test-all` runs")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time")
    parser.add_argument("--coverage", action="store_true", help="measure lines and branches")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}. Received: {', '.join(unknown)}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1. Received: --jobs={options.jobs}")

    began = time.monotonic()
    if options.coverage:
        _coverage("erase")
    chosen = [name for name in PARTS if name in (options.parts or PARTS)]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        parts = list(pool.map(lambda name: run_part(name, options.all, options.coverage), chosen))
    if options.coverage:
        _coverage("combine", "--quiet")
        _coverage("report")
    print(summarize(parts, time.monotonic() - began), flush=True)
    sys.exit(max(part.code for part in parts))


def run_part(name: str, exhaustive: bool, coverage: bool) -> Part:
    """Runs the tests of one part, prints what pytest says, and returns what came of them."""
    backend, expression, *arguments = PARTS[name]
    if not exhaustive:
        expression += " and not exhaustive"
    command = ["coverage", "run", "-m"] if coverage else []
    command = [sys.executable, "-m", *command, "pytest", "-q", "-m", expression, *arguments]
    variables = {**VARIABLES, **os.environ, "KERAS_BACKEND": backend}
    REPORTS.mkdir(parents=True, exist_ok=True)
    report, output = REPORTS / f"{name}.xml", REPORTS / f"{name}.txt"
    report.unlink(missing_ok=True)
    with open(output, "wb") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
    code = process.returncode = os.waitstatus_to_exitcode(status)
    print(f"\n{name}\n{output.read_text(errors='replace')}", flush=True)
    counts, tests = read_report(report, name)
    return Part(name, abs(code), *counts, seconds, usage.ru_maxrss * 1024, tests)


def read_report(path: Path, part: str) -> tuple[tuple[int, int, int], list[Test]]:
    """Returns how many tests passed, failed and were skipped by a report of pytest, and all."""
    if not path.exists():  # pytest itself has ended early
        return (0, 1, 0), []
    suite = ElementTree.parse(path).getroot().find("testsuite")
    total, failed, broken, skipped = (
        int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")
    )
    tests = [
        Test(float(case.get("time")), part, f"{case.get('classname')}::{case.get('name')}")
        for case in suite.iter("testcase")
    ]
    return (total - failed - broken - skipped, failed + broken, skipped), tests


def summarize(parts: list[Part], seconds: float) -> str:
    """Returns a table of the parts, the ten slowest tests, and the counts of all."""
    lines = ["part          passed  failed  skipped  seconds  largest process"]
    for part in parts:
        lines.append(
            f"{part.name:12}  {part.passed:6}  {part.failed:6}  {part.skipped:7}  "
            f"{part.seconds:7.0f}  {part.memory / 2**30:11.1f} GiB"
        )
    lines += ["", "the ten slowest tests"]
    slowest = sorted((test for part in parts for test in part.tests), reverse=True)[:10]
    lines += [f"{test.seconds:6.1f} s  {test.part:12}  {test.name}" for test in slowest]
    total = sum(part.seconds for part in parts)
    counts = [sum(part[index] for part in parts) for index in (2, 3, 4)]
    lines += [
        "",
        f"{seconds / 60:.1f} minutes; the parts together {total / 60:.1f}",
        "{} passed, {} failed, {} skipped".format(*counts),
    ]
    return "\n".join(lines)


def _coverage(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
