"""Reads the variables of CTranslate2's ``model.bin`` one after another, and checks all that they claim."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...tensors.dtypes import DTYPES
from ...util.text import escape
from ..base import limits
from ..base.untrusted import check_elements
from ..base.window import Window

__all__ = ["Reader", "Variable", "is_tensor"]

_VERSIONS = (4, 5, 6)
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
"""The dtypes, by their numbers in the file (``DataType`` in include/ctranslate2/types.h)."""
_PARTS = ("_scale", "_zero")
"""Suffixes of the scale and zero point of a quantised variable: an alias of the variable implies aliases of both."""
_VARIABLE_BYTES, _ALIAS_BYTES = 10, 8
"""The smallest size in bytes of a variable without elements, and of an alias."""


class Variable(NamedTuple):
    """A variable: dtype, shape, offset of the values; ``raw`` has the bytes of the value if there are no dimensions."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    raw: bytes = b""


def is_tensor(key: str, one: Variable, variables: Mapping[str, Variable]) -> bool:
    """Return whether a variable is a tensor of the network, and not one of its settings."""
    return bool(one.shape) or any(key.endswith(end) and key.removesuffix(end) in variables for end in _PARTS)


class Reader:
    """Reads a file from its first byte on; ``digest`` is the SHA-256 of all bytes that were read, without the tensors.

    Raises FormatError if a part is not valid or is beyond the end of the file, UnsafeError if a number or a name is too
    large.
    """

    def __init__(self, file: File) -> None:
        self.digest = hashlib.sha256()
        self._file, self._window, self._at = file, Window(file, 1 << 10), 0

    def specification(self) -> dict[str, str]:
        """Return the version, and the name and revision of the specification, as entries of the metadata.

        Raises FormatError for an unknown version.
        """
        version = self._number(4, "its version")
        if version not in _VERSIONS:
            raise FormatError(
                f"the file has binary version {version} of CTranslate2, but versions 4 to 6 can be read.",
                hint="Convert the original model again with a newer CTranslate2." if version < _VERSIONS[0] else "",
                rule="ctranslate2 version",
            )
        name = self._text("the name of its specification")
        revision = self._number(4, "the revision of its specification")
        return {"ctranslate2.version": str(version), "ctranslate2.spec": name, "ctranslate2.revision": str(revision)}

    def variables(self) -> Iterator[tuple[str, Variable]]:
        """Yield the name and the header of each variable; raises FormatError if two variables have the same name."""
        seen = set[str]()
        for place in range(self._count("variable", _VARIABLE_BYTES)):
            key = self._text(f"the name of variable {place + 1}")
            if key in seen:
                raise FormatError(f"the file has two variables with the name {escape(key)}.", rule="duplicate key")
            seen.add(key)
            yield key, self._variable(key)

    def aliases(self, variables: Mapping[str, Variable]) -> Iterator[tuple[str, str]]:
        """Yield (alias, name of the variable) for each alias, and for the variable's scale and zero point, if any.

        Raises FormatError for an alias that is not valid.
        """
        seen = set[str]()
        for place in range(self._count("alias", _ALIAS_BYTES)):
            alias, key = self._text(f"alias {place + 1}"), self._text(f"the variable of alias {place + 1}")
            if key not in variables or not is_tensor(key, variables[key], variables):
                raise FormatError(
                    f"the alias {escape(alias)} refers to {escape(key)}, which is not a tensor of the file.",
                    rule="alias",
                )
            for end in ("", *(end for end in _PARTS if key + end in variables and alias + end not in variables)):
                if alias + end in variables or alias + end in seen:
                    raise FormatError(
                        f"the alias {escape(alias + end)} is the name of a variable, or of another alias.", rule="alias"
                    )
                seen.add(alias + end)
                yield alias + end, key + end

    def end(self) -> None:
        """Raise FormatError unless the file ends here."""
        if self._at != self._file.size:
            raise FormatError(
                f"{self._file.size - self._at:,} bytes follow the list of aliases.", rule="ctranslate2 end"
            )

    def _count(self, what: str, nbytes: int) -> int:
        """Read and return the number of variables or aliases (``what``); each of them has at least ``nbytes`` bytes.

        Raises UnsafeError if there are too many.
        """
        plural = "aliases" if what == "alias" else f"{what}s"
        number = self._number(4, f"the number of its {plural}")
        if number > limits.TENSORS:
            raise UnsafeError(
                f"the file claims {number:,} {plural}; at most {limits.TENSORS:,} can be read.", rule="counts"
            )
        self._check(number * nbytes, f"the list of its {plural}")
        return number

    def _variable(self, key: str) -> Variable:
        where = f"the variable {escape(key)}"
        dims = self._number(1, where)
        if dims > limits.DIMENSIONS:
            raise FormatError(f"{where} has {dims} dimensions, more than {limits.DIMENSIONS}.", rule="dimensions")
        shape = struct.unpack(f"<{dims}I", self._take(4 * dims, where))
        check_elements(shape)
        kind, nbytes = self._number(1, where), self._number(4, where)
        if kind >= len(_TYPES):
            raise FormatError(f"{where} is of unknown type {kind}.", rule="tensor type")
        dtype = _TYPES[kind]
        if prod(shape) * DTYPES[dtype].bits // 8 != nbytes:
            raise FormatError(f"{where} is {dtype} {list(shape)}, but has {nbytes:,} bytes.", rule="tensor size")
        begin = self._at
        if dims == 0:
            return Variable(dtype, shape, begin, self._take(nbytes, where))
        self._check(nbytes, where)
        self._at += nbytes
        return Variable(dtype, shape, begin)

    def _text(self, what: str) -> str:
        """Return the next string; its stored length includes the zero byte at its end.

        Raises FormatError if it is not valid, UnsafeError if it is too long.
        """
        length = self._number(2, what)
        if length > limits.KEY_CHARACTERS:
            raise UnsafeError(f"{what} has {length:,} bytes, more than {limits.KEY_CHARACTERS:,}.", rule="key length")
        raw = self._take(length, what)
        if len(raw) < 2 or raw.find(b"\0") != len(raw) - 1:
            raise FormatError(f"{what} is empty, or does not end with its only zero byte.", rule="name")
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8.", rule="name") from None

    def _number(self, nbytes: int, where: str) -> int:
        return int.from_bytes(self._take(nbytes, where), "little")

    def _take(self, nbytes: int, where: str) -> bytes:
        self._check(nbytes, where)
        raw = self._window.read(self._at, nbytes)
        self.digest.update(raw)
        self._at += nbytes
        return raw

    def _check(self, nbytes: int, where: str) -> None:
        if self._at + nbytes > self._file.size:
            raise FormatError(
                f"the file is truncated: it ends inside {where}.", hint="Fetch or save this file again.",
                rule="cut short",
            )  # fmt: skip
