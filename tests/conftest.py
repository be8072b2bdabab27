"""Shared fixtures: golden files of the official codes, tiny models, and runs of them."""

import atexit
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import forked
import keras
import numpy as np
import pytest

forked.skip_graph_optimization()

EXIT_STATUS = pytest.StashKey[int]()


def pytest_ignore_collect(collection_path, config):
    """Skips modules whose tests are all left out: importing some takes seconds."""
    if collection_path.suffix == ".py" and config.option.markexpr.startswith("not backend_free"):
        free = "\npytestmark = pytest.mark.backend_free\n" in collection_path.read_text()
        return free or None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks `one_backend` tests exhaustive but on PyTorch: compiling makes them slow elsewhere."""
    if keras.backend.backend() != "torch":
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            if "one_backend" in marks and "backend_free" not in marks:
                item.add_marker("exhaustive")


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends the process at once: taking apart what it has compiled takes up to minutes."""
    if EXIT_STATUS in config.stash:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[EXIT_STATUS])


class Golden(dict):
    """The arrays of one golden file by name, and its `config`."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            super().__init__({name: file[name] for name in file.files})
        self.config = json.loads(str(self.pop("config")))

    def folder(self, prefix):
        """The arrays below `prefix`/, by the rest of their names."""
        prefix = prefix.rstrip("/") + "/"
        return {k.removeprefix(prefix): v for k, v in self.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden():
    """A function: the name of a golden file -> its arrays."""
    folder = Path(__file__).parent / "golden"
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = Golden(folder / f"{name}.npz")
        return loaded[name]

    return load


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts with the float32 policy and a fixed global seed."""
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    """A function: number of classes, 0 for no labels -> the source of 16 small RGB images."""
    folder = tmp_path_factory.mktemp("npz")

    def write(num_classes=3):
        images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
        labels = {"labels": np.arange(16) % num_classes} if num_classes else {}
        path = folder / f"{num_classes}_classes.npz"
        np.savez(path, images=images, **labels)
        return f"npz:{path}"

    return write


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """The source of 16 small RGB images with a caption each, in which two words occur."""
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    captions = np.array(["a cat", "red apple"] * 8)
    path = tmp_path_factory.mktemp("captioned") / "captioned.npz"
    np.savez(path, images=images, captions=captions)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def text_encoder(golden, tmp_path_factory):
    """The name of a text encoder: a BERT of two layers, width 64 and random weights."""
    path = tmp_path_factory.mktemp("text") / "bert.npz"
    np.savez(path, **golden("bert").folder("weights"))
    return f"minilm:{path}"


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
    """An autoencoder of factor 2 with drawn weights, which lies on disk: 4 channels."""
    from keras_cdiff.autoencoders import Autoencoder, kl_networks, open_autoencoder

    path = tmp_path_factory.mktemp("autoencoder") / "kl"
    Autoencoder(*kl_networks(factor=2, width=16), 0.8, "kl").save(path)
    return open_autoencoder(f"kl:{path}")


@pytest.fixture(scope="session")
def latents(npz, autoencoder, tmp_path_factory):
    """The source of latents of 4 x 4, those of the source `npz()`, and of its mirrored images."""
    from keras_cdiff.data import encode_source, open_source

    path = tmp_path_factory.mktemp("latents") / "latents"
    encode_source(open_source(npz()), autoencoder, 8, path, batch_size=8, progress=False)
    return f"latents:{path}"


@pytest.fixture(scope="session")
def tiny(npz, quick):
    """A function: arguments of `resolve` -> a configuration with a very small network."""

    from keras_cdiff import training

    def make(network=None, **arguments):
        small_run = {"data": npz(), "image_size": 8, "steps": 3, "batch_size": 4}
        config = training.resolve("dit_emoji16", **{**small_run, **quick, **arguments})
        small = {"width": 16, "depth": 1, "num_heads": 2}
        config["model"]["backbone"].update(small, **(network or {}))
        config["sampling"]["num_steps"] = 2
        return config

    return make


@pytest.fixture(scope="session")
def make_model():
    """A function: "edm", "ddpm" or "flow" -> a tiny model of that process on 8 x 8 images.

    Its network is a `SmallNetwork`, or, if width or depth is given, a DiT of that size.
    """
    from small_network import SmallNetwork

    from keras_cdiff import DiffusionModel, backbones, ema, objectives, parameterizations, schedules

    default_average = ema.FixedDecay(0.9)
    processes = {
        "edm": (
            schedules.EDM(),
            parameterizations.EDMPreconditioning(0.5),
            objectives.LogNormalSigma(),
        ),
        "ddpm": (
            schedules.LinearBeta(100),
            parameterizations.Epsilon(),
            objectives.UniformTimesteps(100),
        ),
        "flow": (
            schedules.RectifiedFlow(),
            parameterizations.Velocity(),
            objectives.LogitNormalTime(),
        ),
    }

    def make(kind="edm", *, seed=0, average=default_average, parameterization=None, **network):
        schedule, usual, objective = processes[kind]
        parameterization = parameterization or usual
        network = {"image_size": 8, "channels": 3, "num_classes": 3, **network}
        if parameterization.learned_variance:
            network["out_channels"] = 2 * network["channels"]
        if network.keys() & {"width", "depth"}:
            backbone = backbones.DiT(**{"width": 16, "depth": 1, "num_heads": 2, **network})
        else:
            backbone = SmallNetwork(**network)
        return DiffusionModel(
            backbone, schedule, parameterization, objective, ema=average, seed=seed
        )

    return make


@pytest.fixture(scope="session")
def batch():
    """Smooth images (16, 8, 8, 3) in [-1, 1] and labels (16,) of three classes."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, 8)] * 2, indexing="ij")
    patterns = np.stack([np.ones((8, 8)), rows, columns])
    weights = rng.normal(size=(16, 3, 3))
    images = np.tanh(np.einsum("nkc,kij->nijc", weights, patterns)).astype("float32")
    return images, rng.integers(0, 3, 16).astype("int32")


@pytest.fixture(scope="session")
def quick():
    """Arguments of compile() that make the tiny models of the tests compile fast."""
    return {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}


@pytest.fixture(scope="session")
def read_events():
    """A function: a workdir -> its TensorBoard events, loaded."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(workdir):
        return EventAccumulator(str(workdir / "tensorboard"), {"images": 0, "scalars": 0}).Reload()

    return read


@pytest.fixture(scope="session")
def extractor_file(tmp_path_factory):
    """A saved Keras model: the means of four quadrants of an 8 x 8 image, 12 features."""
    path = tmp_path_factory.mktemp("extractor") / "extractor.keras"
    pixels = keras.Input((8, 8, 3))
    features = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(pixels))
    keras.Model(pixels, features, name="quadrants").save(path)
    return path


@pytest.fixture(scope="session")
def read_log():
    """A function: a workdir and the name of a log -> its records, read as strict JSON."""

    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    def read(workdir, name="log.jsonl"):
        lines = (workdir / name).read_text().splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    return read


@pytest.fixture(scope="session")
def run_program(tmp_path_factory):
    """A function: a program and its arguments -> the finished process, its output as text."""

    def run(path, *arguments):
        return forked.run([path, *arguments], tmp_path_factory.mktemp("program"))

    return run


@pytest.fixture(scope="session")
def signal_at():
    """A context manager of a step and a signal: within it training sends itself that signal after
    that step.
    """

    @contextlib.contextmanager
    def send(step, number):
        from keras_cdiff import training

        original = training.StopAt.on_train_batch_end

        def then_signal(callback, batch, logs=None):
            original(callback, batch, logs)
            if callback.step == step:
                os.kill(os.getpid(), number)

        # Background jobs of a shell ignore SIGINT, and runs respect that.
        before = signal.signal(number, signal.default_int_handler)
        try:
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(training.StopAt, "on_train_batch_end", then_signal)
                yield
        finally:
            signal.signal(number, before)

    return send
