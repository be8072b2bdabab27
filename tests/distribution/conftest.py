"""Fixtures of the tests with several processes: how these are started and what they leave."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import pytest

from keras_cdiff.distribution import Processes


@pytest.fixture(scope="session")
def launch():
    """A function: a script of this folder and its arguments -> exit codes and outputs of as many
    processes of it as are wanted, which find each other on this machine. Each has as many virtual
    devices as are wanted; on TensorFlow it makes them itself, by DEVICES. An exact one rounds as
    this process does.
    """

    def run(script, *arguments, processes=1, devices=1, timeout=240, exact=False):
        command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
        variables = {
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            "OMP_NUM_THREADS": "1",  # the processes share the cores of one
            "DEVICES": str(devices),
        }
        flags = [f"--xla_force_host_platform_device_count={devices}"]
        if not exact:  # to compile fast
            flags.append("--xla_backend_optimization_level=0")
        variables["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
        if processes > 1:
            ports = _free_ports(processes)
            addresses = ",".join(f"localhost:{port}" for port in ports)
            variables["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = addresses
        started = [
            subprocess.Popen(
                command,
                env={**variables, **_numbered(number, processes)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(processes)
        ]
        deadline = time.monotonic() + timeout
        try:
            outputs = [p.communicate(timeout=deadline - time.monotonic())[0] for p in started]
        finally:
            for process in started:
                process.kill()
        return [process.returncode for process in started], outputs

    return run


class OfThreads(Processes):
    """Processes that are threads of one."""

    def __init__(self, index, messages, barrier):
        self.index, self.count = index, len(messages)
        self._messages, self._barrier = messages, barrier

    def _exchange(self, message):
        self._messages[self.index] = message
        self._barrier.wait(10)
        found = list(self._messages)
        self._barrier.wait(10)
        return found


@pytest.fixture(scope="session")
def in_threads():
    """A function: a number and a work, which takes processes -> what it returns or raises in each
    of so many, which are threads.
    """

    def run_all(count, work):
        messages, barrier = [b""] * count, threading.Barrier(count)
        results = [None] * count

        def run(index):
            try:
                results[index] = work(OfThreads(index, messages, barrier))
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return results

    return run_all


def _numbered(number, processes):
    return {"KERAS_DISTRIBUTION_PROCESS_ID": str(number)} if processes > 1 else {}


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
