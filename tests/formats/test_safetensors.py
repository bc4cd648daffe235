"""safetensors: at least as strict as the reference, and byte for byte what it writes."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

import ckptsurgeon as cs
from ckptsurgeon.formats._open import read_header
from ckptsurgeon.formats.base.format_table import writers
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.storage.read.uri import open_source

from ..helpers.depth import examples_of


def file_of(header: object, data: bytes = b"", *, pad: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += pad
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read(data: bytes) -> cs.Checkpoint:
    Path("x.safetensors").write_bytes(data)
    return cs.open_checkpoint("x.safetensors")


HOSTILE = {
    "HeaderTooSmall": b"\0\0\0",
    "HeaderTooLarge": file_of(b"{}", length=100_000_001),
    "InvalidHeaderLength": file_of(b'{"a": 1}', length=50),
    "InvalidHeader": file_of(b'{"\xff\xfe": 1}'),
    "not json": file_of(b'{"a": }'),
    "not an object in an object": file_of(b'{"a": 1}'),
    "deep": file_of(b'{"a":' + b"[" * 200_000),
    "duplicate key": file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "unknown dtype": file_of({"a": entry("Q4")}, b"\0" * 8),
    "dtype no text": file_of({"a": entry(3)}, b"\0" * 8),  # type: ignore[arg-type]
    "missing field": file_of({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
    "negative size": file_of({"a": entry(shape=[-2])}, b"\0" * 8),
    "float size": file_of({"a": entry(shape=[2.0])}, b"\0" * 8),
    "bool size": file_of({"a": entry(shape=[True], offsets=[0, 4])}, b"\0" * 4),
    "too many dimensions": file_of({"a": entry(shape=[1] * 65, offsets=[0, 4])}, b"\0" * 4),
    "overflow": file_of({"a": entry(shape=[2**40, 2**40])}, b"\0" * 8),
    "huge number": file_of(b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,4]}}', b"\0" * 4),
    "too few bytes": file_of({"a": entry(offsets=[0, 4])}, b"\0" * 4),
    "backwards": file_of({"a": entry(offsets=[8, 0])}, b"\0" * 8),
    "beyond the end": file_of({"a": entry()}, b"\0" * 4),
    "offsets beyond the file": file_of({"a": entry(offsets=[8, 16])}, b"\0" * 8),
    "half a row": file_of({"a": entry("F4", [2, 3], [0, 3])}, b"\0" * 3),
    "half a character in a key": file_of(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "half a character in the metadata": file_of(b'{"__metadata__":{"a":"\\udfff"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "overflow in front of a 0": file_of({"a": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}),
    "overflow behind a 0": file_of({"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0])}),
    "bytes left over": file_of({"a": entry()}, b"\0" * 9),
    "hole": file_of({"a": entry(), "b": entry(offsets=[12, 20])}, b"\0" * 20),
    "overlap": file_of({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12),
    "twice the same bytes": file_of({"a": entry(), "b": entry()}, b"\0" * 8),
    "metadata no text": file_of({"__metadata__": {"a": 1}, "a": entry()}, b"\0" * 8),
    "metadata no map": file_of({"__metadata__": ["a"], "a": entry()}, b"\0" * 8),
    "half a byte": file_of({"a": entry("F4", [3], [0, 2])}, b"\0" * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_file_is_refused_with_its_rule(name: str) -> None:
    with pytest.raises(cs.FormatError) as caught:
        read(HOSTILE[name])
    assert caught.value.rule
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "name",
    [n for n in HOSTILE if n not in ("duplicate key", "too many dimensions", "half a row", "overflow behind a 0")],
)
def test_what_the_reference_refuses_we_refuse(name: str) -> None:
    with pytest.raises(SafetensorError):
        deserialize(HOSTILE[name])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("offsets beyond the file", "the tensor a ends beyond the end of the file, which is truncated"),
        ("backwards", "a needs 8 bytes, but its offsets go from 8 back to 0"),
        ("half a row", "a has half a byte at the end of a row"),
        ("half a byte", "a does not end at the end of a byte"),
        ("hole", "b has a gap in front of it"),
        ("half a character in a key", r"\\ud800 has half of a surrogate pair"),
    ],
)
def test_the_reason_is_the_rule_that_was_broken(name: str, why: str) -> None:
    with pytest.raises(cs.FormatError, match=why):
        read(HOSTILE[name])


@pytest.mark.parametrize("name", ["offsets beyond the file", "hole"])
def test_only_a_truncated_file_has_the_hint_to_fetch_it_again(name: str) -> None:
    with pytest.raises(cs.FormatError) as caught:
        read(HOSTILE[name])
    assert ("ckpt check" in caught.value.hint) == (name != "hole")


def test_the_reference_takes_the_last_of_two_equal_keys_and_we_refuse() -> None:
    assert len(deserialize(HOSTILE["duplicate key"])) == 1


TENSOR = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'
DOUBLE = {
    "key": b'{"a":{%b},"a":{%b}}' % (TENSOR, TENSOR),
    "escaped-key": b'{"a":{%b},"\\u0061":{%b}}' % (TENSOR, TENSOR),
    "spaced-key": b'{ "a" : {%b} , "a" :{%b}}' % (TENSOR, TENSOR),
    "dtype": b'{"a":{"dtype":"I8",%b}}' % TENSOR,
    "shape": b'{"a":{"shape":[2],%b}}' % TENSOR,
    "unknown-field": b'{"a":{"x":1,"x":2,%b}}' % TENSOR,
    "inside-a-field": b'{"a":{"x":{"y":1,"y":2},%b}}' % TENSOR,
    "metadata": b'{"__metadata__":{"k":"v","k":"w"},"a":{%b}}' % TENSOR,
    "all-metadata": b'{"__metadata__":{"k":"v"},"a":{%b},"__metadata__":{}}' % TENSOR,
    "beside-a-shorter-tensor": b'{"b":{"dtype":"F32","shape":[0]},"a":{"dtype":"I8",%b}}' % TENSOR,
}


@pytest.mark.parametrize("header", DOUBLE.values(), ids=DOUBLE.keys())
def test_a_name_that_occurs_twice_in_any_object_of_a_header_is_refused(header: bytes) -> None:
    with pytest.raises(cs.FormatError, match=r"occurs twice|does not have the fields"):
        read(file_of(header, b"\0" * 4))


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64,
]  # fmt: skip
HALVES = [torch.float4_e2m1fn_x2] if hasattr(torch, "float4_e2m1fn_x2") else []
"""What has two numbers in a byte; torch 2.6 has none."""
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES.append(torch.float8_e8m0fnu)


def tensor_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    size = dtype.itemsize
    raw = torch.arange(size * int(torch.tensor(shape).prod()), dtype=torch.int64) % 120
    return raw.to(torch.uint8).view(dtype).view(shape)


def written(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Lay tensors out with our writer and fill the slots by hand."""
    out = [OutTensor(key, str(t.dtype)[6:], tuple(t.shape), t.numel() * t.element_size()) for key, t in tensors.items()]
    layout = writers()["safetensors"].layout(out, metadata or {}, ())
    buffer = bytearray(layout.size)
    for key, (offset, nbytes) in layout.slots.items():
        buffer[offset : offset + nbytes] = bytes(tensors[key].contiguous().view(-1).view(torch.uint8).numpy())
    for offset, data in layout.frame({}, ""):
        buffer[offset : offset + len(data)] = data
    return bytes(buffer)


def test_a_tiny_file_has_these_very_bytes() -> None:
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}} '
    assert written({"a": torch.zeros(3)}) == struct.pack("<Q", 56) + header + bytes(12)


def test_every_dtype_is_written_as_the_reference_writes_it() -> None:
    tensors = {f"k{i:02d}": tensor_of(dtype, 2, 4) for i, dtype in enumerate([*DTYPES, *HALVES])}
    assert written(tensors) == save(tensors)
    assert written(tensors, {"format": "pt"}) == save(tensors, {"format": "pt"})


@examples_of(60)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda k: k != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_any_tensors_are_written_as_the_reference_writes_them(spec: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {key: tensor_of(dtype, *shape) for key, (dtype, shape) in spec.items()}
    data = written(tensors)
    assert data == save(tensors)
    found = read(data)
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        assert (found[key].dtype, found[key].shape) == (str(tensor.dtype)[6:], tuple(tensor.shape))
        raw = found.tensor(key).reshape(-1).view(torch.uint8)
        assert torch.equal(raw, tensor.reshape(-1).view(torch.uint8))


def test_metadata_is_read_and_shown() -> None:
    found = read(save({"a": torch.zeros(2)}, {"format": "pt", "who": "me"}))
    assert dict(found.metadata) == {"format": "pt", "who": "me"}


def test_the_format_is_known_by_content_not_by_name() -> None:
    Path("weights.bin").write_bytes(save({"a": torch.zeros(2)}))
    assert cs.open_checkpoint("weights.bin").format == "safetensors"


def test_reading_a_header_reads_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.safetensors").write_bytes(save({"a": torch.zeros(100_000)}))
    source = open_source("x.safetensors")
    reads: list[tuple[int, int]] = []
    real = source.read  # type: ignore[union-attr]
    monkeypatch.setattr(source, "read", lambda at, n: reads.append((at, n)) or real(at, n))
    read_header(source)
    assert sum(n for _, n in reads) < 1000


@pytest.mark.long
def test_a_second_header_of_many_tensors_takes_few_bytes_for_each() -> None:
    number = 5_000
    Path("many.safetensors").write_bytes(save({f"layers.{i}.weight": torch.zeros(2) for i in range(number)}))
    first = cs.open_checkpoint("many.safetensors")
    tracemalloc.start()
    try:
        second = cs.open_checkpoint("many.safetensors")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(first) == len(second) == number
    assert held / number < 220  # a description, where it begins, and its place in two dictionaries
