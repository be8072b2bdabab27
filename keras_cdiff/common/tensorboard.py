"""TensorBoard events without TensorFlow: scalars and images through tensorboard's own writer."""

import io
import os
import time
from pathlib import Path

import numpy as np


class TensorBoardWriter:
    """Writes scalars and images for TensorBoard; the file is made with the first of them.

    Args:
        folder: the run's folder of events.
        resumed_at: the step at which the run was taken up again, whose earlier events beyond it
            TensorBoard shall not show; None if there are none.
    """

    def __init__(self, folder: str | os.PathLike, resumed_at: int | None = None):
        self.folder = str(folder)
        self.resumed_at = resumed_at
        self._writer = None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes one value for each tag."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(
            step, [Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]
        )

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Writes one uint8 image (H, W, C), C being 1, 3 or 4."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        buffer = io.BytesIO()
        height, width, channels = image.shape
        Image.fromarray(image if channels > 1 else image[..., 0]).save(buffer, format="PNG")
        picture = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=buffer.getvalue(),
        )
        self._write(step, [Summary.Value(tag=tag, image=picture)])

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._writer is not None:
            self._writer.close()

    def _await_later_name(self) -> None:
        """Waits until a new file's name, which begins with the second, comes after all others.

        TensorBoard reads the files by name: two runs within a second would be shown in any order.
        """
        files = Path(self.folder).glob("events.out.tfevents.*")
        seconds = [int(path.name.split(".")[3]) for path in files]
        missing = max(seconds, default=0) + 1 - time.time()
        if 0.0 < missing <= 1.0:
            time.sleep(missing)

    def _write(self, step: int, values: list) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None:
            self._await_later_name()
            self._writer = EventFileWriter(self.folder)
            if self.resumed_at is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.add_event(Event(step=self.resumed_at + 1, session_log=start))
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()
