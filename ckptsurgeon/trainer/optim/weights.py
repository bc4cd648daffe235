"""A model's tensors as the bytes of a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ...storage.write.staging import staged_file
from .digests import bits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["safetensors_bytes", "write_safetensors"]


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as a safetensors file; every key of a tied tensor is written, as ``strict`` loading wants."""
    from safetensors.torch import save

    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if place in seen else value
        seen.add(place)
    return _in_order(bytes(save(apart, dict(metadata))), metadata) if metadata else bytes(save(apart))


def write_safetensors(
    path: str | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors that processes hold in parts as a safetensors file, one after the other; all of them have to ask.

    None writes nothing, and gives its parts to the one that does. Raises OutputError.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    codes, end = _codes(tensors), 0
    for key in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        begin, end = end, end + tensors[key].numel() * tensors[key].element_size()
        header[key] = {"dtype": codes[key], "shape": list(tensors[key].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    front = len(text).to_bytes(8, "little") + text
    with staged_file(path, len(front) + end, force=True) if path is not None else nullcontext() as staged:
        if staged is not None:
            staged.write(0, front)
        for key, tensor in tensors.items():
            data = bits(tensor)
            if staged is not None and len(data):
                staged.write(len(front) + header[key]["data_offsets"][0], data.numpy().data)


def _codes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what safetensors calls the dtype of each tensor."""
    import torch
    from safetensors.torch import save

    data = save({key: torch.empty(0, dtype=tensor.dtype) for key, tensor in tensors.items()})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {key: header[key]["dtype"] for key in tensors}


def _in_order(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with its metadata in their order: safetensors has them in another one each time."""
    size = int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8 : 8 + size]), "__metadata__": dict(metadata)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :]))
