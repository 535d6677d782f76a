"""The process of a command: its standard streams, Ctrl-C at any moment, and what is said where a verb fails.

Imports nothing that takes time, so that a Ctrl-C while the rest is imported is met too.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable

from zoomearth_jax.errors import UserError

INTERRUPTED, BROKEN_PIPE, BAD_INPUT = 130, 141, 2  # exit codes: as shells count signals, 128 + SIGINT and SIGPIPE
GRACE = 2.0  # seconds between Ctrl-C and the end, in which open files and folders are put in order


def in_utf8() -> None:
    """Starts the command again in Python's UTF-8 mode where the locale knows only ASCII: questions, answers, paths and
    settings are UTF-8 whatever a container's locale says."""
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def set_streams() -> None:
    """Opens standard streams that were closed, lest the next files take their places; what the terminal can't show is
    written as an escape."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(lowest)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def hush_late_writes() -> None:
    """Hides what follows an error. Where one array of a checkpoint can't be written, tensorstore's threads report on all
    others to an event loop that has closed, and asyncio on tasks that nobody waits for; each would print a
    traceback beside the line that says why."""
    import logging

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # the process that tidies up after data workers takes its warnings' filter from here; where this one ends at once, by
    # Ctrl-C, it would tell of the semaphores that it then removes
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    before = sys.unraisablehook
    sys.unraisablehook = lambda said: None if str(said.exc_value) == "Event loop is closed" else before(said)


class Interrupts:
    """Ctrl-C ends the command within `GRACE` seconds, whatever it is doing; a second one, or one before it works, at once.

    While modules are imported nothing raises: some compiled ones break where an exception comes between. Then the main
    thread gets a KeyboardInterrupt, as usual. But it may be waiting for a compilation or a step, where Python delivers
    none, or for threads that wait in turn, or the exception is lost in a callback. So a thread of its own counts the
    seconds. A sudden end does no harm: files come by renames, a step's checkpoint appears whole, and data workers end with
    their parent.
    """

    def __init__(self):
        """Takes SIGINT over, from the main thread. `hint`, what to say beside, can be set later, and `at_work` is to be set
        once everything is imported."""
        self.hint, self.noted, self.at_work = lambda: "", False, False
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._raise)
        threading.Thread(target=self._watch, daemon=True, name="interrupts").start()

    def _raise(self, *_) -> None:
        self._note()
        if not self.at_work:
            self.end()
        raise KeyboardInterrupt

    def _note(self) -> None:
        """Notes the Ctrl-C. From here on nothing else is said: what breaks now breaks because of it."""
        self.noted = True
        sys.unraisablehook = lambda *_: None
        threading.excepthook = lambda *_: None
        sys.excepthook = lambda *_: self.end()

    def _watch(self) -> None:
        while True:
            if signal.SIGINT in os.read(self._read, 1):
                self._note()
                if not self.at_work:
                    self.end()
                threading.Thread(target=self._end_soon, daemon=True).start()
                break
        while signal.SIGINT not in os.read(self._read, 1):
            pass
        self.end()

    def _end_soon(self) -> None:
        threading.Event().wait(GRACE)
        self.end()

    def _hint(self) -> str:
        with contextlib.suppress(Exception):
            return self.hint()
        return ""

    def end(self) -> None:
        """Says that the command was interrupted, and ends the process."""
        line = f"zoomearth: interrupted{self._hint()}\n"
        with contextlib.suppress(OSError):
            os.write(2, (f"\r\033[K{line}" if os.isatty(2) else line).encode())
        os._exit(INTERRUPTED)


def explained(error: BaseException) -> str | None:
    """One line on an error that lies in the input or the surroundings; None of a bug, whose traceback is wanted."""
    said = " ".join(str(error).split())
    if isinstance(error, UserError):
        return said
    if isinstance(error, UnicodeError):
        return f"text that is not UTF-8 ({said})"
    if isinstance(error, OSError) and error.errno:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names, error.strerror or said])
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return f"out of memory ({said[:200] or 'no more to be had'}); take smaller batches or images"
    return None


def ended(work: Callable[[], object], interrupts: Interrupts | None = None) -> int:
    """Runs a verb, and says in one line why it ended early. Returns the exit code.

    Raises:
        Exception: a bug.
    """
    try:
        code = _exit_code(work)
        _flush()
    except BaseException as error:
        said = _said(error, interrupts)
        if said is None:
            raise
        code = said
    if interrupts and interrupts.noted:  # and the exception was lost
        interrupts.end()
    return code


def _exit_code(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as stop:  # after --help, or a run's own end
        if isinstance(stop.code, str):
            raise
        return stop.code or 0
    return 0


def _flush() -> None:
    """Writes what was printed, which may only now find the disk full or the pipe broken."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _said(error: BaseException, interrupts: Interrupts | None) -> int | None:
    """The exit code of an error that was said in one line; None where it is to be raised."""
    if interrupts and interrupts.noted:
        interrupts.end()
    line: str | None
    if isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", INTERRUPTED
    elif isinstance(error, BrokenPipeError):  # `| head` has seen enough
        line, code = "", BROKEN_PIPE
    elif (line := explained(error)) is not None:
        code = BAD_INPUT
    else:
        return None
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream, f"zoomearth: {line}\n" if line and stream is sys.stderr else "")
    return code


def _let_go(stream, last: str) -> None:
    """Writes what is left for a stream; where nobody takes it, the interpreter's own try at its end finds nothing either."""
    try:
        stream.write(last)
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
