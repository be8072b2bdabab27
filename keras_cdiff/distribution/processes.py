"""Processes that work together: who they are, and how they exchange what lies on the host."""

import hashlib

_PIECE = 2**28  # bytes that are received at once


class LostPeer(RuntimeError):  # noqa: N818 (it is the peer that is lost)
    """Another process of the task has ended, or does not answer any more."""

    def __init__(self, error: object):
        super().__init__(
            "Another process of this task has ended or does not answer: look into its output. Then "
            "repeat the command for all processes; it goes on from the newest checkpoint, or from "
            f"what was finished. Received: {type(error).__name__}: {_first_line(error)}"
        )


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "")


class Processes:
    """One process alone, and the base of several.

    All of them must call each of the methods, in the same order.

    Attributes:
        index: which of them this one is, from 0 on.
        count: their number.
    """

    index, count = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.index == 0

    def all_gather(self, message: bytes) -> list[bytes]:
        """Returns the messages of all processes in their order, or raises LostPeer."""
        parts, start, length = [b""] * self.count, 0, max(1, _PIECE // self.count)
        while True:
            piece = message[start : start + length]
            start += len(piece)
            received = self._all_gather((b"+" if start < len(message) else b".") + piece)
            parts = [part + each[1:] for part, each in zip(parts, received, strict=True)]
            if all(each[:1] == b"." for each in received):
                return parts

    def _all_gather(self, message: bytes) -> list[bytes]:
        """As `all_gather`, for a message that can be sent at once."""
        return [message]

    def any(self, flag: bool) -> bool:
        """Returns whether the flag of some process is set."""
        return any(message == b"1" for message in self.all_gather(b"1" if flag else b"0"))

    def barrier(self) -> None:
        """Returns when all processes have come here."""
        self.all_gather(b"")

    def check_same(self, what: str, value: object) -> None:
        """Raises a ValueError, in all processes, unless `repr(value)` is the same in each; the
        message says what the value is.
        """
        digests = self.all_gather(hashlib.sha256(repr(value).encode()).digest())
        if len(set(digests)) > 1:
            raise ValueError(
                f"All processes must have the same {what}: start them with the same command, and "
                "keep data and workdir where all of them see the same files. "
                f"Received, in process {self.index}: {value!r}"
            )

    @staticmethod
    def is_peer_lost(error: BaseException) -> bool:
        """Returns whether an exception says that another process is lost."""
        return isinstance(error, LostPeer)

    def close(self) -> None:
        """Ends the connection."""
