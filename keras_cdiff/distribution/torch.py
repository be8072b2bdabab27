"""Several processes on PyTorch, connected by torch.distributed."""

import contextlib
import datetime
import os

import keras
import torch
import torch.distributed as dist

from keras_cdiff.common.arrays import fingerprint, network_weights
from keras_cdiff.distribution.cluster import Cluster
from keras_cdiff.distribution.engine import Engine
from keras_cdiff.distribution.processes import LostPeer, Processes
from keras_cdiff.distribution.replica import acting_as


class TorchProcesses(Processes):
    """Processes of one device each, as torchrun starts them.

    Args:
        cluster: who they are.
        timeout: seconds after which one that does not answer counts as lost.
    """

    def __init__(self, cluster: Cluster, timeout: float):
        self.index, self.count = cluster.index, cluster.count
        options = {"timeout": datetime.timedelta(seconds=timeout)}
        gpus = torch.cuda.is_available()
        if gpus:
            local = int(os.environ.get("LOCAL_RANK", cluster.index % torch.cuda.device_count()))
            torch.cuda.set_device(local)
        try:
            dist.init_process_group(
                "nccl" if gpus else "gloo",
                # torchrun keeps the meeting point itself, at the address in the environment.
                init_method="env://" if _of_torchrun(cluster) else f"tcp://{cluster.addresses[0]}",
                rank=self.index,
                world_size=self.count,
                **options,
            )
            # What lies on the host is exchanged without the GPU.
            self._host = dist.new_group(backend="gloo", **options) if gpus else None
        except RuntimeError as error:
            raise LostPeer(error) from error

    def _all_gather(self, message: bytes) -> list[bytes]:
        messages = [None] * self.count
        try:
            dist.all_gather_object(messages, message, group=self._host)
        except RuntimeError as error:
            raise LostPeer(error) from error
        return messages

    def close(self) -> None:
        self.barrier()  # the first keeps the meeting point: it must not leave early
        dist.destroy_process_group()

    def abandon(self) -> None:
        """Ends the connection without the others; over nccl at the end of the process, as it would
        wait for what the GPU still has to exchange.
        """
        if self._host is None:
            dist.destroy_process_group()

    @staticmethod
    def is_peer_lost(error: BaseException) -> bool:
        """Returns whether an exception says that another process is lost."""
        text = str(error).lower()
        words = ("connection closed by peer", "connection reset", "gloo/transport", "timed out")
        told = isinstance(error, RuntimeError) and any(word in text for word in words)
        return told or isinstance(error, dist.DistError)


def _of_torchrun(cluster: Cluster) -> bool:
    names = {"TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"}
    if not names <= set(os.environ):
        return False
    return cluster.addresses[0] == f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


class TorchEngine(Engine):
    """A process for each device, whose gradients `keras_cdiff.model.train_step` adds up."""

    def __init__(self, processes: Processes):
        super().__init__(processes)
        self.num_replicas = processes.count
        devices = torch.cuda.device_count()
        if processes.count == 1 and devices > 1:
            raise ValueError(
                "PyTorch has a process for each device: start as many, for instance by torchrun "
                f"--nproc_per_node={devices}. Received: one process, with {devices} GPUs"
            )

    def running(self) -> contextlib.AbstractContextManager:
        return acting_as(self.processes.index, self.processes.count)

    def check_model(self, model: keras.Model) -> None:
        weights = fingerprint("", *network_weights(model.backbone))
        self.processes.check_same("initial weights", weights)


_BUCKET = 2**23  # numbers that are sent at once


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replaces tensors by their sums over all processes.

    Source: as many as fit are sent together, as in Li et al., "PyTorch Distributed", 2020, section
        3.2.3.
    """
    sent = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def rows_of_all(rows: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Returns the rows (B,) of all processes, one process after the other, without gradient."""
    own = torch.stack([row.detach() for row in rows])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return list(torch.cat(everyone, dim=1))


def _buckets(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The tensors in groups of one dtype and about `_BUCKET` numbers, in their order."""
    buckets, size = [], 0
    for tensor in tensors:
        if not buckets or size >= _BUCKET or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets
