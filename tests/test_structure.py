"""BUILD covers the files that are there and what they import; and each module of the package
imports only from layers below its own, and backends' libraries stay in their rooms.
"""

import ast
import functools
import glob
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_cdiff"
# Where a file imports what lies beside it.
PROGRAMS = ("apps/", "benchmarks/", "examples/", "experiments/", "tests/")

# Imports whose distribution is called otherwise, and the benchmarks' peers, installed by hand.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "grpc": "grpcio",
    "tensorflow_serving": "tensorflow_serving_api",
}
NOT_DECLARED = {"cleanfid", "diffusers", "torch_fidelity"}


def imported_names(source):
    """What a file imports, anywhere in it: full names, "a.b" for `from a import b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


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


# BUILD


def read_targets(root):
    """The rules that the BUILD file of a folder declares: name -> attributes, with "rule".

    A BUILD file is Starlark, which Python can run: calls of rules are noted down.
    """
    targets = {}

    def declare(rule, name, **attributes):
        targets[name] = {"rule": rule, "srcs": [], "deps": [], **attributes}

    def find(patterns, exclude=(), allow_empty=False):
        found, excluded = (
            {path for each in some for path in glob.glob(each, root_dir=root, recursive=True)}
            for some in (patterns, exclude)
        )
        return sorted(found - excluded)

    rules = ("py_library", "py_binary", "py_test")
    functions = {rule: functools.partial(declare, rule) for rule in rules}
    functions |= dict.fromkeys(("load", "package", "exports_files"), lambda *_, **__: None)
    build = compile((root / "BUILD").read_text(), "BUILD", "exec")
    exec(build, {"__builtins__": {}, "glob": find, **functions})
    return targets


def find_faults(root):
    """Sentences on all that is wrong with the BUILD file of a folder."""
    targets = read_targets(root)
    constraints = re.findall(r"(?m)^(.+)==", (root / "constraints.txt").read_text())
    pinned = {f"@pypi//{re.sub(r'[-.]', '_', name).lower()}" for name in constraints}
    files = {
        path.relative_to(root).as_posix(): path.read_text()
        for folder in ("keras_cdiff/", *PROGRAMS)
        for path in (root / folder).rglob("*.py")
    }
    owners = {}  # path -> the targets that have it among their srcs
    for name, target in targets.items():
        for path in target["srcs"]:
            owners.setdefault(path, set()).add(name)
    faults = [f"{path} is in no target" for path in files if path not in owners]
    faults += [f"{path} is missing" for path in owners if path not in files]

    known = pinned | {f":{name}" for name in targets}
    for name, target in targets.items():
        faults += [f"{name} depends on {each}" for each in target["deps"] if each not in known]
        if not target["srcs"] and not pinned & {*target["deps"]}:
            faults.append(f"{name} is empty")
    graph = {f":{name}": target["deps"] for name, target in targets.items()}
    graph = {each: [] for target in targets.values() for each in target["deps"]} | graph
    if circle := find_circle(graph):
        return [*faults, f"circular: {' -> '.join(circle)}"]

    @functools.cache
    def reach(label):
        """A target and all that it depends on, directly or not."""
        return {label}.union(*map(reach, graph[label]))

    programs = [name for name, target in targets.items() if target["rule"] != "py_library"]
    used = set().union(*(reach(f":{name}") for name in programs))
    faults += [f"nothing uses {name}" for name in targets if f":{name}" not in used]

    modules = {module_name(path): path for path in files if path.startswith("keras_cdiff/")}
    beside = {Path(path).stem: path for path in files if path.startswith(PROGRAMS)}
    for path, source in files.items():
        found = modules | beside if path.startswith(PROGRAMS) else modules
        for imported in imported_names(source):
            top = imported.partition(".")[0]
            if top in sys.stdlib_module_names or top in NOT_DECLARED:
                continue
            # `a.b` is module b of package a, or a name in module a.
            module = imported if imported in found else imported.rpartition(".")[0]
            needed = {f"@pypi//{DISTRIBUTIONS.get(top, top)}"}
            if top in found or top == "keras_cdiff":
                needed = {f":{owner}" for owner in owners.get(found.get(module), ())}
            faults += [
                f"{name}: {path} imports {imported} without a dependency"
                for name in owners.get(path, ())
                if not needed & reach(f":{name}")
            ]
    return faults


def test_build_agrees_with_the_files():
    faults = find_faults(ROOT)
    assert not faults, "\n".join(faults)


FILES = {
    "keras_cdiff/__init__.py": "from keras_cdiff.model import Model",
    "keras_cdiff/model.py": "import math\nimport numpy as np\nfrom keras_cdiff import noise",
    "keras_cdiff/noise/__init__.py": "def draw():\n    from PIL import Image",
    "apps/train.py": "import flags\nfrom keras_cdiff import Model",
    "apps/flags.py": "from keras_cdiff.noise import draw",
    "constraints.txt": "# pinned\nnumpy==2.4.6\npillow==13.0.0\nabsl-py==2.5.1\n",
    "BUILD": """
load("@rules_python//python:py_library.bzl", "py_library")
py_library(name = "noise", srcs = glob(["keras_cdiff/noise/**/*.py"]), deps = ["@pypi//pillow"])
py_library(name = "model", srcs = ["keras_cdiff/model.py"], deps = [":noise", "@pypi//numpy"])
py_library(name = "keras_cdiff", srcs = ["keras_cdiff/__init__.py"], deps = [":model"])
py_library(name = "flags", srcs = ["apps/flags.py"], deps = [":keras_cdiff"])
[
    py_binary(name = path.removesuffix(".py"), srcs = [path], deps = [":flags"])
    for path in ["apps/train.py"]
]
""",
}


@pytest.mark.parametrize(
    ("right", "wrong", "faults"),
    [
        ("noise/**/*", "noise/*", []),
        ("apps/train", "apps/gone", ["apps/train.py is in no target", "apps/gone.py is missing"]),
        (":noise", ':noise", ":nose', ["model depends on :nose"]),
        ("//numpy", '//numpy", "@pypi//scipy', ["model depends on @pypi//scipy"]),
        ("//pillow", '//pillow", ":model', ["circular: :model -> :noise -> :model"]),
        ("\n[", '\npy_library(name = "ema")\n[', ["ema is empty", "nothing uses ema"]),
        (
            "//numpy",
            "//pillow",
            ["model: keras_cdiff/model.py imports numpy without a dependency"],
        ),
        (
            '":flags"',
            '":keras_cdiff"',
            ["nothing uses flags", "apps/train: apps/train.py imports flags without a dependency"],
        ),
    ],
)
def test_each_kind_of_fault_is_found(right, wrong, faults, tmp_path):
    build = FILES["BUILD"]
    assert right in build
    for path, text in {**FILES, "BUILD": build.replace(right, wrong)}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert find_faults(tmp_path) == faults


# Layers

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
