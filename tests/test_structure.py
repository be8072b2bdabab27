"""BUILD agrees with the files that are there and with what they import; and each module of the
package imports only from layers below its own, and backends' libraries stay in their rooms.
"""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[1]
FOLDERS = ("keras_cdiff", "apps", "tests", "examples", "benchmarks", "experiments")

# Imports whose distribution is called otherwise, and the benchmarks' peers, installed by hand.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "grpc": "grpcio",
    "tensorflow_serving": "tensorflow_serving_api",
}
BESIDE = {
    path.stem
    for folder in ("apps", "benchmarks", "experiments", "tests")
    for path in (ROOT / folder).rglob("*.py")
}
NOT_DECLARED = {"cleanfid", "diffusers", "torch_fidelity"}


@functools.cache
def imported_names(source):
    """What a file imports, anywhere in it: full names, "a.b" for `from a import b`."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_targets(build):
    """The rules of a BUILD file by name. It is Starlark, which Python can run."""
    targets = {}

    def glob(patterns, exclude=(), allow_empty=False):
        matches = {p: {f for f in ROOT.glob(p) if f.is_file()} for p in patterns}
        assert allow_empty or all(matches.values()), patterns
        found = set().union(*matches.values()) - {f for p in exclude for f in ROOT.glob(p)}
        return sorted(f.relative_to(ROOT).as_posix() for f in found)

    def declare(name, **attributes):
        assert name not in targets, name
        targets[name] = attributes

    functions = dict.fromkeys(("py_library", "py_binary", "py_test"), declare)
    functions |= dict.fromkeys(("load", "package"), lambda *_, **__: None)
    exec(compile(build, "BUILD", "exec"), {"__builtins__": {}, "glob": glob, **functions})
    return targets


def find_faults(build):
    """Sentences on all in which a BUILD file does not agree with the tree."""
    targets = read_targets(build)
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = {re.sub(r"[-.]", "_", n).lower() for n in re.findall(r"(?m)^(.+)==", constraints)}
    owners = {}
    for name, target in targets.items():
        for path in target["srcs"]:
            owners.setdefault(path, []).append(name)
    for folder in FOLDERS:
        for path in (p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.py")):
            if path not in owners:
                yield f"{path} is in no target"
            if folder == "keras_cdiff" and len(owners.get(path, [])) > 1:
                yield f"{path} is in {' and '.join(owners[path])}"

    def reach(name):
        """A target and all that it depends on, directly or not."""
        found = {name}
        for label in targets.get(name.removeprefix(":"), {}).get("deps", []):
            found |= reach(label)
        return found

    for name, target in targets.items():
        for label in target.get("deps", []):
            known = (
                label[1:] in targets if label[0] == ":" else label.removeprefix("@pypi//") in pinned
            )
            if not known:
                yield f"{name} depends on {label}, which is not there"
        needed = reach(f":{name}")
        for path in target["srcs"]:
            for imported in imported_names((ROOT / path).read_text()):
                top, *inner = imported.split(".")
                if top == "keras_cdiff":
                    label = f":{inner[0]}" if inner and inner[0] in HEIGHT else ":keras_cdiff"
                elif top in sys.stdlib_module_names or top in NOT_DECLARED or top in BESIDE:
                    continue
                else:
                    label = f"@pypi//{DISTRIBUTIONS.get(top, top)}"
                if label not in needed:
                    yield f"{name}: {path} imports {imported} without {label}"


def test_build_agrees_with_the_files():
    build = (ROOT / "BUILD").read_text()
    assert "\n".join(find_faults(build)) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ('"keras_cdiff/%s.py" % layer,', "", "keras_cdiff/presets.py is in no target"),
        ('"schedules": "common"', '"schedules": ""', "discrete.py imports keras_cdiff.common"),
        ("@keras_cv", "@keras_vc", "autoencoders depends on @pypi//keras_vc, which is not there"),
        ('":study",', '":studies",', "keras_cdiff depends on :studies, which is not there"),
        (" @h5py", "", "training/workdir.py imports h5py without @pypi//h5py"),
        (
            '["keras_cdiff/__init__.py"]',
            'glob(["keras_cdiff/*.py"])',
            "is in version and keras_cdiff",
        ),
    ],
)
def test_each_kind_of_fault_is_found(right, wrong, fault):
    build = (ROOT / "BUILD").read_text()
    assert right in build
    assert fault in "\n".join(find_faults(build.replace(right, wrong, 1)))


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


def defined_names(source):
    """What a module defines or imports at its top, also under `if` and `try`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def test_what_is_imported_from_the_package_is_there():
    defined = {
        module_name(path.relative_to(ROOT).as_posix()): defined_names(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }
    missing = []
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for name in imported_names(path.read_text()):
            module, _, attribute = name.rpartition(".")
            known = name in defined or attribute in defined.get(module, ())
            if name.startswith("keras_cdiff.") and not known:
                missing.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing, "\n".join(missing)


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
