"""The programs of experiments/curriculum, which find one another by plain names."""

import importlib
import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "curriculum"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.py")))


@pytest.fixture(scope="module", autouse=True)
def program():
    """The modules by name; they leave sys.modules as it was."""
    before = dict(sys.modules)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(FOLDER)
        for name in NAMES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "").parent == FOLDER:
                del sys.modules[name]
    assert all(sys.modules.get(name) is before.get(name) for name in NAMES)
