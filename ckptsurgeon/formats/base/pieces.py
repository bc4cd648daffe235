"""Puts a tensor together from pieces of a grid, as sharded training saves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import FormatError
from ...tensors.composition import join
from ...tensors.info import TensorInfo
from ...util.text import escape
from . import limits
from .bounds import check_elements

__all__ = ["Piece", "assembled"]


@dataclass(frozen=True)
class Piece:
    """A tensor that is part of another, from ``offsets`` along each dimension."""

    offsets: tuple[int, ...]
    info: TensorInfo


def assembled(key: str, dtype: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> TensorInfo:
    """Return the tensor that pieces make up; raises FormatError where they leave a hole or overlap."""
    check_elements(shape)
    filled = [piece for piece in pieces if piece.info.numel] if 0 not in shape else []
    if any(len(piece.offsets) != len(shape) or len(piece.info.shape) != len(shape) for piece in pieces):
        raise FormatError(f"a piece of {escape(key)} has other dimensions than the whole.", rule="pieces")
    opaque = next((piece.info.opaque for piece in filled if piece.info.opaque), "")
    if opaque:
        return TensorInfo(dtype, shape, opaque=opaque)
    if not filled:
        if 0 not in shape:
            raise FormatError(f"no piece of {escape(key)} is there.", rule="pieces")
        return pieces[0].info if pieces and pieces[0].info.shape == shape else TensorInfo(dtype, shape, opaque="empty")
    made = _grid(filled, 0, shape)
    if made is None:
        raise FormatError(
            f"the {len(filled)} pieces of {escape(key)} do not make up a tensor of shape {shape}.", rule="pieces"
        )
    return made


def _grid(pieces: Sequence[Piece], dim: int, shape: tuple[int, ...]) -> TensorInfo | None:
    """Put pieces together along ``dim`` and those behind it, None where they do not fit."""
    if dim == len(shape):
        return pieces[0].info if len(pieces) == 1 else None
    if len(pieces) > limits.TENSORS:
        return None
    rows: dict[int, list[Piece]] = {}
    for piece in pieces:
        rows.setdefault(piece.offsets[dim], []).append(piece)
    at, parts = 0, []
    for begin in sorted(rows):
        part = _grid(rows[begin], dim + 1, shape)
        size = rows[begin][0].info.shape[dim]
        if begin != at or part is None or any(piece.info.shape[dim] != size for piece in rows[begin]):
            return None
        parts.append(part)
        at += size
    return join(parts, dim) if at == shape[dim] else None
