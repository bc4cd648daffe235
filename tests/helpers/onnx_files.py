"""ONNX models made field by field, sound ones and others."""

from __future__ import annotations

from collections.abc import Sequence

from ckptsurgeon.formats.base.protobuf import field, varint_bytes

__all__ = ["attribute", "external", "graph", "model", "node", "packed", "tensor"]

FLOAT, INT64, RAW = 1, 7, 9


def packed(numbers: Sequence[int]) -> bytes:
    """Numbers of variable length, one after the other."""
    return b"".join(varint_bytes(value & (1 << 64) - 1) for value in numbers)


def tensor(
    name: str | bytes,
    shape: Sequence[int],
    kind: int = FLOAT,
    values: bytes | None = b"",
    where: int = RAW,
    more: bytes = b"",
) -> bytes:
    """A `TensorProto`; ``values`` are in the field ``where``, and no field has them if they are None."""
    raw = name if isinstance(name, bytes) else name.encode()
    sizes = b"".join(varint_bytes(1 << 3) + varint_bytes(size & (1 << 64) - 1) for size in shape)
    return sizes + field(2, kind) + field(8, raw) + (b"" if values is None else field(where, values)) + more


def external(**entries: object) -> bytes:
    """The fields of a tensor whose values are in another file."""
    pairs = (field(1, key.encode()) + field(2, str(value).encode()) for key, value in entries.items())
    return b"".join(field(13, pair) for pair in pairs) + field(14, 1)


def attribute(name: str, number: int, value: bytes) -> bytes:
    """An attribute of a node: ``number`` 5 is a tensor, 6 a graph."""
    return field(1, name.encode()) + field(number, value)


def node(kind: str, *attributes: bytes) -> bytes:
    """A node of a graph."""
    return field(2, b"out") + field(4, kind.encode()) + b"".join(field(5, one) for one in attributes)


def graph(tensors: Sequence[bytes] = (), nodes: Sequence[bytes] = (), more: bytes = b"") -> bytes:
    """A graph with initialisers."""
    return (
        b"".join(field(1, one) for one in nodes) + field(2, b"main") + b"".join(field(5, one) for one in tensors) + more
    )


def model(body: bytes | None, more: bytes = b"") -> bytes:
    """A `ModelProto` of pytorch, with opset 17."""
    said = field(1, 8) + field(2, b"pytorch") + field(3, b"2.6.0")
    return said + (b"" if body is None else field(7, body)) + field(8, field(2, 17)) + more
