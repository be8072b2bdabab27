"""Work that processes share, or that one does while the others wait."""

import contextlib
import contextvars
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from keras_cdiff.distribution.processes import LostPeer, Processes

# No engine takes a process for lost that it has heard of so recently.
_SECONDS_BETWEEN_HEARTBEATS = 5.0

_WORKING, _DONE, _FAILED = b"working", b"done", b"failed: "

_sharing = contextvars.ContextVar("sharing")
_ALONE = Processes()


def sharing() -> Processes:
    """Returns the processes that share work, as `shared_by` has set them."""
    return _sharing.get(_ALONE)


@contextlib.contextmanager
def shared_by(processes: Processes) -> Iterator[None]:
    """Within it `share` divides tasks among processes, and so do the generation of samples, the
    extraction of features, the encoding of latents and studies; all processes must call them with
    the same arguments, and get the same results.
    """
    token = _sharing.set(processes)
    try:
        yield
    finally:
        _sharing.reset(token)


def share(tasks: Sequence, work: Callable[[object], object]) -> Iterator[object]:
    """Yields the results of all tasks in their order, in each process.

    The tasks are done in rounds: in each, every process does one, and all exchange the results.

    Args:
        tasks: the same in all processes.
        work: takes a task, and returns plain data for JSON, in which arrays may stand. What it
            calls shares nothing with other processes.

    Raises:
        LostPeer: if a task has failed in another process, or the process has ended.
    """
    processes = sharing()
    for start in range(0, len(tasks), processes.count):
        own = tasks[start + processes.index : start + processes.index + 1]
        with local_work():
            results = [work(task) for task in own]
        if processes.count == 1:
            yield from results
        else:
            for message in processes.all_gather(_pack(results)):
                yield from _unpack(message)


def _pack(results: list) -> bytes:
    arrays, stream = [], io.BytesIO()

    def place(array: np.ndarray) -> dict[str, int]:
        arrays.append(np.asarray(array))
        return {"number of array": len(arrays) - 1}

    text = json.dumps(results, default=place)
    np.savez(stream, np.array(text), *arrays)
    return stream.getvalue()


def _unpack(message: bytes) -> list:
    with np.load(io.BytesIO(message), allow_pickle=False) as file:
        text, *arrays = file.values()

    def find(value: dict) -> object:
        return arrays[value["number of array"]] if "number of array" in value else value

    return json.loads(str(text), object_hook=find)


@contextlib.contextmanager
def local_work() -> Iterator[Processes]:
    """Within it each process works by itself; it ends when all have done their work.

    However long one takes, the others wait: all send a heartbeat every few seconds. What is called
    within the block shares nothing with others.

    Yields:
        The processes that share work, which say which of them this one is.

    Raises:
        LostPeer: at the end of this process' own work, if that of another has failed, or it has
            ended; on JAX the end of the first process ends the others sooner.
    """
    processes = sharing()
    if processes.count == 1:
        yield processes
        return
    heartbeat = _Heartbeat(processes)
    try:
        with shared_by(Processes()):
            yield processes
    except BaseException as error:
        heartbeat.fail(error)
        raise
    heartbeat.finish()


def on_rank0(processes: Processes, action: Callable[[], object]) -> None:
    """Calls `action` in rank 0 of `processes`; the others wait for its end, however long it takes.

    Raises:
        LostPeer: in the others, if the action has failed in the first, where its error is raised.
    """
    with shared_by(processes), local_work():
        if processes.first:
            action()


class _Heartbeat:
    """What a process tells the others while it works; each message is one of all processes."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for the others; raises LostPeer if one has failed or ended."""
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

    def _beat(self) -> None:
        while self._error is None and not self._ended.wait(_SECONDS_BETWEEN_HEARTBEATS):
            self._tell(_WORKING)

    def _tell(self, state: bytes) -> list[bytes]:
        """Returns what all processes tell, and keeps what went wrong."""
        try:
            states = self._processes.all_gather(state)
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
