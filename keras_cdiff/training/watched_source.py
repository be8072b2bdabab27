"""A source of images that says what could not be read, whatever a framework makes of the error."""

from keras_cdiff.data import Source


class WatchedSource:
    """Hands on the examples of a source, and keeps the error of one that cannot be read.

    Frameworks read examples in threads of theirs; TensorFlow reports an error there as one of its
    own, pages long.

    Args:
        source: the source.

    Attributes:
        error: the ValueError that names the example, or None.
    """

    def __init__(self, source: Source):
        self.source = source
        self.name = source.name
        self.error: ValueError | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        try:
            return self.source[index]
        except Exception as error:
            self.error = ValueError(
                "An example of the data cannot be read: restore it, then repeat the command; the "
                f"checkpoints are intact. Received: example {index} of {self.name!r} "
                f"({type(error).__name__}: {error})"
            )
            raise self.error from error

    def __repr__(self) -> str:
        return repr(self.source)
