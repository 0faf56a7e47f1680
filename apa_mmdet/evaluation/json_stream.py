"""Reading large JSON files one element at a time, plain or gzip.

LVIS results of a whole validation set are gigabytes of text. Parsed at once they take
ten times the memory of the numbers in them; here no more than one element and one block
of text is held.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

_BLOCK = 1 << 22  # characters
_SPACE = re.compile(r"[ \t\r\n]*")
_GZIP = b"\x1f\x8b"
# A parser that runs out of text complains within the longest literal ("-Infinity",
# "\u12ab") of its end.
_LITERAL = 16


def iter_array(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the elements of the list that a JSON file holds.

    Args:
        path: The file; gzip is recognised by its first bytes, whatever its name.

    Raises:
        ValueError: If the file is cut short or is not JSON, with the place where; if
            what it holds is not a list.
        FileNotFoundError: If it is not there.
    """
    with _open(path) as file:
        text = _Text(file, str(path))
        if text.peek() != "[":
            raise ValueError(
                f"{path}: expected a JSON list of results, found {text.excerpt()}"
            )
        yield from text.elements()
        text.expect_end()


def iter_members(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Yield what the object in a JSON file holds, its lists element by element.

    Args:
        path: The file, as in :func:`iter_array`.

    Yields:
        ``(key, value)``; a list gives one pair for each of its elements.

    Raises:
        ValueError: As :func:`iter_array`, if what the file holds is not an object.
        FileNotFoundError: If it is not there.
    """
    with _open(path) as file:
        text = _Text(file, str(path))
        if text.peek() != "{":
            raise ValueError(f"{path}: expected a JSON object, found {text.excerpt()}")
        text.skip()
        if text.peek() == "}":
            text.skip()
        else:
            while True:
                key = text.value()
                if not isinstance(key, str):
                    raise text.broken("expected a name in quotes")
                text.separator(":")
                if text.peek() == "[":
                    for element in text.elements():
                        yield key, element
                else:
                    yield key, text.value()
                if text.separator(",}") == "}":
                    break
        text.expect_end()


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    with open(path, "rb") as file:
        zipped = file.read(2) == _GZIP
    return gzip.open(path) if zipped else open(path, "rb")


class _Text:
    """A window that moves over the text of a file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._buffer = ""
        self._position = 0  # in the buffer
        self._dropped = 0  # characters before the buffer
        self._elements = 0  # of the list being read
        self._is_whole = False
        self._decode = json.JSONDecoder().raw_decode
        self._decode_bytes = codecs.getincrementaldecoder("utf-8")().decode

    def peek(self) -> str:
        """Return the next character that is no space, '' at the end of the file."""
        while True:
            self._position = _SPACE.match(self._buffer, self._position).end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read():
                return ""

    def skip(self) -> None:
        """Step over one character."""
        self._position += 1

    def separator(self, allowed: str) -> str:
        """Step over one of the allowed characters and return it."""
        found = self.peek()
        if not found:
            raise self._cut_short()
        if found not in allowed:
            raise self.broken(f"expected {' or '.join(map(repr, allowed))}")
        self.skip()
        return found

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the list that begins here."""
        self._elements = 0
        self.skip()
        if self.peek() == "]":
            self.skip()
            return
        while True:
            element = self.value()
            self._elements += 1
            yield element
            if self.separator(",]") == "]":
                return

    def value(self) -> Any:
        """Decode the value that begins here, after any space."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                # Text may be missing only if the parser got to its end, or is in a
                # string, whose beginning is all that it reports.
                in_string = error.msg.startswith("Unterminated string")
                near_end = error.pos >= len(self._buffer) - _LITERAL
                if (in_string or near_end) and self._read():
                    continue
                if self._is_whole and (in_string or near_end):
                    raise self._cut_short() from None
                if error.pos == self._position and not self.peek():
                    raise self._cut_short() from None
                self._position = error.pos
                raise self.broken(error.msg) from None
            # A number at the end of the buffer may go on after it: 12 as 12.5e-3.
            if end >= len(self._buffer) - len("e-") and self._read():
                continue
            self._position = end
            return value

    def expect_end(self) -> None:
        """Raise if anything follows."""
        if self.peek():
            raise self.broken("expected the end of the file")

    def excerpt(self) -> str:
        """Return the next few characters, to be shown."""
        if not self.peek():
            return "the end of the file"
        return repr(self._buffer[self._position : self._position + 20])

    def broken(self, problem: str) -> ValueError:
        """Return the error for text that is not JSON."""
        place = self._dropped + self._position
        return ValueError(
            f"{self._name}: not JSON at character {place:,} ({problem}, found "
            f"{self.excerpt()}), after {self._elements:,} complete elements of the "
            "list before it; write the file again"
        )

    def _cut_short(self) -> ValueError:
        length = self._dropped + len(self._buffer)
        return ValueError(
            f"{self._name}: cut short at character {length:,}, after "
            f"{self._elements:,} complete elements of the list; write or copy the file "
            "again"
        )

    def _read(self) -> bool:
        """Read on, dropping what is behind; False at the end of the file."""
        if self._is_whole:
            return False
        block = self._read_block(max(_BLOCK, len(self._buffer) - self._position))
        if not block:
            self._is_whole = True
            return False
        self._dropped += self._position
        self._buffer = self._buffer[self._position :] + block
        self._position = 0
        return True

    def _read_block(self, length: int) -> str:
        """Return about that many characters, '' at the end of the file."""
        parts = []
        try:
            while length > 0:
                part = self._file.read1(length)
                if not part:
                    break
                parts.append(self._decode_bytes(part))
                length -= len(part)
        except EOFError:
            pass  # gzip's word for a stream without its end
        except (UnicodeDecodeError, OSError, zlib.error) as error:
            raise ValueError(
                f"{self._name}: cannot be read after character "
                f"{self._dropped + len(self._buffer):,} ({error}); write or copy the "
                "file again"
            ) from error
        return "".join(parts)
