"""BUILD agrees with the files that are there and with what they import; and each module of the
package imports only from layers below its own, and backends' libraries stay in their rooms.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[1]
FOLDERS = ("keras_cdiff", "apps", "docs", "tests", "examples", "benchmarks")

# Imports whose distribution is called otherwise, and the benchmarks' peers, installed by hand.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "grpc": "grpcio",
    "tensorflow_serving": "tensorflow_serving_api",
}
NOT_DECLARED = {"cleanfid", "diffusers", "torch_fidelity"}


def read_targets(build):
    """The rules that a BUILD file declares: name -> attributes, with "rule".

    A BUILD file is Starlark, which Python can run: calls of rules are noted down.
    """
    targets = {}

    def note(rule):
        def declare(name, **attributes):
            if name in targets:
                raise ValueError(f"two targets are called {name}")
            targets[name] = {"rule": rule, **attributes}

        return declare

    functions = {rule: note(rule) for rule in ("py_library", "py_binary", "py_test")}
    functions |= dict.fromkeys(("load", "package", "exports_files"), lambda *_, **__: None)
    functions["glob"] = lambda patterns: []  # only data may be found by pattern
    exec(compile(build, "BUILD", "exec"), {"__builtins__": {}, **functions})
    return targets


def imported_names(source):
    """What a file imports, anywhere in it: full names, "a.b" for `from a import b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def find_faults(build, files, constraints):
    """Sentences on all that is wrong with a BUILD file.

    Args:
        build: its text.
        files: path -> text of every file that there is.
        constraints: the text of the list of pinned versions.
    """
    targets = read_targets(build)
    pinned = {
        re.sub(r"[-.]", "_", name).lower() for name in re.findall(r"(?m)^(.+)==", constraints)
    }
    faults = []

    owners = {}  # path -> the targets that have it among their srcs
    for name, target in targets.items():
        for path in target.get("srcs", []):
            owners.setdefault(path, []).append(name)
        for path in [*target.get("srcs", []), *target.get("data", []), *target.get("args", [])]:
            if not path.startswith(":") and path not in files:
                faults.append(f"{name} names {path}, which is missing")
        for label in [*target.get("deps", []), *target.get("data", [])]:
            if label.startswith(":") and label[1:] not in targets:
                faults.append(f"{name} depends on {label}, which is no target")
            if label.startswith("@pypi//") and label.removeprefix("@pypi//") not in pinned:
                faults.append(f"{name} depends on {label}, which constraints.txt does not pin")
    for path in files:
        if path.endswith(".py") and path not in owners:
            faults.append(f"{path} is in no target")
        if path.startswith("keras_cdiff/") and len(owners.get(path, [])) > 1:
            faults.append(f"{path} is in {' and '.join(owners[path])}")

    closures = {}  # target -> itself and all that it depends on, directly or not

    def closure(name, above=()):
        if name in above:
            faults.append(f"circular: {' -> '.join([*above[above.index(name) :], name])}")
            return {name}
        if name not in closures:
            found = {name}
            for label in targets.get(name, {}).get("deps", []):
                local = label.startswith(":")
                found |= closure(label[1:], (*above, name)) if local else {label}
            closures[name] = found
        return closures[name]

    modules = {module_name(path): path for path in files if path.startswith("keras_cdiff/")}
    # A program finds what lies beside it, and tests may look there too.
    folders = ("apps/", "benchmarks/curriculum/", "tests/forked.py", "tests/small_network.py")
    modules |= {Path(path).stem: path for path in files if path.startswith(folders)}
    for name, target in targets.items():
        reach = closure(name)
        for path in target.get("srcs", []):
            for imported in imported_names(files.get(path, "")):
                top = imported.partition(".")[0]
                if top in sys.stdlib_module_names or top in NOT_DECLARED:
                    continue
                beside = path.startswith((*folders, "tests/")) and top in modules
                if top != "keras_cdiff" and not beside:
                    needed = {f"@pypi//{DISTRIBUTIONS.get(top, top)}"}
                else:
                    # `a.b` is module b of package a, or a name in module a.
                    module = imported if imported in modules else imported.rpartition(".")[0]
                    needed = set(owners.get(modules.get(module), []))
                if not needed & reach:
                    faults.append(f"{name}: {path} imports {imported} without a dependency")
    return faults


def test_build_agrees_with_the_files():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text() if path.suffix == ".py" else ""
        for path in paths
    }
    faults = find_faults(
        (ROOT / "BUILD").read_text(), files, (ROOT / "constraints.txt").read_text()
    )
    assert not faults, "\n".join(faults)


FILES = {
    "keras_cdiff/__init__.py": "from keras_cdiff.model import Model",
    "keras_cdiff/model.py": "import math\nimport numpy as np\nfrom keras_cdiff import noise",
    "keras_cdiff/noise.py": "def draw():\n    from PIL import Image",
    "keras_cdiff/emoji.npz": "",
    "apps/train.py": "import keras_cdiff.noise\nfrom keras_cdiff import Model",
}
CONSTRAINTS = "# pinned\nnumpy==2.4.6\npillow==13.0.0\nabsl-py==2.5.1\n"
BUILD = """
load("@rules_python//python:py_library.bzl", "py_library")
py_library(name = "noise", srcs = ["keras_cdiff/noise.py"], deps = ["@pypi//pillow"])
py_library(
    name = "model",
    srcs = ["keras_cdiff/model.py"],
    data = ["keras_cdiff/emoji.npz"],
    deps = [":noise", "@pypi//numpy"],
)
py_library(name = "keras_cdiff", srcs = ["keras_cdiff/__init__.py"], deps = [":model"])
[
    py_binary(name = path.removesuffix(".py"), srcs = [path], deps = [":keras_cdiff"])
    for path in ["apps/train.py"]
]
"""


def test_a_right_build_file_has_no_faults():
    assert find_faults(BUILD, FILES, CONSTRAINTS) == []


@pytest.mark.parametrize(
    ("right", "wrong", "faults"),
    [
        (
            'srcs = ["keras_cdiff/noise.py"], ',
            "",
            [
                "keras_cdiff/noise.py is in no target",
                "model: keras_cdiff/model.py imports keras_cdiff.noise without a dependency",
                "apps/train: apps/train.py imports keras_cdiff.noise without a dependency",
            ],
        ),
        (
            '["keras_cdiff/noise.py"]',
            '["keras_cdiff/noise.py", "keras_cdiff/gone.py"]',
            ["noise names keras_cdiff/gone.py, which is missing"],
        ),
        (
            "keras_cdiff/emoji.npz",
            "keras_cdiff/emojis.npz",
            ["model names keras_cdiff/emojis.npz, which is missing"],
        ),
        (
            '["keras_cdiff/model.py"]',
            '["keras_cdiff/model.py", "keras_cdiff/noise.py"]',
            ["keras_cdiff/noise.py is in noise and model"],
        ),
        (
            '":noise", "@pypi',
            '":noise", ":nose", "@pypi',
            ["model depends on :nose, which is no target"],
        ),
        (
            '"@pypi//numpy"',
            '"@pypi//numpy", "@pypi//scipy"',
            ["model depends on @pypi//scipy, which constraints.txt does not pin"],
        ),
        (
            '":noise", "@pypi//numpy"',
            '"@pypi//numpy", "@pypi//pillow"',
            [
                "model: keras_cdiff/model.py imports keras_cdiff.noise without a dependency",
                "apps/train: apps/train.py imports keras_cdiff.noise without a dependency",
            ],
        ),
        (
            'deps = [":keras_cdiff"])\n',
            'deps = [":model"])\n',
            ["apps/train: apps/train.py imports keras_cdiff.Model without a dependency"],
        ),
        (
            '["@pypi//pillow"]',
            "[]",
            ["noise: keras_cdiff/noise.py imports PIL.Image without a dependency"],
        ),
        (
            '["@pypi//pillow"]',
            '["@pypi//pillow", ":keras_cdiff"]',
            ["circular: noise -> keras_cdiff -> model -> noise"],
        ),
    ],
)
def test_each_kind_of_fault_is_found(right, wrong, faults):
    assert BUILD.count(right) == 1
    assert find_faults(BUILD.replace(right, wrong), FILES, CONSTRAINTS) == faults


def test_two_targets_of_one_name_are_found():
    with pytest.raises(ValueError, match="two targets are called noise"):
        read_targets(BUILD.replace('"model"', '"noise"'))


def test_an_import_of_a_module_that_is_not_there_is_found():
    files = {**FILES, "apps/train.py": "from keras_cdiff.noises import draw"}
    expected = "apps/train: apps/train.py imports keras_cdiff.noises.draw without a dependency"
    assert find_faults(BUILD, files, CONSTRAINTS) == [expected]


# Layers

PACKAGE = ROOT / "keras_cdiff"
# From the lowest to the highest. What shares a layer does not import from each other.
LAYERS = [
    "common presets version",
    "distribution ema schedules weights",
    "augmentation backbones objectives parameterizations",
    "autoencoders curriculum model",
    "convert data samplers",
    "evaluation",
    "training",
    "export study",
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer.split()}
ROOMS = ("distribution/", "export/", "model/train_step/")


def find_layer_faults(path, source):
    """Sentences on all imports of a file of the package that its layer forbids."""
    own = path.split("/")[0].removesuffix(".py")
    for name in imported_names(source):
        top, *inner = name.split(".")
        if name.startswith("keras.src"):
            yield f"{path} imports {name}"
        if top in ("jax", "tensorflow", "torch") and not path.startswith(ROOMS):
            yield f"{path} imports {name}"
        if top == "keras_cdiff" and inner[0] != own and HEIGHT[inner[0]] >= HEIGHT[own]:
            yield f"{path} imports {name}, which is not below it"


def find_circle(graph):
    """A circle of modules that import each other, or None; `graph` holds what each imports."""
    done = set()

    def visit(name, above):
        if name in above:
            return [*above[above.index(name) :], name]
        if name not in done:
            for imported in graph[name]:
                if circle := visit(imported, [*above, name]):
                    return circle
        done.add(name)
        return None

    return next(filter(None, (visit(name, []) for name in graph)), None)


def test_no_modules_import_each_other():
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        sources[module_name(path.relative_to(ROOT).as_posix())] = path.read_text()
    graph = {}
    for name, source in sources.items():
        found = {
            each if each in sources else each.rpartition(".")[0] for each in imported_names(source)
        }
        graph[name] = sorted(found & sources.keys() - {"keras_cdiff", name})
    assert find_circle(graph) is None
    assert find_circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]


def test_imports_go_down():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files} == set(HEIGHT)
    faults = [
        fault
        for path in files
        for fault in find_layer_faults(path.relative_to(PACKAGE).as_posix(), path.read_text())
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schedules/discrete.py", "def f():\n    from keras_cdiff.model import process"),
        ("samplers/sample.py", "from keras_cdiff.data import pipeline"),
        ("samplers/sample.py", "import torch"),
        ("model/process.py", "from keras.src.backend import config"),
    ],
)
def test_each_kind_of_forbidden_import_is_found(path, source):
    assert len(list(find_layer_faults(path, source))) == 1
    assert not list(find_layer_faults("study/page.py", "from keras_cdiff.model import process"))
