"""How a command ends: bad input and an interruption are one line each on standard error, a closed pipe is silent."""

import _thread
import atexit
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from layerswap.errors import UserError

BAD_INPUT = 2  # as argparse has it
INTERRUPTED = 128 + signal.SIGINT  # as shells report the signals
CLOSED_PIPE = 128 + signal.SIGPIPE
GRACE = 1.0  # seconds


def run_command(command: Callable[[], int], interrupted: str) -> int:
    """Run a command line to its exit status, with no traceback for what is no fault of the program.

    Args:
        command: does the work and returns its own exit status.
        interrupted: what Ctrl-C leaves behind and how to go on, for the one line that it prints.

    Returns:
        The command's own status; 2 after a UserError or OSError, whose message is printed; 130 after Ctrl-C; 141 if
        whoever read standard output has gone, as in ``... | head -1``.

    After an interruption further ones are ignored: the process is about to end.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what the terminal's encoding does not have
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the interpreter's end is too late to be interrupted
    with interruptible() as interruptions:
        try:
            try:
                return command()
            finally:
                if sys.stdout:
                    sys.stdout.flush()  # now, not when the interpreter ends: an error would be a traceback there
        except BaseException as error:
            # Libraries turn an interruption of their import into errors of their own.
            if interruptions or isinstance(error, KeyboardInterrupt):
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                print_error(f"interrupted; {interrupted}")
                return INTERRUPTED
            if isinstance(error, BrokenPipeError):
                flush_output()
                return CLOSED_PIPE
            if isinstance(error, (UserError, OSError)):
                print_error(str(error))
                return BAD_INPUT
            raise


@contextmanager
def interruptible() -> Iterator[list[float]]:
    """Have SIGINT raise KeyboardInterrupt within the block; yields the list of the times at which it did.

    Further signals of the next second are ignored, so that what ends because of the first one can end. An interruption
    of code that can raise nothing (a weak reference's callback, ``__del__``) is raised again after it. Where SIGINT is
    ignored, as in background jobs, it stays so.
    """
    interruptions: list[float] = []
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not interruptions or now - interruptions[-1] > GRACE:
            interruptions.append(now)
            raise KeyboardInterrupt

    def raise_later(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            interruptions.clear()
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            hook(unraisable)

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = raise_later
    try:
        yield interruptions
    finally:
        sys.unraisablehook = hook
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def held_back_interruptions() -> Iterator[None]:
    """Have an interruption wait for the end of the block, so that what the block writes is written whole."""
    handler, interruptions = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, lambda *arguments: interruptions.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if interruptions:
            handler(*interruptions[0])


def print_error(message: str) -> None:
    """Print "layerswap: ..." as one line on standard error, after what standard output still holds."""
    flush_output()
    with suppress(OSError):  # closed too
        print(f"layerswap: {' '.join(message.split())}", file=sys.stderr, flush=True)


def flush_output() -> None:
    """Flush standard output; where that fails, point it at nothing, or the interpreter would try again as it ends."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
