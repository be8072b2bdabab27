"""Published weights, downloaded once and checked."""

import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from keras_cdiff.common.files import file_digest, write_whole


class RemoteFile(NamedTuple):
    """A file on the web that never changes: its address, bytes (None if not known) and sha256."""

    url: str
    size: int | None
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


PUBLISHED = {
    "inception": RemoteFile(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "mobilenet_v2": RemoteFile(
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        14_212_972,
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
}


def fetch(remote: str | RemoteFile, folder: str | os.PathLike | None = None) -> Path:
    """Returns the path of a published file, downloading it if it is not there.

    Args:
        remote: one of the names in `PUBLISHED`, or a file.
        folder: where downloads are kept; by default the environment variable KERAS_CDIFF_CACHE,
            then ~/.cache/keras_cdiff.

    Raises:
        ValueError: if the file can neither be found nor downloaded, or is not what it should be.
    """
    if isinstance(remote, str):
        if remote not in PUBLISHED:
            raise ValueError(
                f"Weights are published of {', '.join(PUBLISHED)}. Received: remote={remote!r}"
            )
        remote = PUBLISHED[remote]
    folder = folder or os.environ.get("KERAS_CDIFF_CACHE") or "~/.cache/keras_cdiff"
    path = Path(folder).expanduser() / remote.name
    if path.exists():
        fault = _fault(path, remote)
        if fault:
            raise ValueError(
                f"A file in the cache {fault}: delete it, and it will be downloaded again. "
                f"Received: path={str(path)!r}"
            )
        return path
    size = "" if remote.size is None else f" ({remote.size / 1e6:.1f} MB)"
    print(f"Downloading {remote.url}{size} to {path}", file=sys.stderr)
    try:
        write_whole(path, lambda temporary: _download(remote, temporary))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(
            f"The weights could not be downloaded: {error}. Download {remote.url} on another "
            f"machine and put it at {path}; its sha256 is {remote.sha256}. "
            f"Received: url={remote.url!r}"
        ) from error
    return path


def _download(remote: RemoteFile, path: Path) -> None:
    try:
        with urllib.request.urlopen(remote.url, timeout=60) as response, open(path, "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except urllib.error.HTTPError as error:
        error.close()  # it is a response as well
        raise
    fault = _fault(path, remote)
    if fault:
        raise ValueError(f"what came {fault}")


def _fault(path: Path, remote: RemoteFile) -> str | None:
    """What is wrong with a file, or None."""
    size = path.stat().st_size
    if remote.size not in (None, size):
        return f"has {size} bytes instead of {remote.size}"
    digest = file_digest(path)
    return None if digest == remote.sha256 else f"has the sha256 {digest}, not {remote.sha256}"
