"""Any plain object is plain data; any bytes are judged, in bounds, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptsurgeon as cs
from ckptsurgeon.analysis.scan.context import Budget
from ckptsurgeon.analysis.scan.pickle.guess import MAGICS
from ckptsurgeon.analysis.scan.pickle.machine import Machine
from ckptsurgeon.analysis.scan.pickle.state import RestartError
from ckptsurgeon.formats.base import limits

from ...helpers.depth import examples_of
from .hostile import by_hand, payload

QUIET = examples_of(48)


def is_nothing_packed(value: str | bytes) -> bool:
    """Tell whether no archive begins in a value: one that cannot be unpacked is not plain data."""
    return not MAGICS.search(value if isinstance(value, bytes) else value.encode("latin-1", "replace"))


BYTES = st.binary().filter(is_nothing_packed)
NUMBERS = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text().filter(is_nothing_packed) | BYTES
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=8)
OBJECTS = st.recursive(
    SCALARS | BYTES.map(bytearray) | st.sets(HASHABLE, max_size=4),
    lambda inner: st.lists(inner) | st.dictionaries(HASHABLE, inner) | st.tuples(inner, inner, inner),
    max_leaves=40,
)


def decoded(data: bytes, *, hurried: bool = True) -> Machine:
    machine = Machine(data, Budget(), names={})
    machine.hurried = hurried
    try:
        machine.run()
    except RestartError:
        return decoded(data, hurried=False)
    return machine


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ran: list[Any] = []
    for module, name in ((os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *args, **named: ran.append(args))
    yield
    assert not ran


@pytest.mark.long
@QUIET
@given(OBJECTS, st.integers(0, 5))
def test_a_plain_object_is_plain_data(value: Any, protocol: int) -> None:
    Path("x.pkl").write_bytes(pickle.dumps(value, protocol))
    found = cs.scan("x.pkl")
    assert found.ok
    assert found.verdict is cs.Verdict.PLAIN
    assert found.found[0].pickles == 1


@pytest.mark.long
@QUIET
@given(
    st.sampled_from(sorted(by_hand())),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_mutations_are_judged_and_never_run(name: str, flips: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(by_hand()[name])
    for where, value in flips:
        data[int(where * len(data))] = value
    Path("x.pkl").write_bytes(bytes(data[: int(len(data) * cut) + 1]))
    cs.scan("x.pkl").to_json()


@QUIET
@given(st.binary(max_size=400))
def test_any_bytes_are_judged(data: bytes) -> None:
    for head in (b"", b"\x80\x04", b"PK\3\4", b"\x93NUMPY\1\0", b"\x1f\x8b\x08"):
        Path("x.bin").write_bytes(head + data)
        cs.scan("x.bin").to_json()


@pytest.mark.long
@QUIET
@given(st.randoms(use_true_random=False))
def test_streams_of_random_instructions_end(source: random.Random) -> None:
    codes = [ord(op.code) for op in pickletools.opcodes]
    data = bytes(source.choice(codes) if source.random() < 0.8 else source.randrange(256) for _ in range(300))
    decoded(data)
    decoded(data, hurried=False)


@pytest.mark.long
@QUIET
@given(OBJECTS, st.integers(0, 5), st.integers(0, 5))
def test_a_payload_beside_any_object_is_found(value: Any, protocol: int, inner: int) -> None:
    Path("x.pkl").write_bytes(pickle.dumps((value, payload(inner)), protocol))
    assert cs.scan("x.pkl").verdict is cs.Verdict.CODE


def test_what_cpython_imports_is_what_is_named() -> None:
    """The reference is CPython's own unpickler, asked for names that it is given inert stand-ins for."""
    for name, data in by_hand().items():
        seen: list[tuple[str, str]] = []

        class Asks(pickle._Unpickler):  # type: ignore[misc, name-defined]
            def find_class(self, module: str, name: str) -> Any:
                seen.append((module, name))  # noqa: B023 - read in the same turn
                return lambda *args: None

            def persistent_load(self, pid: Any) -> Any:
                return None

        import io

        try:
            Asks(io.BytesIO(data), fix_imports=False).load()
        except Exception as error:
            del error
        ours = {(name.module, name.name) for name in decoded(data).names.values()}
        assert set(seen) <= ours, name


def test_numbers_that_begin_as_a_pickle_are_numbers() -> None:
    values = [b"\x80" + bytes([i, j]) + b"\x11\x22\x33" * 9 for i in range(6) for j in range(256)]
    values += [b"\x95" + bytes([9 - i]) * 8 + b"." + bytes(range(256)) for i in range(10)]  # a frame that stops
    Path("x.pkl").write_bytes(pickle.dumps(values, 4))
    found = cs.scan("x.pkl")
    assert found.ok, found.beyond[:2]
    assert found.verdict is cs.Verdict.PLAIN


def test_a_pickle_in_a_pickle_in_a_pickle_is_found() -> None:
    data = payload()
    for _ in range(4):
        data = pickle.dumps({"a": data}, 4)
    Path("x.pkl").write_bytes(data)
    assert cs.scan("x.pkl").verdict is cs.Verdict.CODE


def test_what_follows_a_pickle_is_no_part_of_it() -> None:
    Path("x.pkl").write_bytes(payload(0) + b"\n")
    one = cs.scan("x.pkl").found[0]
    assert (one.fault, one.pickles, one.notes) == (None, 1, ("1 byte after the last pickle",))


def test_names_of_pickles_behind_each_other_are_counted_together() -> None:
    Path("x.pkl").write_bytes(payload(2) * 3 + payload(4)[:-3])
    one = cs.scan("x.pkl").found[0]
    assert (one.pickles, one.uses[0].imported, one.uses[0].called, len(one.uses[0].calls)) == (4, 4, 3, 3)
    assert one.fault is not None
    assert f"near byte {3 * len(payload(2)) + 2})" in one.fault.why


NUMBERS = st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False)
ROWS = st.lists(
    st.fixed_dictionaries({"id": NUMBERS, "score": NUMBERS}) | st.tuples(NUMBERS, NUMBERS) | st.tuples(NUMBERS),
    max_size=30,
)


@QUIET
@given(ROWS, st.lists(st.integers(0, 29), max_size=5), st.integers(2, 5), st.booleans())
def test_tables_are_taken_in_steps_that_find_what_every_instruction_finds(
    rows: list[Any], again: list[int], protocol: int, many: bool
) -> None:
    table = rows * (20 if many else 1)
    shared = [table[i] for i in again if i < len(table)]
    for value in (table, [table, shared], {"a": table, "b": [*shared, Runs()], "c": table}):
        data = pickle.dumps(value, protocol)
        quick, slow = decoded(data), decoded(data, hurried=False)
        assert {key: name.use() for key, name in quick.names.items()} == {
            key: name.use() for key, name in slow.names.items()
        }
        assert (quick.position, quick.fault, quick.stopped) == (slow.position, "", True)


class Runs:
    def __reduce__(self) -> Any:
        return os.getenv, ("HOME",)


@pytest.mark.parametrize("protocol", [3, 4])
def test_tables_are_taken_in_steps(protocol: int) -> None:
    for table in ([{"id": i, "score": i / 7} for i in range(3000)], [(i, i / 7) for i in range(3000)]):
        data = pickle.dumps(table, protocol)
        machine = decoded(data)
        assert limits.SCAN_OPS - machine.budget.ops < 5000
        assert not machine.fault


def test_a_table_of_keys_that_were_never_put_is_corrupt() -> None:
    row = b"}\x94(h\x07K\1h\x08K\2u"
    Path("x.pkl").write_bytes(b"\x80\x04]\x94(" + 9 * row + b"e.")
    assert not cs.scan("x.pkl").whole
    Path("y.pkl").write_bytes(b"\x80\x04]\x94(\x8c\1a\x94\x8c\1b\x94" + 9 * b"}\x94(h\1K\1h\2K\2u" + b"e.")
    assert cs.scan("y.pkl").ok
