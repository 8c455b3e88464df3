"""Ctrl-C and SIGTERM in a command: the first one stops it, and further ones do not disturb how it ends. No torch.

Without this, a second Ctrl-C interrupts the record of the first one, or a library's cleanup at the interpreter's exit,
and the user reads a traceback from there.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_LONGEST_END = 10.0  # seconds that a stopped command may take to record its end, and again to exit
_AGAIN = 0.1  # seconds


class Stopped(Exception):  # noqa: N818 (not an error)
    """A command was stopped by the user; the message says what is left."""


class Interrupts:
    """The signals SIGINT and SIGTERM of a command."""

    def __init__(self) -> None:
        self._raised: float | None = None  # when KeyboardInterrupt was raised
        self._waits = False  # for the end of an import
        self._own = False  # the next signal is one that this process sends to itself
        self._number = int(signal.SIGINT)
        self._unraisable = sys.unraisablehook

    @property
    def stopped(self) -> bool:
        """Whether the command is to stop."""
        return self._waits or self._raised is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals inside `with`; a command that was stopped takes no further one until its process ends."""
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in numbers}
        sys.unraisablehook = self._lost
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.stopped else handler)
            if not self.stopped:
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the work is done
            sys.unraisablehook = self._unraisable

    def leave(self, code: int) -> NoReturn:
        """End the process of a stopped command as `sys.exit` does, but without Python's own cleanup.

        That one would end in the signal SIGINT where an import was interrupted (Python 3.11), and has no limit of time.
        """
        _later(_LONGEST_END, os._exit, code)
        atexit._run_exitfuncs()
        with suppress(OSError):  # no reader is left
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt for the first signal.

        An import ends first, since an interrupted import of a compiled module can abort the process. A second signal
        ends the process where the first one still waits for that, or was raised long ago.
        """
        own, self._own = self._own, False
        if self._raised is not None:
            if not own and time.monotonic() - self._raised > _LONGEST_END:
                _end_at_once()
        elif self._waits and not own:
            _end_at_once()
        elif _imports(frame):
            self._waits, self._number = True, number
            _later(_AGAIN, self._send_after_imports)
        else:
            self._raised, self._number = time.monotonic(), number
            raise KeyboardInterrupt

    def _lost(self, lost: Any) -> None:
        """Send a signal again whose KeyboardInterrupt was raised where Python has to ignore it, as in `__del__`."""
        if lost.exc_type is not KeyboardInterrupt:
            self._unraisable(lost)
        elif self._raised is not None:
            self._raised = None
            _later(_AGAIN, self._send)

    def _send_after_imports(self) -> None:
        """Send the signal again once no module is being imported.

        Not before: the system joins it with a second Ctrl-C at the same moment, which would then be taken for it.
        """
        if _imports(sys._current_frames().get(threading.main_thread().ident or 0)):
            _later(_AGAIN, self._send_after_imports)
        else:
            self._send()

    def _send(self) -> None:
        self._own = True
        os.kill(os.getpid(), self._number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported in a frame or its callers."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _end_at_once() -> NoReturn:
    os.write(2, b"\nstaytrue: stopped at once.\n")
    os._exit(130)


def _later(seconds: float, call: Any, *arguments: Any) -> None:
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()
