"""Which processes work together, and which of them this one is: from arguments, or from the
variables that launchers set.
"""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import keras


class Cluster(NamedTuple):
    """Processes that work together on one task."""

    addresses: tuple[str, ...]
    """host:port of each process, in their order; or that of the first alone."""
    count: int
    """Number of processes."""
    index: int
    """Which of them this one is, 0 being the one that writes."""


def find_cluster(
    job_addresses: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Returns the processes that work together; None for one process alone.

    What is not given is taken from KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and
    _PROCESS_ID, as `keras.distribution.initialize` does; else, on PyTorch, from torchrun's
    MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK; on TensorFlow, from TF_CONFIG.

    Args:
        job_addresses: "host:port" of each process in their order, separated by commas; on JAX and
            PyTorch that of the first is enough.
        num_processes: their number; not needed with all addresses.
        process_id: which of them this one is, from 0 on.
        environ: variables of the environment.

    Raises:
        ValueError: if something is missing or out of its range.
    """
    arguments = {
        "JOB_ADDRESSES": job_addresses,
        "NUM_PROCESSES": num_processes,
        "PROCESS_ID": process_id,
    }
    addresses, count, index = (
        environ.get(f"KERAS_DISTRIBUTION_{name}") if value is None else value
        for name, value in arguments.items()
    )
    if (addresses, count, index) == (None, None, None):
        found = _from_launcher(environ)
        if found is None:
            return None
        addresses, count, index = found
    addresses = tuple(part.strip() for part in (addresses or "").split(",") if part.strip())
    count = _integer("num_processes", len(addresses) if count is None else count)
    if count == 1:
        return None
    if not addresses:
        raise ValueError(
            "Processes that work together must find each other: give `job_addresses`, host:port of "
            f"each. Received: job_addresses={job_addresses!r}, process_id={process_id!r}"
        )
    if index is None:
        raise ValueError(
            "Each process must know which one it is: give it its process_id, 0 to "
            f"{count - 1}. Received: process_id=None, with {count} processes"
        )
    index = _integer("process_id", index)
    enough = (1, count) if keras.backend.backend() != "tensorflow" else (count,)
    wrong = [a for a in addresses if not a.rpartition(":")[0] or not a.rpartition(":")[2].isdigit()]
    if count < 1 or len(addresses) not in enough or wrong:
        needed = f"the address host:port of each of the {count} processes"
        if 1 in enough:
            needed += ", or of the first"
        raise ValueError(
            f"`job_addresses` must hold {needed}. "
            f"Received: job_addresses={','.join(addresses)!r}, num_processes={count}"
        )
    if not 0 <= index < count:
        raise ValueError(
            f"`process_id` must be 0 to {count - 1} with {count} processes. "
            f"Received: process_id={index}"
        )
    return Cluster(addresses, count, index)


def _from_launcher(environ: Mapping[str, str]) -> tuple[str, int | str, int | str] | None:
    """What torchrun or TF_CONFIG say, where it concerns the backend."""
    backend = keras.backend.backend()
    if backend == "torch" and {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environ):
        address = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
        return address, environ["WORLD_SIZE"], environ["RANK"]
    if backend == "tensorflow" and environ.get("TF_CONFIG"):
        try:
            config = json.loads(environ["TF_CONFIG"])
            workers, task = config["cluster"]["worker"], config["task"]
            if task["type"] != "worker" or set(config["cluster"]) != {"worker"}:
                raise ValueError("all processes must be workers")
            return ",".join(workers), len(workers), task["index"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": '
                '{"type": "worker", "index": 0}}. '
                f"Received: TF_CONFIG={environ['TF_CONFIG']!r} ({error})"
            ) from error
    return None


def _integer(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"`{name}` must be an integer. Received: {name}={value!r}") from None
