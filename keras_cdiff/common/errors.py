"""Errors of code that a framework runs in threads and generators of its own."""

import contextlib
from collections.abc import Iterator


class RetainedError:
    """Keeps an error where it comes up, and raises it in place of what a framework makes of it.

    Frameworks read examples in their threads; TensorFlow reports an error there as one of its own,
    pages long.

    Attributes:
        error: the error, or None.
    """

    error: Exception | None = None

    @contextlib.contextmanager
    def retained(self) -> Iterator[None]:
        """Within it an error is kept, and goes on."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    @contextlib.contextmanager
    def raised(self, unless: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Within it an exception is replaced by the error that was kept, if there is one.

        Args:
            unless: exceptions that are not replaced.
        """
        try:
            yield
        except unless:
            raise
        except Exception:
            if self.error is not None:
                raise self.error from self.error.__cause__
            raise
