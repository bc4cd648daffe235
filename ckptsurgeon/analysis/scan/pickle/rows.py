"""Takes tables in one step: dictionaries of the same keys and of numbers, and tuples of numbers, behind each other.

What they put into the memo is kept where MEMOIZE numbers it; where numbers from 256 on are given, it is not
(``shortcut``). Neither holds anything but numbers and constants.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LITERAL", "LITERALS", "PUT", "Rows", "rows_of"]

LITERAL = rb"(?:K.|M..|J....|G.{8}|[N\x88\x89])"
LITERALS = frozenset(bytes([op]) for op in b"KMJGN\x88\x89")
"""How one begins."""
PUT = rb"r.(?!\0\0\0)..\0"
"""LONG_BINPUT at 256 or more, and below 2**24."""


@dataclass(frozen=True)
class Rows:
    """The patterns of rows that are put into the memo in one way, by an instruction of so many bytes.

    ``kept`` is whether it numbers them itself.
    """

    dictionaries: re.Pattern[bytes]
    tuples: re.Pattern[bytes]
    dictionary: re.Pattern[bytes]
    tuple_: re.Pattern[bytes]
    kept: bool
    nbytes: int

    @property
    def ahead(self) -> int:
        """How far behind the begin of a dictionary the first value in it is."""
        return self.nbytes + 4

    @classmethod
    def put_by(cls, put: bytes, nbytes: int) -> Rows:
        """Return the patterns for an instruction of so many bytes that puts something into the memo."""
        dictionary = rb"\}%b\((?:h.%b){1,500}+u" % (put, LITERAL)
        row = b"(?:%b)%b" % (b"|".join(LITERAL * n + b"%c" % (0x84 + n) for n in (1, 2, 3)), put)
        return cls(
            re.compile(rb"(?:%b){2,4000}+" % dictionary, re.DOTALL), re.compile(rb"(?:%b){2,4000}+" % row, re.DOTALL),
            re.compile(rb"\}%b\(|h(.)%b" % (put, LITERAL), re.DOTALL), re.compile(b"()%b" % row, re.DOTALL),
            nbytes == 1, nbytes,
        )  # fmt: skip

    def taken(self, data: bytes, at: int, edge: int) -> tuple[int, int, set[bytes]]:
        """Return how many rows begin at ``at``, where they end, and the memo's numbers that they fetch keys from.

        None reaches beyond ``edge``.
        """
        many, one = (self.dictionaries, self.dictionary) if data[at : at + 1] == b"}" else (self.tuples, self.tuple_)
        found = many.match(data, at, edge)
        if found is None:
            return 0, at, set()
        fetched = one.findall(data, at, found.end())
        return fetched.count(b""), found.end(), set(fetched) - {b""}


MEMOIZED = Rows.put_by(rb"\x94", 1)
"""The rows of protocol 4; those of older ones give the number."""
NUMBERED = Rows.put_by(PUT, 5)


def rows_of(protocol: bytes) -> Rows:
    """Return the patterns for a protocol: its number as a byte."""
    return MEMOIZED if protocol >= b"\x04" else NUMBERED
