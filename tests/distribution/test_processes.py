"""Who works together, and what processes exchange, without any engine."""

import json

import keras
import numpy as np
import pytest

from keras_cdiff.distribution import (
    LostPeer,
    Processes,
    find_cluster,
    on_rank0,
    processes,
    share,
    shared_by,
    sharing,
)

pytestmark = pytest.mark.backend_free


def test_one_alone():
    alone = Processes()
    assert alone.first
    assert alone.all_gather(b"x" * 10) == [b"x" * 10]
    assert not alone.any(False)
    assert alone.any(True)
    alone.barrier()
    alone.check_same("seed", 3)
    assert list(share("abc", str.upper)) == ["A", "B", "C"]
    with pytest.raises(ZeroDivisionError):
        on_rank0(alone, lambda: 1 / 0)


@pytest.mark.parametrize("piece", [2**28, 7])
def test_messages_of_any_length(piece, in_threads, monkeypatch):
    monkeypatch.setattr(processes, "_PIECE", piece)
    messages = [bytes(range(n)) for n in (24, 0, 250)]
    assert in_threads(3, lambda p: p.all_gather(messages[p.index])) == [messages] * 3


def test_shared_arrays_keep_shape_and_dtype(in_threads):
    arrays = [np.arange(n, dtype="float64").reshape(1, n) for n in (3, 0, 50)] + [np.float32(1)]

    def run(processes):
        with shared_by(processes):
            return list(share(range(4), arrays.__getitem__))

    for received in in_threads(3, run):
        for array, wanted in zip(received, arrays, strict=True):
            np.testing.assert_array_equal(array, wanted)
            assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)


def test_agreement(in_threads):
    assert in_threads(2, lambda p: p.any(p.index == 1)) == [True, True]
    assert in_threads(2, lambda p: p.any(False)) == [False, False]
    assert in_threads(2, lambda p: p.check_same("seed", 3)) == [None, None]
    errors = in_threads(2, lambda p: p.check_same("seed", p.index))
    for index, error in enumerate(errors):
        assert isinstance(error, ValueError)
        assert "must have the same seed" in str(error)
        assert str(error).endswith(f"Received, in process {index}: {index}")


def test_the_first_does_it_and_all_hear_of_its_failure(in_threads):
    done = []
    assert in_threads(2, lambda p: on_rank0(p, lambda: done.append(p.index))) == [None, None]
    assert done == [0]

    def fail():
        raise OSError("no space left")

    first, second = in_threads(2, lambda p: on_rank0(p, fail))
    assert isinstance(first, OSError)
    assert isinstance(second, LostPeer)
    assert "process 0: OSError: no space left" in str(second)


def test_tasks_are_shared_and_all_get_all_results_in_order(in_threads):
    done = [[], [], []]

    def result(task):
        return {"task": task, "array": np.full(task, task, np.float32), "none": None}

    def run(processes):
        def work(task):
            done[processes.index].append(task)
            return result(task)

        with shared_by(processes):
            return list(share(range(8), work))

    for results in in_threads(3, run):
        np.testing.assert_equal(results, [result(task) for task in range(8)])
    assert done == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_a_task_that_fails_ends_all(in_threads):
    def run(processes):
        with shared_by(processes):
            return list(share([1, 0], lambda task: 1 / task))

    first, second = in_threads(2, run)
    assert isinstance(first, LostPeer)
    assert isinstance(second, ZeroDivisionError)


def test_sharing_ends_with_its_block():
    other = Processes()
    with shared_by(other):
        assert sharing() is other
    assert sharing() is not other


def test_a_lost_peer_says_what_to_do():
    message = str(LostPeer(RuntimeError("Connection closed\nby peer")))
    assert "repeat the command for all processes" in message
    assert message.endswith("Received: RuntimeError: Connection closed")


@pytest.fixture
def backend(monkeypatch):
    def choose(name):
        monkeypatch.setattr(keras.backend, "backend", lambda: name)

    return choose


def test_alone_without_arguments_and_variables():
    assert find_cluster(environ={}) is None
    assert find_cluster("localhost:1", environ={}) is None


def test_arguments_and_variables(backend):
    backend("jax")
    both = "a:1, b:2"
    assert find_cluster(both, None, 1, environ={}) == (("a:1", "b:2"), 2, 1)
    assert find_cluster("a:1", 3, 2, environ={}) == (("a:1",), 3, 2)
    names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
    environ = {f"KERAS_DISTRIBUTION_{n}": v for n, v in zip(names, (both, "2", "0"), strict=True)}
    assert find_cluster(environ=environ) == (("a:1", "b:2"), 2, 0)
    assert find_cluster(process_id=1, environ=environ).index == 1


def test_launchers(backend):
    torchrun = {"MASTER_ADDR": "a", "MASTER_PORT": "5", "WORLD_SIZE": "2", "RANK": "1"}
    config = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
    environ = {**torchrun, "TF_CONFIG": json.dumps(config)}
    backend("torch")
    assert find_cluster(environ=environ) == (("a:5",), 2, 1)
    backend("tensorflow")
    assert find_cluster(environ=environ) == (("a:1", "b:2"), 2, 1)
    backend("jax")
    assert find_cluster(environ=environ) is None
    backend("tensorflow")
    for wrong in ('{"cluster": {}}', "no json"):
        with pytest.raises(ValueError, match="TF_CONFIG must be like"):
            find_cluster(environ={"TF_CONFIG": wrong})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("jax", ("a:1,b:2",), "give it its process_id, 0 to 1.*None, with 2 processes"),
        ("jax", ("a:1,b:2", None, 2), "must be 0 to 1 with 2 processes. Received: process_id=2"),
        ("jax", ("a:1,b:2", 3, 0), "address host:port of each of the 3 processes, or of the first"),
        ("jax", ("a,b", 2, 0), "Received: job_addresses='a,b', num_processes=2"),
        ("jax", (None, 2, 0), "must find each other: give `job_addresses`"),
        ("jax", ("a:1", "two", 0), "`num_processes` must be an integer. Received"),
        ("tensorflow", ("a:1", 2, 0), "of each of the 2 processes. Received"),
    ],
)
def test_refusals(name, arguments, message, backend):
    backend(name)
    with pytest.raises(ValueError, match=message):
        find_cluster(*arguments, environ={})
