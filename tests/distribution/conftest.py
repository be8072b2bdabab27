"""Fixtures of the tests with several processes: how these are started and what they leave."""

import os
import socket
import threading
import time
from pathlib import Path

import forked
import pytest

from keras_cdiff.distribution import Processes


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """A function: a script of this folder and its arguments -> exit codes and outputs.

    It runs the script in `processes` processes that find each other on this machine, each with
    `devices` virtual devices; on TensorFlow the script makes them itself, by DEVICES. With
    exact=True LLVM optimizes as in this process, so that numbers are rounded alike.
    """

    def run(script, *arguments, processes=1, devices=1, exact=False):
        command = [Path(__file__).parent / script, *arguments]
        variables = {
            **os.environ,
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
        folder = tmp_path_factory.mktemp("processes")
        outputs = [folder / f"{number}.txt" for number in range(processes)]
        started = [
            forked.Program(
                command, output, environment={**variables, **_numbered(number, processes)}
            )
            for number, output in enumerate(outputs)
        ]
        deadline = time.monotonic() + forked.MOST_SECONDS
        try:
            codes = [process.wait(deadline - time.monotonic()) for process in started]
        finally:
            for process in started:
                process.kill()
        return codes, [output.read_text() for output in outputs]

    return run


class OfThreads(Processes):
    """Processes that are threads of one."""

    def __init__(self, index, messages, barrier):
        self.index, self.count = index, len(messages)
        self._messages, self._barrier = messages, barrier

    def _all_gather(self, message):
        self._messages[self.index] = message
        self._barrier.wait(600)
        found = list(self._messages)
        self._barrier.wait(600)
        return found


@pytest.fixture(scope="session")
def in_threads():
    """A function: a count and `work` -> what work(processes) returns or raises in each of so many
    threads, which stand for processes.
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
            thread.join(600)
            assert not thread.is_alive(), "a process waits for another that does not answer"
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
