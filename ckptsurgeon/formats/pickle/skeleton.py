"""Reads a pickle without its large byte strings: each is replaced by its offset and length in the file.

A pickle contains the bytes of each array as a string, so a pickle of a model has as many bytes as the model.
``load_placed`` goes through the instructions in a window. It skips each long string, and puts in its place an
instruction that makes a ``PlacedBytes``. The shortened pickle is small, and is interpreted by ``PickleMachine``. Frames
are checked and left out.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ..base import limits
from ..base.untrusted import CopyBudget
from .machine import PickleMachine
from .numpy import NUMPY
from .state import LENGTHS, NO_EDGE, MoreError, TruncatedError, UnknownOpcodeError, bounds
from .values import PlacedBytes, plain_functions

__all__ = ["PlacedPickle", "load_placed"]

_WINDOW = 1 << 16
INLINE = 4096
"""Strings of at most this many bytes stay in the pickle: names, and the values of small arrays."""
_BYTES, _TEXT = frozenset(b"CB\x8e\x96TU"), frozenset(b"X\x8c\x8d")
"""The instructions with byte strings, and with strings in UTF-8, as their operands."""
_NEAR = " (near byte "
_LATIN = ("latin1", "latin-1")


@dataclass(frozen=True)
class PlacedPickle:
    """The value of a pickle, the offset of its end in the file, and the SHA-256 of the pickle without long strings."""

    value: Any
    end: int
    digest: str


def load_placed(file: File) -> PlacedPickle:
    """Return the pickle at the start of a file, with ``plain.Array`` for numpy's arrays, without running anything.

    Strings of Python 2 are read as Latin-1, as numpy's ``encoding="latin1"`` does. Raises FormatError if the pickle is
    damaged or refers to objects outside it, UnsafeError if it exceeds a limit.
    """
    found = _Instructions(file)
    found.collect()
    data = b"".join(found.pieces)
    machine = _Machine(data, rebuild=_functions(), persistent=found.placed.__getitem__, stored=len(data))
    machine.where = found.where
    try:
        value = machine.run()
    except FormatError as error:
        if isinstance(error, UnsafeError) or _NEAR in error.message:
            raise
        said = f"{error.message.rstrip('.')}{_NEAR}{found.where(machine.position)})."
        raise FormatError(said, hint=error.hint, rule=error.rule) from None
    digest = hashlib.sha256(data + repr([(one.offset, one.nbytes) for one in found.placed]).encode())
    return PlacedPickle(value, found.at, digest.hexdigest())


def _functions() -> dict[tuple[str, str], Callable[..., object]]:
    """Return {(module, name) of a function in a pickle: ckptsurgeon's function that is called in its place}.

    These functions make plain data and arrays. A long string is a ``PlacedBytes``, which has only its position in the
    file. If a pickle encodes such a string as Latin-1, the result is a ``PlacedBytes`` again, so the string is not
    read.
    """
    table: dict[tuple[str, str], Callable[..., object]] = {**NUMPY, **plain_functions(CopyBudget())}
    plain = table["_codecs", "encode"]

    def encode(text: Any, encoding: Any = "utf-8", *rest: Any) -> object:
        if isinstance(text, PlacedBytes) and text.kind == "text" and encoding in _LATIN:
            return text.encoded()
        return plain(text, encoding, *rest)

    table["_codecs", "encode"] = encode
    return table


class _Machine(PickleMachine):
    """Interprets a pickle without its long strings; ``where`` converts an offset in it to an offset in the file."""

    where: Callable[[int], int] = staticmethod(int)

    def _broken(self, why: str) -> FormatError:
        return FormatError(f"the pickle {why} (near byte {self.where(self.position)}).", rule="pickle")

    def _old_text(self, raw: bytes) -> str:
        self._text(raw, "latin-1")
        return raw.decode("latin-1")


@dataclass
class _Instructions:
    """The instructions of a pickle in ``file``; ``collect`` goes through them.

    ``at`` is the offset of the next instruction or, after ``collect``, the offset of the end of the pickle. ``pieces``
    has the bytes of all instructions, without the long strings; ``placed`` has the offsets and lengths of these
    strings.
    """

    file: File
    at: int = 0
    pieces: list[bytes] = field(default_factory=list)
    placed: list[PlacedBytes] = field(default_factory=list)
    _begins: list[int] = field(default_factory=list)
    _sources: list[int] = field(default_factory=list)
    _size: int = 0
    _edge: int = NO_EDGE

    def where(self, position: int) -> int:
        """Return the offset in the file of the instruction that is at ``position`` in the joined ``pieces``."""
        index = max(0, bisect_right(self._begins, position) - 1)
        return self._sources[index] + position - self._begins[index] if self._begins else position

    def collect(self) -> None:
        """Go through all instructions up to STOP; raises FormatError or UnsafeError as ``load_placed`` does."""
        left, wanted, done = limits.PICKLE_OPS, _WINDOW, False
        while not done:
            begin = self.at
            window = self.file.read(begin, min(wanted, self.file.size - begin))
            if not window:
                raise self._broken("ends too early")
            used, left, done = self._window(window, begin, left)
            # An instruction that does not fit into the window needs a larger one.
            wanted = 2 * len(window) if not used and self.at == begin else _WINDOW
            if wanted > limits.PICKLE_BYTES:
                raise UnsafeError(f"the pickle has a line over {limits.PICKLE_BYTES} bytes long.", rule="pickle size")

    def _window(self, window: bytes, begin: int, left: int) -> tuple[int, int, bool]:
        """Go through the instructions in ``window``, which begins at the offset ``begin`` of the file.

        ``left`` is how many instructions are still allowed. Returns (bytes used of the window, instructions that are
        then still allowed, whether STOP was reached). Raises FormatError for an instruction that is not valid or refers
        to objects outside the pickle, UnsafeError if there are too many instructions.
        """
        kept = position = 0
        done = False
        try:
            while position < len(window) and not done:
                left -= 1
                if left < 0:
                    raise UnsafeError(
                        f"the pickle has more instructions than the limit of {limits.PICKLE_OPS}.", rule="pickle length"
                    )
                self._check_edge(begin + position)
                op = window[position]
                self.at = begin + position
                if op in LENGTHS and (length := self._length(window, position)) is not None:
                    self._keep(window[kept:position], begin + kept)
                    position = kept = self._place(op, position, length, begin)
                    continue
                end = bounds(window, position, self.file.size - begin)[1]
                if op == 0x95:
                    self._keep(window[kept:position], begin + kept)
                    self._enter_frame(window[position + 1 : end], begin + end)
                    kept = end
                elif op in b"PQ":
                    raise FormatError(
                        "the pickle refers to objects that are not in it (persistent ids).", rule="persistent id"
                    )
                position, done = end, op == 0x2E
        except MoreError:
            pass  # the rest of the window is read again
        except TruncatedError as error:
            raise self._broken(str(error)) from None
        except UnknownOpcodeError as error:
            raise self._broken(f"has an unknown opcode 0x{error.args[0]:02x}") from None
        self._keep(window[kept : min(position, len(window))], begin + kept)
        self.at = begin + position
        if done and self._edge not in (NO_EDGE, self.at):
            raise self._broken("stops inside a frame")
        return position, left, done

    def _length(self, window: bytes, position: int) -> tuple[int, int] | None:
        """Return (begin, length) of the string in the instruction at ``position``; None if it is not a long string.

        All positions count from the start of the window. Also returns None if the window ends before the string.
        """
        form = LENGTHS[window[position]]
        begin = position + 1 + form.size
        if window[position] not in _BYTES | _TEXT or begin > len(window):
            return None
        length = form.unpack_from(window, position + 1)[0]
        return (begin, length) if length > INLINE else None

    def _place(self, op: int, position: int, found: tuple[int, int], begin: int) -> int:
        """Replace a long string by a persistent id; return the position after the string.

        The instruction ``op`` is at ``position``; ``found`` has (begin, length) of its string. Positions count from the
        start of the window, which is at the offset ``begin`` of the file. Raises FormatError if the file is too short
        for the string.
        """
        at, length = found
        if begin + at + length > self.file.size:
            remain = self.file.size - begin - at
            raise self._broken(f"claims {length} bytes, but only {remain} remain")
        number = len(self.placed).to_bytes(4, "little")
        self._keep(b"J" + number + b"Q", begin + position)
        self.placed.append(PlacedBytes(begin + at, length, "text" if op in _TEXT else "bytes"))
        return at + length

    def _keep(self, piece: bytes, source: int) -> None:
        if not piece:
            return
        self._begins.append(self._size)
        self._sources.append(source)
        self.pieces.append(piece)
        self._size += len(piece)
        if self._size > limits.PICKLE_BYTES:
            raise UnsafeError(
                f"the pickle has over {limits.PICKLE_BYTES} bytes besides its long strings.", rule="pickle size"
            )

    def _enter_frame(self, raw: bytes, begin: int) -> None:
        length = int.from_bytes(raw, "little")
        if self._edge < NO_EDGE:
            raise self._broken("has a frame inside another frame")
        if length > self.file.size - begin:
            raise self._broken("has a frame beyond its end")
        self._edge = begin + length

    def _check_edge(self, at: int) -> None:
        if at >= self._edge:
            if at > self._edge:
                raise self._broken("has an instruction that reaches beyond its frame")
            self._edge = NO_EDGE

    def _broken(self, why: str) -> FormatError:
        return FormatError(f"the pickle {why} (near byte {self.at}).", rule="pickle")
