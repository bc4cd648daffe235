"""Reads a file that is one protocol buffer, field by field: a file of any size takes little memory.

https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from . import limits
from .protobuf import varint
from .window import Window

__all__ = ["Field", "Messages"]


class Field(NamedTuple):
    """A field of a message: its field number, and either its integer value or the range of its bytes in the file.

    If ``is_number`` is true, the field is an integer, and ``value`` is this integer.
    """

    number: int
    value: int
    begin: int
    end: int
    is_number: bool


class Messages:
    """Reads protocol-buffer messages in a file, a window of the file at a time; ``fields`` yields their fields.

    ``what`` is the kind of file, such as "ONNX model", for the texts of errors. Raises UnsafeError if more fields than
    ``limits.MESSAGE_FIELDS`` are read.
    """

    def __init__(self, file: File, what: str) -> None:
        self.file = file
        self._what = what
        self._left = limits.MESSAGE_FIELDS
        self._numbers = 0
        self._window = Window(file)

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in the range from ``begin`` to ``end`` of the file.

        Raises FormatError if these bytes are not a message, UnsafeError if too many fields were read.
        """
        at = begin
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise UnsafeError(
                    f"the file has more than {limits.MESSAGE_FIELDS:,} protobuf fields, the most that ckpt reads.",
                    rule="message fields",
                )
            head = self._window.read(at, min(20, end - at))
            try:
                tag, used = varint(head, 0)
                kind, length = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
                value = 0
                if kind in (0, 2):
                    value, used = varint(head, used)
                    length = value if kind == 2 else 0
            except ValueError as error:
                raise FormatError(f"the file is not a valid {self._what}: {error}.", rule="protobuf") from None
            if kind not in (0, 1, 2, 5) or not tag >> 3:
                raise FormatError(
                    f"the file is not a valid {self._what}: a field has an unknown type.", rule="protobuf"
                )
            if length > end - at - used:
                raise FormatError(f"the file is truncated, or not a valid {self._what}.", rule="cut short")
            yield Field(tag >> 3, value, at + used, at + used + length, kind == 0)
            at += used + length

    def numbers(self, one: Field, most: int) -> array[int]:
        """Return the integers in a field: one or, in a packed field, several.

        Raises FormatError if the field has more than ``most`` integers. Raises UnsafeError if all packed fields that
        were read so far have more than ``limits.MESSAGE_NUMBERS`` integers.
        """
        if one.is_number:
            return array("Q", [one.value])
        found, data, at = array("Q"), self.raw(one, 10 * most), 0
        while at < len(data):
            try:
                value, at = varint(data, at)
            except ValueError as error:
                raise FormatError(f"the file is not a valid {self._what}: {error}.", rule="protobuf") from None
            found.append(value)
            if len(found) > most:
                raise FormatError(
                    f"the {self._what} has a list of more than {most:,} numbers, the most that ckpt reads.",
                    rule="message numbers",
                )
        self._numbers += len(found)
        if self._numbers > limits.MESSAGE_NUMBERS:
            raise UnsafeError(
                f"the file stores more values as varints than the limit of {limits.MESSAGE_NUMBERS:,}.",
                rule="message numbers",
            )
        return found

    def raw(self, one: Field, most: int) -> bytes:
        """Return the bytes of a field; raises FormatError if the field has more than ``most`` bytes."""
        if one.end - one.begin > most:
            raise FormatError(f"a name, text or list has more than {most:,} bytes.", rule="message text")
        return self._window.read(one.begin, one.end - one.begin)

    def text(self, one: Field, most: int = limits.KEY_CHARACTERS) -> str:
        """Return a field as text; raises FormatError if it has more than ``most`` bytes or is not UTF-8."""
        try:
            return self.raw(one, most).decode()
        except UnicodeDecodeError:
            raise FormatError("a name or text is not UTF-8.", rule="message text") from None
