"""What the programs share: their flags, --help, how they begin and end."""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

if TYPE_CHECKING:
    from keras_cdiff.distribution import Processes

FLAGS = flags.FLAGS

# What a user can do something about: a message says it, without the place in the code.
EXPECTED = (FloatingPointError, ImportError, OSError, ValueError)

_titles: dict[str, str] = {}  # the heading under which --help shows a flag


def _load(file: str) -> object:
    """Loads a file of keras_cdiff by itself: the package imports Keras, and --backend is not known
    yet.
    """
    path = Path(__file__).parents[1] / "keras_cdiff" / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


settings = _load("training/settings.py")
PRESETS = _load("presets.py").PRESETS


def define_settings(group: type, *names: str) -> list[str]:
    """Defines flags for a group of settings.

    Args:
        group: a dataclass of `keras_cdiff.training.settings`.
        *names: the settings of it that the program has; all if none are named.

    Returns:
        Their names.
    """
    fields = [f for f in dataclasses.fields(group) if not names or f.name in names]
    for field in fields:
        setting, kind = settings.describe(field)
        name, default, text = field.name, field.default, setting.help
        if setting.choices:
            flags.DEFINE_enum(name, default, setting.choices, text)
        elif kind is bool:
            flags.DEFINE_bool(name, default, text)
        elif kind is int:
            flags.DEFINE_integer(name, default, text, setting.least, setting.most)
        elif kind is float:
            flags.DEFINE_float(name, default, text, setting.least, setting.most)
        elif kind is tuple or kind not in (str, object):
            flags.DEFINE(_Interval(), name, default, text)
        else:
            flags.DEFINE_string(name, default, text)
        _titles[name] = group.__doc__.rstrip(".")
    return [field.name for field in fields]


class _Interval(flags.ArgumentParser):
    """Two numbers, LOW,HIGH."""

    syntactic_help = "two numbers, LOW,HIGH"

    def parse(self, argument: str | tuple) -> tuple[float, float]:
        try:
            low, high = map(float, argument.split(","))
        except ValueError:
            raise ValueError(f"it must be two numbers, LOW,HIGH. Received: {argument}") from None
        return low, high

    def flag_type(self) -> str:
        return "LOW,HIGH"


def values(names: list[str]) -> dict:
    """Returns the values of flags by name."""
    return {name: FLAGS[name].value for name in names}


_PROCESSES = ("job_addresses", "num_processes", "process_id", "peer_timeout")


def define_machine(*others: str) -> None:
    """Defines the flags of a program that says where it runs: on which backend, in which processes.

    Args:
        *others: flags of the program that --help shows with them.
    """
    flags.DEFINE_enum(
        "backend",
        None,
        ["tensorflow", "jax", "torch"],
        "Keras backend. Default: KERAS_BACKEND, or else that of ~/.keras/keras.json.",
    )
    flags.register_validator(
        "backend",
        lambda backend: backend is None or importlib.util.find_spec(backend) is not None,
        message="The backend is not installed: pip install jax, torch or tensorflow.",
    )
    flags.DEFINE_string(
        "job_addresses",
        None,
        "host:port of each process that works on this task, separated by commas; on JAX and "
        "PyTorch that of the first is enough. Default: KERAS_DISTRIBUTION_JOB_ADDRESSES, or what "
        "torchrun or TF_CONFIG say; else this process works alone.",
    )
    flags.DEFINE_integer(
        "num_processes", None, "Number of these processes; not needed with all addresses."
    )
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0 on.")
    flags.DEFINE_float(
        "peer_timeout",
        300.0,
        "Seconds after which a process that does not answer counts as lost, on PyTorch.",
        lower_bound=1.0,
    )
    _titles.update(dict.fromkeys(["backend", *others, *_PROCESSES], "Where it runs"))


_MODEL = ("workdir", "step", "weights", "preset", "image_size", "num_classes")


def define_model(is_named: Callable[[dict], bool], message: str, *others: str) -> list[str]:
    """Defines the flags that name a trained model, and how it is sampled.

    Args:
        is_named: says of the flags' values whether they are right together, as `one_model`.
        message: what is said if they are not.
        *others: the program's own flags that `is_named` looks at.

    Returns:
        The names of the settings of sampling.
    """
    flags.DEFINE_string("workdir", None, "Folder of a training run, finished or not.")
    flags.DEFINE_integer(
        "step", None, "Training step of a checkpoint of --workdir. Default: the last.", 1
    )
    flags.DEFINE_string("weights", None, "A weights file, instead of --workdir; needs --preset.")
    flags.DEFINE_string("preset", None, "The preset that --weights were trained with.")
    flags.DEFINE_integer(
        "image_size", None, "The image size of --weights, and of images that are not a model's.", 1
    )
    flags.DEFINE_integer("num_classes", None, "The number of classes of --weights.", 0)
    flags.DEFINE_string(
        "autoencoder",
        None,
        "What decodes samples that are latents: stable_diffusion, stable_diffusion:FOLDER or "
        "kl:FOLDER. Default: a --workdir knows where its own was; of --weights it must be said.",
    )
    flags.DEFINE_string(
        "text_encoder",
        None,
        "What embeds prompts: minilm:FILE, clip or clip:FOLDER. Default: a --workdir knows where "
        "its own was; of --weights the preset's.",
    )
    _titles.update(dict.fromkeys((*_MODEL, "autoencoder", "text_encoder"), "The trained model"))
    flags.register_multi_flags_validator([*_MODEL, *others], is_named, message=message)
    return define_settings(settings.Sampling)


def one_model(chosen: dict) -> bool:
    """Returns whether the flags name one trained model: a workdir, or weights and their preset."""
    if chosen["workdir"]:
        described = ("weights", "preset", "image_size", "num_classes")
        return all(chosen[name] is None for name in described)
    return chosen["step"] is None and all(chosen[name] for name in ("weights", "preset", "output"))


def load_model() -> tuple:
    """Returns the model that the flags name, and its configuration."""
    from keras_cdiff import training

    if FLAGS.workdir:
        return training.load_run(FLAGS.workdir, FLAGS.text_encoder, FLAGS.autoencoder, FLAGS.step)
    changes = values(["autoencoder", "image_size", "num_classes", "text_encoder"])
    return training.load_weights(FLAGS.weights, FLAGS.preset, **changes)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, chooses the backend and calls the program; what a user can do something
    about ends it with a message.
    """

    def start(arguments: list[str]) -> None:
        if len(arguments) > 1:
            sys.exit(f"Flags begin with --. Received: {' '.join(arguments[1:])}")
        if "backend" in FLAGS and FLAGS.backend:
            os.environ["KERAS_BACKEND"] = FLAGS.backend
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets at length
        from keras_cdiff import training

        try:
            main()
        except training.Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            sys.exit(interrupted.exit_code)
        except EXPECTED as error:
            sys.exit(f"error: {error}")

    app.run(start, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(arguments[1:]):
        print(_help(arguments[0]))
        sys.exit(0)
    return app.parse_flags_with_usage(arguments)


def _help(program: str) -> str:
    """What the program does, and its flags under headings, the most used first."""
    lines = [sys.modules["__main__"].__doc__.strip()]
    own = [flag.name for flag in FLAGS.flags_by_module_dict()[program]]
    own = [name for name in own if name not in _titles]
    titles = {**dict.fromkeys(own, "This program"), **_titles}
    for title in sorted(set(titles.values()), key=[*titles.values()].index):
        lines += ["", f"{title}:"]
        for flag in (FLAGS[name] for name in titles if titles[name] == title):
            choices = getattr(flag.parser, "enum_values", None)
            kind = f"<{'|'.join(choices)}>" if choices else flag.flag_type()
            words = flag.help.removeprefix(f"{kind}: ") if choices else flag.help
            default = "" if flag.default in (None, False) else f" Default: {flag.default}."
            lines.append(f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}={kind}")
            lines += textwrap.wrap(
                words + default,
                width=96,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )
    return "\n".join([*lines, "", "--helpfull also shows the flags of absl."])


@contextlib.contextmanager
def connected() -> Iterator["Processes"]:
    """Connects the processes of the task; within it errors end the program without waiting for
    others.

    Yields:
        The processes; one alone, if there are no others.
    """
    from keras_cdiff import distribution

    cluster = distribution.find_cluster(FLAGS.job_addresses, FLAGS.num_processes, FLAGS.process_id)
    try:
        with distribution.connected(cluster, FLAGS.peer_timeout) as processes:
            command = {n: FLAGS[n].value for n in FLAGS if n not in _PROCESSES and FLAGS[n].present}
            processes.check_same("flags", sorted(command.items()))
            yield processes
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if cluster is None or (isinstance(error, SystemExit) and not error.code):
            raise
        _leave(error)


def _leave(error: BaseException) -> None:
    """Ends the program at once: engines would wait, on their way out, for processes that have ended
    or will not come.
    """
    from keras_cdiff.distribution import LostPeer

    code, message = getattr(error, "exit_code", 1), str(error)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        message = error.code if isinstance(error.code, str) else ""
    elif isinstance(error, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    elif not isinstance(error, (*EXPECTED, LostPeer)) and code == 1:
        traceback.print_exception(error)
        message = ""
    elif code == 1:
        message = f"error: {error}"
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
