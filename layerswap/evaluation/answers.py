"""Answers that are kept: each is one line of a JSONL file, under a key of the weights, the prompt and the decoding.

Lines are appended and flushed to the disk. An answer that is there is read, not computed again, and an interrupted run
goes on where it stopped. A path plays no part in the key.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerswap.errors import UserError
from layerswap.terminal import held_back_interruptions

RECORD = "stop n_tokens text answer_language answer_nll answer_tokens answer_bytes".split()  # fields of an answer


class AnswerCache:
    """The answers of a JSONL file. Several processes may append to it at once.

    Attributes:
        path: the file; it need not exist.
        fields: that every row has beside its key.
        rows: key -> answer, a dict with its key under "key".
        check_source: called before rows are written; if it raises a UserError, they are not those of their keys.
    """

    def __init__(self, path: str | Path, fields: Sequence[str] = RECORD) -> None:
        self.path, self.fields = Path(path), fields
        self.rows: dict[str, dict[str, Any]] = {}
        self.pending: list[dict[str, Any]] = []
        self.n_bytes_read, self.last_flush = 0, time.monotonic()
        self.check_source: Callable[[], None] = lambda: None
        self.read()

    def read(self) -> None:
        """Read the lines that were added since the last time. A line that a crash tore is skipped.

        UserError for a line of other fields: the file holds something else.
        """
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self.n_bytes_read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.n_bytes_read += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    if absent := {"key", *self.fields} - row.keys():
                        raise UserError(f"{self.path}: a line has no field {min(absent)!r}, expected a file of answers")
                    self.rows.setdefault(row["key"], row)

    def check(self) -> None:
        """UserError unless the file can be written to; to be called before answers are computed for it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_possible = self.path.is_file() or not self.path.exists()
        if not is_possible or not os.access(self.path if self.path.exists() else self.path.parent, os.W_OK):
            raise UserError(f"{self.path}: answers cannot be written there")

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is flushed with others of the same second."""
        self.pending.append(row)
        if time.monotonic() - self.last_flush > 1:
            self.flush()

    def flush(self) -> None:
        """Append the pending rows whose key is not in the file yet, as whole lines, and flush them to the disk.

        An interruption meanwhile is raised afterwards. UserError: ``check_source``'s, and the rows are not kept; or the
        disk is full, and they stay pending.
        """
        if not self.pending:
            return
        try:
            self.check_source()
        except UserError:
            self.pending = []
            raise
        try:
            self.write_pending()
        except OSError as error:
            raise UserError(f"{self.path}: answers cannot be written ({error.strerror}); those in it stay") from None

    def write_pending(self) -> None:
        """Append the pending rows whose key is not in the file yet."""
        with held_back_interruptions(), open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a torn line
                file.write(b"\n")
                file.flush()
            self.read()
            new_rows: dict[str, dict[str, Any]] = {}
            for row in self.pending:
                if row["key"] not in self.rows:
                    new_rows.setdefault(row["key"], row)
            lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in new_rows.values())
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
            self.read()
            self.pending, self.last_flush = [], time.monotonic()


class RowSender(AnswerCache):
    """The rows of a file, to which another process appends: new ones are handed to it.

    send: called with each new row.
    """

    def __init__(self, path: str | Path, fields: Sequence[str], send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(path, fields)
        self.send = send

    def check(self) -> None:
        """The file is not written to."""

    def write_pending(self) -> None:
        """Hand on the pending rows."""
        for row in self.pending:
            self.rows.setdefault(row["key"], row)
            self.send(row)
        self.pending, self.last_flush = [], time.monotonic()
