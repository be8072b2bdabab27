"""Signals that ask a run to stop. Only the standard library is used here."""

import os
import signal
import threading
import types

# EX_TEMPFAIL of sysexits.h, "temporary failure; the user is invited to retry": a run that was
# interrupted goes on if its command is repeated, and a job script can tell this from a failure (1),
# a wrong command line (2), and death by the signal itself (128 + its number in a shell).
EXIT_INTERRUPTED = 75


class Interruption:
    """Turns SIGTERM and SIGINT into a request to stop, while used as a context manager.

    The run looks at `requested` between two steps. A second SIGINT (Ctrl-C) raises
    KeyboardInterrupt at once. A signal that was ignored before stays ignored, as SIGINT is in
    background jobs of shell scripts; one whose handler was not set by Python keeps it. Outside the
    main thread, where Python allows no handlers, nothing is ever requested. A forked child, as a
    worker that loads data, keeps the handlers of before, so that it can be ended.

    Python runs handlers in the main thread, between two of its own instructions: a signal that
    comes during a long call, as of a compiler, is noticed after it.

    Attributes:
        signal: the first signal that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous = {}
        self._pressed = False
        self._process = None

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
            return
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True
