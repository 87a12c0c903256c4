"""The error for bad input, and how errors are put on one line."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input; the message is one line for a person."""


def one_line(error: BaseException) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:300]


def describe_error(error: BaseException) -> str:
    """An error's class and the beginning of its message."""
    return f"{type(error).__name__}: {one_line(error)}"


def did_you_mean(word: object, words: Iterable[str]) -> str:
    """ "; did you mean ...?" for the closest of ``words``, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextmanager
def as_user_error(message: str) -> Iterator[None]:
    """Turn an error of a library, of whatever class, into a UserError of one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{message} ({describe_error(error)})") from None
