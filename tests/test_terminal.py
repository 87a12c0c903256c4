"""How a command ends: exit statuses, and what is printed of errors and interruptions."""

import io
import os
import signal
import sys
import time
import weakref
from contextlib import suppress

import pytest

from layerswap.errors import UserError
from layerswap.terminal import GRACE, held_back_interruptions, run_command


@pytest.fixture(autouse=True)
def interruptions():
    """Ctrl-C's default effect, as in a process of a terminal's foreground; what was set before is set again."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def fail(error):
    raise error


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)  # the signal arrives meanwhile


def import_a_library():
    """A library that turns what goes wrong in its import into an error of its own."""
    try:
        press_ctrl_c()
    except BaseException:
        raise ImportError("initialization failed") from None


def drop_an_object():
    """An interruption within a callback that can raise nothing."""
    dropped = set()
    reference = weakref.ref(dropped, lambda _: press_ctrl_c())
    del dropped
    for _ in range(1000):
        time.sleep(0.01)
    return reference and 0


def press_ctrl_c_again_while_cleaning_up():
    """What is kept is kept: the second time within a second interrupts nothing."""
    steps = []
    try:
        press_ctrl_c()
    finally:
        for step in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            steps.append(step)
        assert steps == [0, 1, 2]


def press_ctrl_c_where_it_is_swallowed():
    """The next time, a while later, counts again."""
    with suppress(KeyboardInterrupt):
        press_ctrl_c()
    time.sleep(GRACE + 0.01)
    press_ctrl_c()


@pytest.mark.parametrize(
    "command, status, line",
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (lambda: fail(UserError("bad\n  input")), 2, "layerswap: bad input\n"),
        (lambda: fail(FileNotFoundError(2, "No such file", "x")), 2, "layerswap: [Errno 2] No such file: 'x'\n"),
        (lambda: fail(BrokenPipeError(32, "Broken pipe")), 141, ""),
        (lambda: fail(KeyboardInterrupt()), 130, "layerswap: interrupted; all is kept\n"),
        (press_ctrl_c, 130, "layerswap: interrupted; all is kept\n"),
        (import_a_library, 130, "layerswap: interrupted; all is kept\n"),
        (drop_an_object, 130, "layerswap: interrupted; all is kept\n"),
        (press_ctrl_c_where_it_is_swallowed, 130, "layerswap: interrupted; all is kept\n"),
        (press_ctrl_c_again_while_cleaning_up, 130, "layerswap: interrupted; all is kept\n"),
    ],
)
def test_status_and_line(capsys, command, status, line):
    assert run_command(command, "all is kept") == status
    assert capsys.readouterr() == ("", line)


def test_an_interruption_is_held_back_until_the_block_has_ended():
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with held_back_interruptions():
            for step in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                steps.append(step)
        steps.append("not reached")
    assert steps == [0, 1, 2] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_command(lambda: print("ไทย – é") or 0, "") == 0
    assert written.getvalue() == rb"\u0e44\u0e17\u0e22 \u2013 \xe9" + b"\n"


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_other_errors_are_raised(error):
    with pytest.raises(error):
        run_command(lambda: fail(error()), "all is kept")


def test_what_was_set_before_is_set_again():
    hook = sys.unraisablehook
    assert run_command(lambda: 0, "") == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and sys.unraisablehook is hook
    run_command(press_ctrl_c, "")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # the process is about to end


def test_an_ignored_signal_stays_ignored():
    """As in a background job, which Ctrl-C is not for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run_command(lambda: os.kill(os.getpid(), signal.SIGINT) or 0, "") == 0
