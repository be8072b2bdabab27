"""Each module imports only from layers below its own, and backends' libraries stay in theirs."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

PACKAGE = Path(__file__).parents[1] / "keras_cdiff"
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


def imports(source):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_faults(path, source):
    """Sentences on all imports of a file of the package that its layer forbids."""
    own = path.split("/")[0].removesuffix(".py")
    for name in imports(source):
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
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text()
    graph = {}
    for name, source in sources.items():
        found = {each if each in sources else each.rpartition(".")[0] for each in imports(source)}
        graph[name] = sorted(found & sources.keys() - {"keras_cdiff", name})
    assert find_circle(graph) is None
    assert find_circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]


def test_imports_go_down():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files} == set(HEIGHT)
    faults = [
        fault
        for path in files
        for fault in find_faults(path.relative_to(PACKAGE).as_posix(), path.read_text())
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
def test_each_kind_of_fault_is_found(path, source):
    assert len(list(find_faults(path, source))) == 1
    assert not list(find_faults("study/page.py", "from keras_cdiff.model import process"))
