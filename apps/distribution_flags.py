"""Flags of programs that several processes can work on together, and how these meet and part."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from keras_cdiff.distribution import Processes

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "job_addresses",
    None,
    "host:port of each process that works on this task, separated by commas; on JAX and PyTorch "
    "that of the first is enough. Default: KERAS_DISTRIBUTION_JOB_ADDRESSES, or what torchrun or "
    "TF_CONFIG say; else this process works alone.",
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


@contextlib.contextmanager
def connected() -> Iterator["Processes"]:
    """Connects the processes of the task; within it errors end the program without waiting for
    others.

    Yields:
        The processes; one alone, if there are no others.
    """
    from keras_cdiff import distribution

    try:
        cluster = distribution.find_cluster(
            FLAGS.job_addresses, FLAGS.num_processes, FLAGS.process_id
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        with distribution.connected(cluster, FLAGS.peer_timeout) as processes:
            command = {n: FLAGS[n].value for n in FLAGS if n not in _OWN and FLAGS[n].present}
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
    elif not isinstance(error, (*_EXPECTED, LostPeer)) and code == 1:
        traceback.print_exception(error)
        message = ""
    elif code == 1:
        message = f"error: {error}"
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# What a user can do something about: a message says it, without the place in the code.
_EXPECTED = (FloatingPointError, ImportError, OSError, ValueError)

# Flags that differ from process to process.
_OWN = ("job_addresses", "num_processes", "process_id", "peer_timeout")
