"""The table of operands, by which both that reads pickles and that scans them divide a stream into instructions."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.analysis.scan.pickle import _opcodes as scanned
from ckptsurgeon.formats.pickle import machine as read
from ckptsurgeon.formats.pickle import state
from ckptsurgeon.formats.pickle.state import MoreError, TruncatedError, UnknownOpcodeError

from ...helpers.depth import examples_of

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
OBJECTS = st.recursive(
    SCALARS | st.binary().map(bytearray) | st.sets(SCALARS, max_size=4) | st.frozensets(SCALARS, max_size=4),
    lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner) | st.tuples(inner, inner, inner),
    max_leaves=40,
)


@pytest.mark.long
@examples_of(100)
@given(OBJECTS, st.integers(0, 5))
def test_instructions_are_cut_as_pickletools_cuts_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    starts = [at for _, _, at in pickletools.genops(data)]
    at, ours = 0, []
    while at < len(data):
        ours.append(at)
        _, at = state.bounds(data, at, len(data))
    assert ours == starts


def test_every_instruction_of_pickletools_is_known_and_none_else() -> None:
    ours = {*state.FIXED, *state.LENGTHS, *state.LINES}
    assert ours == {ord(op.code) for op in pickletools.opcodes}
    for op in pickletools.opcodes:
        if ord(op.code) in state.FIXED:
            assert state.FIXED[ord(op.code)] == (op.arg.n if op.arg else 0), op.name
    assert {*read.TABLE, *scanned.TABLE} <= ours


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"J\0\0\0", "ends too early"),
        (b"X\0\0\0", "ends too early"),
        (b"X\2\0\0\0a", "claims 2 bytes, but only 1 remain"),
        (b"\x8b\xff\xff\xff\xff", "claims a negative length"),
        (b"I12", "ends inside a line"),
        (b"cos\nsystem", "ends inside a line"),
    ],
)
def test_an_operand_that_is_cut_short_is_an_error_unless_more_follows(data: bytes, why: str) -> None:
    with pytest.raises(TruncatedError, match=f"^{why}$"):
        state.bounds(data, 0, len(data))
    if "negative" not in why:
        with pytest.raises(MoreError):
            state.bounds(data, 0, 1000)


def test_an_unknown_instruction_is_an_error() -> None:
    with pytest.raises(UnknownOpcodeError):
        state.bounds(b"\xff", 0, 1)
