"""Logs in JSON lines, cut back to the step at which a run is taken up again."""

import io
import json
import os
from pathlib import Path

from keras_cdiff.common.checks import check_integer
from keras_cdiff.common.files import write_whole


def cut_jsonl(path: str | os.PathLike, step: int) -> None:
    """Removes the records of a log that lie beyond a training step.

    Kept are the records with record["step"] <= step, byte for byte. A last line without an end, as
    a killed process leaves it, goes too unless it is a whole record. A missing file is left so.

    Args:
        path: a file of JSON lines, each an object with a whole number "step".
        step: the last training step to keep, 0 or above.

    Raises:
        ValueError: if a line other than a torn last one is damaged; the file is left as it is.
    """
    path = Path(path)
    step = check_integer("step", step, 0)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    kept = []
    for number, line in enumerate(io.BytesIO(content), start=1):
        whole = line if line.endswith(b"\n") else line + b"\n"
        try:
            recorded = _step_of(line)
        except ValueError as error:
            if whole is not line:
                break
            raise ValueError(
                f"Line {number} of the log {path.name} is damaged: {error}. Mend or remove the "
                f"line, then repeat the command. Received: path={str(path)!r}"
            ) from error
        if recorded <= step:
            kept.append(whole)
    mended = b"".join(kept)
    if mended != content:
        write_whole(path, lambda temporary: temporary.write_bytes(mended))


def _step_of(line: bytes) -> int:
    """The step of a record.

    Raises:
        ValueError: if the line is no record.
    """
    try:
        record = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    step = record.get("step") if isinstance(record, dict) else None
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError('it is no object with a whole number "step"')
    return step
