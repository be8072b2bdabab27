"""Signals ask a run to stop, and a workdir belongs to one process, tried with real processes."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from keras_cdiff.common import files
from keras_cdiff.training import Workdir, interruption
from keras_cdiff.training.interruption import EXIT_INTERRUPTED, Interruption

pytestmark = pytest.mark.backend_free

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Modules are loaded from their files: importing the package would load Keras.
PRELUDE = f"""
import importlib.util, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

def load(path):
    spec = importlib.util.spec_from_file_location("module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

interruption, files = load({interruption.__file__!r}), load({files.__file__!r})

def say(text):
    print(text, flush=True)
"""

STEPS = """
with interruption.Interruption() as run:
    say("ready")
    while not run.requested:
        time.sleep(0.01)
    say(run.signal.name)
    while "wait" in sys.argv:
        time.sleep(0.01)
sys.exit(interruption.EXIT_INTERRUPTED)
"""

FORK = """
with interruption.Interruption() as run:
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    say(os.WTERMSIG(os.waitpid(child, 0)[1]))
    say(run.requested)
"""

HOLD = """
with files.FolderLock(sys.argv[1], ''):
    say("locked")
    time.sleep(600)
"""

HOLD_AND_FORK = """
with files.FolderLock(sys.argv[1], ''):
    if os.fork() == 0:
        say(os.getpid())  # by now it has let go of the lock
    time.sleep(600)
"""


@pytest.fixture
def start():
    """A function: starts a script in another process, which is ended with the test."""
    processes = []

    def run(script, *arguments):
        command = [sys.executable, "-c", PRELUDE + script, *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def handlers():
    """Known handlers of both signals, put back after the test."""
    before = [signal.getsignal(number) for number in SIGNALS]

    def noted(number, frame):
        raise AssertionError(number)

    for number in SIGNALS:
        signal.signal(number, noted)
    yield noted
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_process_at_its_next_look_with_its_own_exit_code(start, number):
    process = start(STEPS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert (out, err, process.returncode) == (f"{number.name}\n", "", EXIT_INTERRUPTED)


def test_the_second_interrupt_ends_a_process_at_once(start):
    process = start(STEPS, "wait")
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGTERM asks for no more than it did
        process.send_signal(number)
        if number == signal.SIGINT:
            assert process.stdout.readline() == "SIGINT\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert "KeyboardInterrupt" in err
    assert process.returncode not in (0, EXIT_INTERRUPTED)


def test_a_forked_child_can_be_ended(start):
    out, _ = start(FORK).communicate(timeout=600)
    assert out == f"{int(signal.SIGTERM)}\nFalse\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_the_request_stays_and_the_handlers_go(handlers, number):
    with Interruption() as run:
        assert (run.requested, run.signal) == (False, None)
        signal.raise_signal(number)
        assert (run.requested, run.signal) == (True, number)
        signal.raise_signal(signal.SIGTERM)
        assert run.signal == number
    assert run.requested
    assert [signal.getsignal(n) for n in SIGNALS] == [handlers, handlers]


def test_handlers_go_after_an_error_too(handlers):
    with pytest.raises(KeyError), Interruption():
        raise KeyError

    def press_twice():
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert [signal.getsignal(n) for n in SIGNALS] == [handlers, handlers]


def test_an_ignored_signal_stays_ignored(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as run:
        signal.raise_signal(signal.SIGINT)
        assert not run.requested
        signal.raise_signal(signal.SIGTERM)
        assert run.requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_has_no_handlers_and_no_error(handlers):
    seen = []

    def work():
        with Interruption() as run:
            seen.extend(signal.getsignal(number) for number in SIGNALS)
            seen.append(run.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers, handlers, False]


def test_a_second_process_is_refused_until_the_first_is_killed(start, tmp_path):
    workdir = tmp_path / "new" / "run"
    process = start(HOLD, str(workdir))
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError) as raised, Workdir(workdir).lock():
        pass
    message = str(raised.value)
    assert f"in use by process {process.pid} on " in message
    assert message.endswith(f"Received: workdir={str(workdir)!r}")
    with Workdir(tmp_path).lock():  # another folder's is another lock
        process.kill()
        process.wait(timeout=600)
    with Workdir(workdir).lock() as lock:
        assert lock.file.read_text().startswith(f"process {os.getpid()} on ")
    assert lock.file.read_text() == ""


def test_a_lock_ends_with_its_process_and_not_with_a_forked_child(start, tmp_path):
    process = start(HOLD_AND_FORK, str(tmp_path))
    child = int(process.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"process {process.pid} on "):
            Workdir(tmp_path).lock().__enter__()
        process.kill()
        process.wait(timeout=600)
        with Workdir(tmp_path).lock():
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_is_taken_and_given_back_within_a_process(tmp_path):
    lock = Workdir(tmp_path).lock()
    for _ in range(2):
        with lock:
            for other in (lock, Workdir(tmp_path).lock()):
                with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
                    other.__enter__()
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        pass


def test_what_a_stranger_left_in_the_lock_file_does_not_matter(tmp_path):
    (tmp_path / "lock").write_bytes(b"process 1 on moon, and a long text \xff" * 99)
    with Workdir(tmp_path).lock() as lock:
        assert len(lock.file.read_bytes().splitlines()) == 1
        lock.file.write_text("")
        with pytest.raises(ValueError, match="in use by another process"):
            Workdir(tmp_path).lock().__enter__()


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "lock").mkdir(parents=True)
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=f"can be written to .*/{name}'$"):
            Workdir(tmp_path / name).lock().__enter__()

    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match=r"can be written to .*Read-only"):
        Workdir(tmp_path).lock().__enter__()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), Workdir(tmp_path).lock():
        pass


def test_nothing_is_locked_where_python_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with Workdir(tmp_path / "a").lock(), Workdir(tmp_path / "a").lock() as lock:
        assert not lock.path.exists()
