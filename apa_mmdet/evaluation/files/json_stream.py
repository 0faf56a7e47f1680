"""Reading large JSON files one element at a time, plain or gzip.

LVIS results of a whole validation set are gigabytes of text. Parsed at once they take
ten times the memory of the numbers in them; here at most one element and one block of
text are in memory.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from ..core.values import show

_BLOCK = 1 << 22  # characters
_SPACE = re.compile(r"[ \t\r\n]*")
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The JSON parser that runs out of text reports an error at most the longest literal
# ("-Infinity", "\u12ab") before its end.
_LITERAL = 16
# What can be left of a truncated text where the parser stops: nothing, or the beginning
# of a literal, of a number's fraction or exponent, or of an escape.
_UNFINISHED = re.compile(
    r"|t(ru?)?|f(a(ls?)?)?|n(ul?)?|Na?|-?(I(n(f(i(ni?)?)?)?)?)?|-Infinit|Infinit"
    r"|\.|[eE][+-]?|u[0-9a-fA-F]{0,3}"
)


def iter_array(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the elements of the list that a JSON file holds.

    Gzip is recognised by the first bytes, whatever the file's name.

    Raises:
        ValueError: If the file is truncated or is not JSON (with the position), or
            holds something other than a list.
        FileNotFoundError: If the file does not exist.
    """
    with _open(path) as file:
        text = _Text(file, str(path))
        if text.peek() != "[":
            raise ValueError(
                f"{path}: expected a JSON list of results, found {text.excerpt()}"
            )
        yield from text.elements()
        text.expect_end()


def iter_members(
    path: str | os.PathLike[str], lists: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield ``(key, value)`` of the object in a JSON file.

    A list is yielded element by element, each with the list's key.

    Args:
        path: The file, plain or gzip.
        lists: Keys that must be there, with a list.

    Raises:
        ValueError: As :func:`iter_array`, or if the file holds something other than an
            object.
        FileNotFoundError: If the file does not exist.
    """
    with _open(path) as file:
        text = _Text(file, str(path))
        if text.peek() != "{":
            raise ValueError(f"{path}: expected a JSON object, found {text.excerpt()}")
        missing = dict.fromkeys(lists)
        for _ in text.entries(",}"):
            key = text.value()
            if not isinstance(key, str):
                raise text.not_json("expected a name in quotes")
            text.step_over(":")
            missing.pop(key, None)
            if text.peek() == "[":
                for element in text.elements():
                    yield key, element
            elif key in lists:
                raise ValueError(
                    f"{path}: {key} is {show(text.value())}; expected a list [...]"
                )
            else:
                yield key, text.value()
        text.expect_end()
        if missing:
            raise ValueError(
                f"{path}: no {', '.join(missing)}; expected a list of them"
            )


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        begin = file.read(2)
    if begin in _UTF_16:
        raise ValueError(f"{path}: UTF-16 text; expected UTF-8, so convert the file")
    return gzip.open(path) if begin == _GZIP else open(path, "rb")


class _Text:
    """A window that moves over the text of a file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._buffer = ""
        self._position = 0  # in the buffer
        self._dropped = 0  # characters before the buffer
        self._elements = 0  # of the list being read
        self._is_at_end = False
        self._decode = json.JSONDecoder().raw_decode
        # "sig" skips a byte-order mark, which Windows programs write.
        self._decode_bytes = codecs.getincrementaldecoder("utf-8-sig")().decode

    def peek(self) -> str:
        """Return the next character other than a space, '' at the end of the file."""
        while True:
            self._position = _SPACE.match(self._buffer, self._position).end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read():
                return ""

    def step_over(self, allowed: str) -> str:
        """Step over one of the allowed characters and return it."""
        character = self.peek()
        if not character:
            raise self._truncated()
        if character not in allowed:
            raise self.not_json(f"expected {' or '.join(map(repr, allowed))}")
        self._position += 1
        return character

    def entries(self, separators: str) -> Iterator[None]:
        """Stop at each entry of the list (``',]'``) or object (``',}'``) here."""
        self._position += 1
        if self.peek() == separators[1]:
            self._position += 1
            return
        yield
        while self.step_over(separators) == ",":
            if self.peek() == separators[1]:
                raise self.not_json("nothing follows the comma")
            yield

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the list that begins here."""
        self._elements = 0
        for _ in self.entries(",]"):
            element = self.value()
            self._elements += 1
            yield element

    def value(self) -> Any:
        """Decode the value that begins here, after any space."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                # Text can be missing only if the parser reached its end, or is in a
                # string, of which it reports only the beginning.
                in_string = error.msg.startswith("Unterminated string")
                near_end = error.pos >= len(self._buffer) - _LITERAL
                if (in_string or near_end) and self._read():
                    continue
                rest = self._buffer[error.pos :].strip()
                if self._is_at_end and (in_string or _UNFINISHED.fullmatch(rest)):
                    raise self._truncated() from None
                self._position = error.pos
                raise self.not_json(error.msg) from None
            except (ValueError, RecursionError) as error:
                # An integer of thousands of digits, brackets thousands deep.
                raise self.not_json(str(error)) from None
            # A number at the end of the buffer may continue after it: 12 as 12.5e-3.
            if end >= len(self._buffer) - len("e-") and self._read():
                continue
            self._position = end
            return value

    def expect_end(self) -> None:
        """Raise an error if anything follows."""
        if self.peek():
            raise self.not_json("expected the end of the file")

    def excerpt(self) -> str:
        """Return the next few characters, for a message."""
        if not self.peek():
            return "the end of the file"
        return repr(self._buffer[self._position : self._position + 20])

    def not_json(self, problem: str) -> ValueError:
        """Return the error for text that is not JSON."""
        return ValueError(
            f"{self._name}: not JSON at character "
            f"{self._dropped + self._position:,} ({problem}, found "
            f"{self.excerpt()}), after {self._elements:,} complete elements of the "
            "list before it; write the file again"
        )

    def _truncated(self) -> ValueError:
        length = self._dropped + len(self._buffer)
        return ValueError(
            f"{self._name}: truncated at character {length:,}, after "
            f"{self._elements:,} complete elements of the list; write or copy the file "
            "again"
        )

    def _read(self) -> bool:
        """Read a block, dropping what was parsed; False at the end of the file."""
        if self._is_at_end:
            return False
        block = self._read_block(max(_BLOCK, len(self._buffer) - self._position))
        if not block:
            self._is_at_end = True
            return False
        self._dropped += self._position
        self._buffer = self._buffer[self._position :] + block
        self._position = 0
        return True

    def _read_block(self, length: int) -> str:
        """Return about that many characters, '' at the end of the file."""
        pieces = []
        try:
            while length > 0 or not any(pieces):  # a byte can be part of a character
                data = self._file.read1(max(length, 1))
                if not data:
                    break
                pieces.append(self._decode_bytes(data))
                length -= len(data)
        except EOFError:
            pass  # a truncated gzip stream; the parser notices
        except UnicodeDecodeError:
            raise ValueError(
                f"{self._name}: not UTF-8 text; expected JSON, plain or gzip"
            ) from None
        except (OSError, zlib.error) as error:
            raise ValueError(
                f"{self._name}: cannot be read after character "
                f"{self._dropped + len(self._buffer):,} ({error}); write or copy the "
                "file again"
            ) from error
        return "".join(pieces)
