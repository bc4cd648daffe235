"""Every variety of tensor that torch saves, and files made of them."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["bytes_of", "legacy_variety", "rezipped", "same", "variety"]


def variety() -> dict[str, torch.Tensor]:
    """One of everything: views, strides, dtypes, bits, layouts."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "whole": base,
            "view": base[1:3],
            "transposed": base.t(),
            "stepped": base[:, ::2],
            "expanded": torch.randn(1, 4).expand(5, 4),
            "bfloat16": torch.randn(3).bfloat16(),
            "complex64": torch.randn(2, dtype=torch.complex64),
            "complex128": torch.randn(2, dtype=torch.complex128),
            "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
            "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0, 3),
            "parameter": torch.nn.Parameter(torch.randn(3)),
            "buffer": torch.nn.Buffer(torch.randn(2)),
            "sparse": torch.randn(3, 4).to_sparse(),
            "csr": torch.randn(3, 4).to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 3, torch.quint8),
            "per_channel": torch.quantize_per_channel(
                torch.randn(3, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2]), 0, torch.qint8
            ),
            "meta": torch.empty(3, device="meta"),
        }
    newer = {"float8_e8m0fnu": "float8_e8m0fnu", "float4": "float4_e2m1fn_x2"}  # torch 2.6 has neither
    for key, name in {"float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2", **newer}.items():
        if key not in newer or hasattr(torch, name):
            found[key] = torch.arange(4, dtype=torch.uint8).view(getattr(torch, name))
    for name in ("uint16", "uint32", "uint64"):
        found[name] = torch.tensor([1, 2, 60000], dtype=getattr(torch, name))
    found["complex32"] = torch.zeros(3, dtype=torch.complex32)
    return found


NOT_IN_LEGACY = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4", "uint16", "uint32", "uint64", "complex32")
"""What torch itself cannot put in a legacy file."""


def legacy_variety() -> dict[str, torch.Tensor]:
    return {key: value for key, value in variety().items() if key not in NOT_IN_LEGACY}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the very same: type, layout, strides, bits, values."""
    if (a.dtype, a.shape, a.layout, a.device) != (b.dtype, b.shape, b.layout, b.device):
        return False
    if a.device.type == "meta":
        return True
    if a.is_quantized:
        return torch.equal(a.int_repr(), b.int_repr()) and torch.equal(a.dequantize(), b.dequantize())
    if a.layout is not torch.strided:
        return torch.equal(a.to_dense(), b.to_dense())
    if a.numel() and a.stride() != b.stride():
        return False
    return (a.is_conj(), a.is_neg()) == (b.is_conj(), b.is_neg()) and bytes_of(a) == bytes_of(b)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The values, contiguous, as bytes."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezipped(data: bytes, change: Callable[[str, bytes], bytes | None], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip made anew with each record passed through ``change``; None leaves it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return out.getvalue()


def write(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name
