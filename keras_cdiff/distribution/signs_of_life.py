"""Work that each process does by itself, for as long as it takes, while the others wait for it."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from keras_cdiff.distribution.processes import LostPeer, Processes, spread, spreading

# No engine takes a process for lost that it has heard of so recently.
_SECONDS_BETWEEN_SIGNS = 5.0

_WORKING, _DONE, _FAILED = b"working", b"done", b"failed: "


@contextlib.contextmanager
def apart() -> Iterator[Processes]:
    """Within it each process works by itself; it ends when all have done their work.

    However long one takes, the others wait: all give a sign of life every few seconds, those that
    work by a thread of their own. What is called within the block shares nothing with others.

    Yields:
        The processes that share their work, to ask which of them this one is; they exchange nothing
        before the block has ended.

    Raises:
        LostPeer: at the end of this process' own work, if that of another has failed, or it has
            ended; on JAX the end of the first process ends the others sooner.
    """
    processes = spreading()
    if processes.count == 1:
        yield processes
        return
    signs = _SignsOfLife(processes)
    try:
        with spread(Processes()):
            yield processes
    except BaseException as error:
        signs.fail(error)
        raise
    signs.finish()


def first_does(processes: Processes, action: Callable[[], object]) -> None:
    """Calls `action` in the first process, on whose end the others wait, however long it takes.

    Args:
        processes: the processes, all of which call this.
        action: what is to be done.

    Raises:
        LostPeer: in the others, if the action has failed in the first, where its error is raised.
    """
    with spread(processes), apart():
        if processes.first:
            action()


class _SignsOfLife:
    """What a process tells the others while it works: each exchange is one of all processes.

    Args:
        processes: the processes.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for the others.

        Raises:
            LostPeer: if one has failed or ended.
        """
        self._stop()
        while self._error is None:
            if set(self._tell(_DONE)) == {_DONE}:
                return
        raise self._error

    def fail(self, error: BaseException) -> None:
        """Tells the others that there is nothing to wait for."""
        self._stop()
        if self._error is None:
            self._tell(_FAILED + f"{type(error).__name__}: {error}".encode())

    def _keep_telling(self) -> None:
        while self._error is None and not self._ended.wait(_SECONDS_BETWEEN_SIGNS):
            self._tell(_WORKING)

    def _tell(self, state: bytes) -> list[bytes]:
        """Returns what all processes tell, and keeps what went wrong."""
        try:
            states = self._processes.exchange(state)
        except Exception as error:  # on a thread it would be lost
            self._error = error
            return []
        for index, other in enumerate(states):
            if other.startswith(_FAILED) and index != self._processes.index:
                reason = other.removeprefix(_FAILED).decode()
                self._error = LostPeer(RuntimeError(f"process {index}: {reason}"))
        return states

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join()
