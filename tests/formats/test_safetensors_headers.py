"""Headers made up from a grammar: whatever safetensors itself refuses, we refuse."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from safetensors import SafetensorError, deserialize

import ckptsurgeon as cs
from ckptsurgeon.formats._open import read_header
from ckptsurgeon.formats.base.untrusted import parse_json
from ckptsurgeon.storage.read.uri import open_source

SIZES = [
    "0",
    "1",
    "1",
    "1",
    "2",
    "-0",
    "-1",
    "0.0",
    "1.0",
    "1e0",
    "01",
    "+1",
    "null",
    "true",
    '"1"',
    "[1]",
    "18446744073709551616",
]
VALUES = [
    "1", "-0", "0.5", "1e5", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "nan", "null", "true", '"b"', '"\\ud800"',
    '"\\ud83d\\ude00"', '"\\ude00\\ud83d"', '"\\x"', '"a\tb"', "[1, NaN]", '{"y": -Infinity}', '{"\\udfff": 1}', "[[-0]]", "{", "",
    "[" * 125 + "]" * 125, "[" * 126 + "]" * 126, '{"y":' * 126 + "1" + "}" * 126, "1.", ".5", "0x1", "1,", "'b'",
]  # fmt: skip
DTYPES = ['"U8"', '"F4"', '"f32"', '"\\u00463\\u0032"', "null", "1"]
KEYS = ['"a"', '"b"', '"a-0"', '"\\u0061"', '"\\ud800"', '""', '"a, -0"', "a"]


def header(source: random.Random) -> str:
    """A header of one tensor of four bytes, in which little is not as it should be."""

    def odd(usual: str, others: list[str]) -> str:
        return source.choice(others) if source.random() < 0.08 else usual

    shape, begin, end = odd("1", [*SIZES, "", "1, 1"]), odd("0", SIZES), odd("4", SIZES)
    dtype, key = odd('"F32"', DTYPES), odd('"a"', KEYS)
    fields = [f'"dtype": {dtype}', f'"shape": [{shape}]', f'"data_offsets": [{begin}, {end}]']
    if source.random() < 0.5:
        fields.append(f'"{source.choice("xyz")}": {source.choice(VALUES)}')
    if source.random() < 0.1:
        fields.append(source.choice(fields))
    if source.random() < 0.05:
        fields.pop(source.randrange(len(fields)))
    source.shuffle(fields)
    entries = [f"{key}: {{{', '.join(fields)}}}"]
    if source.random() < 0.3:
        entries.append(
            f'"__metadata__": {source.choice(["{}", "null", *(f"{{{k}: {v}}}" for k in KEYS[:4] for v in VALUES)])}'
        )
    return "{" + ",".join(entries) + "}" + odd("", ["  ", "\0", "x", "\n"])


def is_refused_by_the_reference(data: bytes) -> bool:
    try:
        deserialize(data)
    except SafetensorError:
        return True
    return False


def is_refused(data: bytes) -> bool:
    Path("x.safetensors").write_bytes(data)
    source = open_source("x.safetensors")
    try:
        read_header(source)
    except cs.FormatError:
        return True
    finally:
        source.close()
    return False


def file_of(text: str, data: bytes = b"\0\0\0\0") -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.long
def test_what_the_reference_refuses_we_refuse() -> None:
    source, read = random.Random(12), 0
    for _ in range(4000):
        data = file_of(header(source), b"\0" * source.choice([4] * 9 + [0, 1]))
        refused = is_refused(data)
        read += not refused
        assert refused or not is_refused_by_the_reference(data), data
    assert read > 200


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", '"\\ud800"', "[" * 126 + "]" * 126])
def test_a_field_that_means_nothing_is_json_too(value: str) -> None:
    data = file_of(f'{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":{value}}}}}')
    assert is_refused_by_the_reference(data)
    assert is_refused(data)


def test_a_number_too_large_for_a_float_is_not_called_invalid_json() -> None:
    with pytest.raises(ValueError, match="it contains '1e400', which is too large for a float"):
        parse_json(b"[1e400]", strict=True)


@pytest.mark.parametrize("fields", ['"shape":[1],"data_offsets":[-0,4]', '"shape":[-0],"data_offsets":[0,0]'])
def test_minus_zero_is_no_size(fields: str) -> None:
    data = file_of(f'{{"a":{{"dtype":"F32",{fields}}}}}', b"\0\0\0\0" if "4" in fields else b"")
    assert is_refused_by_the_reference(data)
    assert is_refused(data)


def test_minus_zero_in_a_key_or_in_what_means_nothing_is_fine() -> None:
    data = file_of('{"a, -0, b":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":-0}}')
    assert not is_refused_by_the_reference(data)
    assert not is_refused(data)
