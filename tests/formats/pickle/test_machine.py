"""Our pickle machine: the same values as CPython's on plain data, and nothing else ever."""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.errors import FormatError, UnsafeError
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.pickle.machine import load
from ckptsurgeon.formats.pickle.state import Memo
from ckptsurgeon.formats.pickle.torch import rebuilders
from ckptsurgeon.formats.pickle.values import GlobalName, OpaqueResult, PickledSet

from ...helpers.depth import examples_of


def read(data: bytes) -> Any:
    return load(data, rebuild=rebuilders(), persistent=lambda pid: ("pid", pid))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=20),
    st.binary(max_size=20),
)  # fmt: skip
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.tuples(inner), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.long
@examples_of(120)
@given(plain, st.integers(0, 5))
def test_plain_data_is_read_as_cpython_reads_it(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_an_ordered_dict_is_a_mapping(protocol: int) -> None:
    assert read(pickle.dumps(OrderedDict([("b", 1), ("a", [2])]), protocol)) == {"b": 1, "a": [2]}


@pytest.mark.parametrize("protocol", range(6))
def test_sets_keep_their_members_unhashed(protocol: int) -> None:
    found = read(pickle.dumps({"x"}, protocol))
    assert isinstance(found, PickledSet)
    assert found == ["x"]


def test_python_2_strings_are_text() -> None:
    assert read(b"\x80\x02U\x03abcq\x00.") == "abc"
    assert read(b"S'a\\nb'\n.") == "a\nb"
    assert read(b"T\x02\x00\x00\x00\xff\xfe.") == "\xff\xfe"
    assert read(b"I01\n.") is True
    assert read(b"L123L\n.") == 123
    assert read(b"(lp0\nI1\naI2\na.") == [1, 2]
    assert read(b"(dp0\nVk\nI1\ns.") == {"k": 1}


class Thing:
    def __init__(self) -> None:
        self.a = 1


class Reduced:
    def __reduce__(self) -> Any:
        return (print, ("never",), {"s": 1}, iter([1, 2]), iter([("k", "v")]))


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_inert_stand_ins_with_their_state(protocol: int) -> None:
    found = read(pickle.dumps(Thing(), protocol))
    assert isinstance(found, OpaqueResult)
    assert found.attributes() == {"a": 1}
    found = read(pickle.dumps(Reduced(), protocol))
    assert isinstance(found, OpaqueResult)
    assert repr(found).endswith(".print")
    assert found.items == [1, 2, "k", "v"]


@pytest.mark.parametrize(
    "data",
    [
        b"(iargparse\nNamespace\n.",
        b"(cargparse\nNamespace\no.",
        b"\x82\x01.",
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
    ],
)
def test_inst_obj_and_extensions_are_only_names(data: bytes) -> None:
    assert isinstance(read(data), (OpaqueResult, GlobalName))


def nested(depth: int) -> bytes:
    return b"(" * depth + b"t" * depth + b"."


MALFORMED = {
    "empty": b"",
    "no stop": b"N",
    "unknown opcode": b"\xff.",
    "future protocol": b"\x80\x06.",
    "stack underflow": b".",
    "pop from nothing": b"00.",
    "memo never made": b"h\x05.",
    "text memo never made": b"g7\n.",
    "mark never opened": b"t.",
    "stop inside a mark": b"(N.",
    "short text": b"X\x10\x00\x00\x00abc.",
    "short bytes": b"B\x10\x00\x00\x00abc.",
    "false length of 2**63": b"\x8e" + struct.pack("<Q", 2**63) + b".",
    "false length of 2**40": b"\x8d" + struct.pack("<Q", 2**40) + b".",
    "negative long": b"\x8b" + struct.pack("<i", -5) + b".",
    "negative string": b"T" + struct.pack("<i", -5) + b".",
    "huge frame": b"\x95" + struct.pack("<Q", 2**50) + b"N.",
    "bad utf-8": b"X\x01\x00\x00\x00\xff.",
    "bad int": b"Iabc\n.",
    "long int": b"I" + b"9" * 10_000 + b"\n.",
    "bad float": b"Fx\n.",
    "string without quotes": b"Sabc\n.",
    "key without value": b"}(Vk\nu.",
    "append to a number": b"K\x01K\x02a.",
    "setitem on a list": b"]Vk\nNs.",
    "global without text": b"K\x01K\x02\x93.",
    "line without end": b"cos",
    "no persistent line": b"P",
    "buffer": b"\x97.",
    "deep": nested(1000),
    "too large an integer": b"\x8b" + struct.pack("<i", 5000) + b"\1" * 5000 + b".",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_stream_is_a_format_error(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(MALFORMED[name])
    assert caught.value.rule


def test_a_memo_index_for_which_others_take_gigabytes_is_refused_and_costs_nothing() -> None:
    most = limits.PICKLE_MEMO.to_bytes(4, "little")
    assert read(b"Nr" + most + b"0j" + most + b".") is None
    with pytest.raises(FormatError, match="invalid memo index"):
        read(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.")


def test_keys_that_hash_slowly_are_set_aside() -> None:
    bomb = b")" + b"q\x00h\x00\x86" * 240  # a tuple of itself, 240 deep: its hash would take 2**240 steps
    found = read(b"}" + bomb + b"Ns.")
    assert len(found) == 1
    assert "key" in repr(next(iter(found)))


def test_integers_that_collide_are_set_aside() -> None:
    base = 2**61 - 1
    items = b"".join(b"\x8a\x10" + (base * i).to_bytes(16, "little") + b"N" for i in range(1, 3000))
    assert len(read(b"}(" + items + b"u.")) == 2999


def test_too_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_OPS", 1000)
    with pytest.raises(UnsafeError, match="instructions"):
        read(b"N0" * 600 + b"N.")
    monkeypatch.setattr(limits, "PICKLE_RARE", 100)
    read(b"K\x01\x85" * 300 + b"N.")
    with pytest.raises(UnsafeError, match="more instructions of rare kinds than the limit of 100"):
        read(b"N0" * 60 + b"N.")


def test_a_pickle_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_BYTES", 100)
    with pytest.raises(UnsafeError, match="more than the limit"):
        read(b"N" * 101)


def test_every_opcode_of_cpython_is_known() -> None:
    from ckptsurgeon.formats.pickle.machine import TABLE

    hot = {0x72, 0x68, 0x4B, 0x28, 0x74, 0x58, 0x52, 0x85, 0x71, 0x94, 0x51, 0x89, 0x29, 0x86, 0x4D, 0x6A, 0x2E}
    for opcode in pickletools.opcodes:
        code = ord(opcode.code)
        assert code in hot or code in TABLE, opcode.name


@examples_of(200)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_format_error(data: bytes) -> None:
    try:
        read(data)
    except FormatError:
        pass


@examples_of(120)
@given(
    st.lists(
        st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes] + [b"\0", b"\1", b"a\n"]), max_size=60
    )
)
def test_any_opcodes_give_a_value_or_a_format_error(codes: list[bytes]) -> None:
    try:
        read(b"".join(codes))
    except FormatError:
        pass


@given(st.lists(st.tuples(st.sampled_from(["put", "next", "memoize"]), st.integers(0, 9))))
def test_the_memo_is_a_mapping(steps: list[tuple[str, int]]) -> None:
    memo, model = Memo(), dict[int, int]()
    for value, (step, number) in enumerate(steps):
        index = number if step == "put" else len(memo.near) if step == "next" else len(memo)
        memo.put(index, value)
        model[index] = value
    assert len(memo) == len(model)
    for index in range(-3, 10):
        if index in model:
            assert memo.get(index) == model[index]
        else:
            with pytest.raises(KeyError):
                memo.get(index)
