"""What keeps a run in order when processes come and go: signals, and one process a workdir.

Only the standard library is used here.
"""

import contextlib
import os
import signal
import socket
import threading
import types
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None

# EX_TEMPFAIL of sysexits.h, "temporary failure; the user is invited to retry": a run that was
# interrupted goes on if its command is repeated, and a job script can tell this from a failure (1),
# a wrong command line (2), and death by the signal itself (128 + its number in a shell).
EXIT_INTERRUPTED = 75


class Interruption:
    """Turns SIGTERM and SIGINT into a request to stop, while used as a context manager.

    The run looks at `requested` between two steps. A second SIGINT (Ctrl-C) raises
    KeyboardInterrupt at once. A signal that was ignored before stays ignored, as SIGINT is in
    background jobs of shell scripts; one whose handler was not set by Python keeps it. Outside the
    main thread, where Python allows no handlers, nothing is ever requested. A forked child, as a
    worker that loads data, keeps the handlers of before, so that it can be ended.

    Python runs handlers in the main thread, between two of its own instructions: a signal that
    comes during a long call, as of a compiler, is noticed after it.

    Attributes:
        signal: the first signal that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous = {}
        self._pressed = False
        self._process = None

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
            return
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True


class WorkdirLock:
    """Keeps a second process out of a workdir, while used as a context manager.

    The lock is the operating system's (flock) on the file `lock` in the workdir. It ends with the
    process, however that dies; the file stays and means nothing by itself. It holds the process and
    its host as text, for the message that another process gets.

    Where Python has no flock (Windows) nothing is locked; where the file system has none, a warning
    says so.

    Args:
        path: the workdir; it is made if missing.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.file = self.path / "lock"
        self._descriptor = None

    def __enter__(self) -> "WorkdirLock":
        """Takes the lock.

        Raises:
            ValueError: if another process holds it, or the workdir cannot be written to.
        """
        if fcntl is None:
            return self
        received = f"Received: workdir={str(self.path)!r}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(
                f"The workdir must be a folder that can be written to ({error.strerror}): give it "
                f"the permission, or choose another --workdir. {received}"
            ) from error
        try:
            self._lock(descriptor, received)
        except BaseException:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exception: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:  # not so in a forked child
            _held.remove(descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _lock(self, descriptor: int, received: str) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 500).decode(errors="replace").strip()
            raise ValueError(
                f"The workdir is in use by {holder or 'another process'}: wait for its end, stop "
                f"it, or choose another --workdir. {received}"
            ) from error
        except OSError as error:
            warnings.warn(
                f"The file system of the workdir has no locks ({error.strerror}): see to it "
                f"yourself that no second process trains there. {received}",
                stacklevel=3,
            )
        # The text is a courtesy: a full disk is for the checkpoints to tell.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


_held: set[int] = set()  # descriptors of the locks of this process


def _forget_locks() -> None:
    """Closes the locks in a forked child, which would hold them beyond its parent's death."""
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget_locks)
