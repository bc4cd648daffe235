"""Decodes common sequences of instructions in one step: plain tensors of ``torch.save``, tables of numbers.

These sequences store values in the memo, the pickle's table of indexed values. Values with indices from 256 on are not
kept. If the pickle later reads such a value from the memo, the whole pickle is decoded again, one instruction at a
time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ._opcodes import Opcodes
from .guess import BEGINS
from .values import ImportedName, Value

__all__ = ["LITERAL", "LITERALS", "PUT", "FastPathMachine", "RowPatterns", "rows_of"]

# Tables: consecutive dictionaries of numbers with the same keys, or consecutive tuples of numbers.
#
# Their memo entries contain only numbers and constants. Entries made by MEMOIZE are kept; entries with an explicit
# index of 256 or more are not kept.

LITERAL = rb"(?:K.|M..|J....|G.{8}|[N\x88\x89])"
LITERALS = frozenset(bytes([op]) for op in b"KMJGN\x88\x89")
"""The possible first bytes of a number or constant."""
PUT = rb"r.(?!\0\0\0)..\0"
"""Pattern of LONG_BINPUT with an index from 256 to 2**24 - 1."""


@dataclass(frozen=True)
class RowPatterns:
    """Regular expressions for rows of a table in a pickle: dictionaries or tuples of numbers.

    There is one set of patterns for each instruction that stores a value in the memo: MEMOIZE, which has no operand,
    and LONG_BINPUT. ``kept`` is true for MEMOIZE, whose memo entries are kept. ``nbytes`` is the length of the
    instruction. ``dictionaries`` and ``tuples`` match several rows, ``dictionary`` and ``tuple_`` parts of them.
    """

    dictionaries: re.Pattern[bytes]
    tuples: re.Pattern[bytes]
    dictionary: re.Pattern[bytes]
    tuple_: re.Pattern[bytes]
    kept: bool
    nbytes: int

    @property
    def ahead(self) -> int:
        """The number of bytes from the beginning of a dictionary to its first value."""
        return self.nbytes + 4

    @classmethod
    def put_by(cls, put: bytes, nbytes: int) -> RowPatterns:
        """Return the patterns for one of the instructions that store a value in the memo.

        ``put`` is a regular expression that matches the instruction, ``nbytes`` is its length.
        """
        dictionary = rb"\}%b\((?:h.%b){1,500}+u" % (put, LITERAL)
        row = b"(?:%b)%b" % (b"|".join(LITERAL * n + b"%c" % (0x84 + n) for n in (1, 2, 3)), put)
        return cls(
            re.compile(rb"(?:%b){2,4000}+" % dictionary, re.DOTALL), re.compile(rb"(?:%b){2,4000}+" % row, re.DOTALL),
            re.compile(rb"\}%b\(|h(.)%b" % (put, LITERAL), re.DOTALL), re.compile(b"()%b" % row, re.DOTALL),
            nbytes == 1, nbytes,
        )  # fmt: skip

    def taken(self, data: bytes, at: int, edge: int) -> tuple[int, int, set[bytes]]:
        """Return the number of rows from ``at`` on, the offset of their end, and the memo indices of their keys.

        Only rows that end before or at the offset ``edge`` are counted.
        """
        many, one = (self.dictionaries, self.dictionary) if data[at : at + 1] == b"}" else (self.tuples, self.tuple_)
        found = many.match(data, at, edge)
        if found is None:
            return 0, at, set()
        fetched = one.findall(data, at, found.end())
        return fetched.count(b""), found.end(), set(fetched) - {b""}


MEMOIZED = RowPatterns.put_by(rb"\x94", 1)
"""The patterns for protocol 4 and 5 (MEMOIZE)."""
NUMBERED = RowPatterns.put_by(PUT, 5)
"""The patterns for older protocols (LONG_BINPUT)."""


def rows_of(protocol: bytes) -> RowPatterns:
    """Return the patterns for a pickle protocol, which is given as one byte."""
    return MEMOIZED if protocol >= b"\x04" else NUMBERED


_INT = rb"(?:K.|M..|J....)"
_TUPLE = rb"(?:\)|%b(?:\x85|%b(?:\x86|%b\x87))%b|\(%b{4,8}t%b)" % (_INT, _INT, _INT, PUT, _INT, PUT)
_KEY = b"X(?:%b)" % b"|".join(b"\\x%02x\\0\\0\\0[0-9]{%d}" % (length, length) for length in range(1, 21))
"""Matches the key of a storage: at most 20 digits, because the keys in legacy files are addresses."""

_TENSOR = re.compile(
    rb"\(\((h.h.)(%b)%b(h.)%bN?t%bQ" % (_KEY, PUT, _INT, PUT)  # the storage
    + rb"%b%b%b\x89" % (_INT, _TUPLE, _TUPLE)  # offset, size, stride, requires_grad
    + rb"(h.)\)R%bt%bR%b" % (PUT, PUT, PUT),  # OrderedDict() of hooks, the arguments, the tensor
    re.DOTALL,
)
"""A tensor of ``torch.save``.

Groups: the BINGETs of the string 'storage' and of the storage type, the key of the storage, the BINGETs of its location
and of OrderedDict.
"""


class FastPathMachine(Opcodes):
    """Decodes each tensor in torch.save's usual form, and each row of a table, in one step, if ``hurried`` is set.

    ``skipped`` is the number of tensors and table rows whose memo entries were not kept.
    """

    def take_rows(self, rows: RowPatterns, at: int, stack: list[Value]) -> int:
        """Decode consecutive dictionaries or tuples of numbers from ``at`` on; returns the offset of their end.

        Returns ``at`` if they cannot be decoded in one step.
        """
        if not self.hurried or (self.skipped and rows.kept):
            return at
        number, end, fetched = rows.taken(self.data, at, self.edge)
        if not number or not all(key[0] in self.memo for key in fetched):
            return at
        value = end - rows.nbytes  # stands for each row: the offset of a memo instruction, not of a string or number
        stack += [value] * number
        if rows.kept:
            self.memo.update(dict.fromkeys(range(len(self.memo), len(self.memo) + number), value))
        else:
            self.skipped += number
        return end

    def take_tensors(self, maker: ImportedName, at: int, stack: list[Value]) -> int:
        """Decode consecutive tensors, and the keys between them; returns the offset of their end.

        ``maker`` is the function that rebuilds a tensor; ``at`` is the offset after the instruction that reads it from
        the memo.
        """
        data, fetch = self.data, self.data[at - 2 : at]
        while True:
            found = _TENSOR.match(data, at, self.edge)
            if found is None or not self._trusts(found):
                stack.append(maker)
                return at
            self.storages.append(found.start(2))
            self.skipped += 1
            maker.called += 1
            stack.append(at)
            at = found.end()
            behind = self._behind_key(at)
            if behind + 2 > self.edge or data[behind : behind + 2] != fetch:
                return at
            stack.append(at)
            at = behind + 2

    def _trusts(self, found: re.Match[bytes]) -> bool:
        """Return whether all memo entries that a matched tensor uses have the values that torch.save stores."""
        fetched = found.group(1, 3, 4)
        ordered = self.trusted.get(fetched)
        if ordered is None:
            ordered = self._trusted(*fetched)
            if ordered is None:
                return False
            self.trusted[fetched] = ordered
        ordered.called += 1
        return True

    def _trusted(self, kind: bytes, location: bytes, hooks: bytes) -> ImportedName | None:
        """Return the import of OrderedDict for a tensor's hooks if the memo has the tensor's three values; else None.

        The three values are a storage class, a location (a string) and hooks (an OrderedDict). The arguments are the
        instructions that fetch them from the memo.
        """
        word, storage = self.memo.get(kind[1]), self.memo.get(kind[3])
        where, ordered = self.memo.get(location[1]), self.memo.get(hooks[1])
        known = all(isinstance(name, ImportedName) and name.quiet for name in (storage, ordered))
        if not known or not isinstance(where, int) or not self.is_storage_word(word):
            return None
        return ordered if isinstance(ordered, ImportedName) else None

    def _behind_key(self, at: int) -> int:
        """Return the offset after the key (a string) at ``at``, and after the instruction that stores it in the memo.

        Returns ``at`` if there is no such key, or if its memo index is below 256.
        """
        data = self.data
        if data[at : at + 1] != b"X" or data[at + 3 : at + 5] != b"\0\0":
            return at
        behind = at + 10 + data[at + 1] + 256 * data[at + 2]
        put = data[behind - 5 : behind]
        if len(put) < 5 or put[0] != 0x72 or not any(put[2:]) or data[at + 5] in BEGINS:
            return at
        return behind
