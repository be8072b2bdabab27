"""Programs in processes that start at once.

Importing Keras and a backend takes 4 to 13 seconds. Here one process imports them, runs nothing,
and forks for each program.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

MOST_SECONDS = 1800  # a program that runs longer hangs

_context = multiprocessing.get_context("forkserver")
# Keras imports TensorFlow on each backend, at the first `get_config`.
_context.set_forkserver_preload(["keras_cdiff", "absl.app", "tensorflow"])


class Program:
    """A program in a forked process, with what the tests need of `subprocess.Popen`.

    Its Keras backend is this process' one, whatever its environment says.

    Args:
        command: the program's path and its arguments.
        output: file that what it prints is appended to.
        errors: file for what it prints to stderr. Default: `output`.
        environment: all its variables. Default: this process' ones.
    """

    def __init__(self, command, output, errors=None, environment=None):
        self.args = [str(word) for word in command]
        files = [str(output), str(errors or output)]
        arguments = self.args, files, {**(os.environ if environment is None else environment)}
        self._process = _context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def kill(self):
        self._process.kill()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def run(command, folder, environment=None):
    """Runs a program to its end, and returns it with its output as text, as `subprocess.run` does.

    Args:
        command: the program's path and its arguments.
        folder: folder for the files that hold the output.
        environment: all its variables. Default: this process' ones.
    """
    output, errors = Path(folder, "output.txt"), Path(folder, "errors.txt")
    program = Program(command, output, errors, environment)
    try:
        code = program.wait(MOST_SECONDS)
    finally:
        program.kill()
    return subprocess.CompletedProcess(
        program.args, code, output.read_text(), errors.read_text(errors="replace")
    )


def skip_graph_optimization():
    """Lets TensorFlow run graphs as they are: optimizing one takes longer than a test runs it."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def _run(command, files, environment):
    """Does in the new process what `python COMMAND` does."""
    for descriptor, path in enumerate(files, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    skip_graph_optimization()
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends without them
