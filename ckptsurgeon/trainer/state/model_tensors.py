"""Reads, draws, restores and digests the tensors of a model by key, and writes them as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...destinations.torch_module.parts import own_part, part_of, whole
from ...errors import FormatError
from ...planning.target import TargetSpec
from ...storage.write.staging import staged_file
from ...util.text import listing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FullTensors",
    "bits",
    "digest",
    "digests",
    "initial_values",
    "initialise",
    "own_numbers",
    "restore_numbers",
    "restore_tensors",
    "safetensors_bytes",
    "state_tensors",
    "unsaved_buffers",
    "write_safetensors",
]


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, not copies, by key."""
    return {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


class FullTensors(Mapping[str, Tensor]):
    """Tensors by key, complete when read: every rank must read the shards of each tensor in the same order."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return whole(self._tensors[key]).detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are not in a state dict (``persistent=False``), such as counters or caches."""
    saved = model.state_dict(keep_vars=True).keys()
    return {key: buffer for key, buffer in model.named_buffers() if key not in saved}


def own_numbers(model: nn.Module) -> dict[str, int | float]:
    """Return the attributes of modules that are plain numbers, by module and name.

    Some modules count in them (``drop_mask_cnt`` of SpeechBrain's LiGRU): they decide how a run continues.
    """
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def restore_numbers(model: nn.Module, numbers: Mapping[str, int | float]) -> None:
    """Set attributes of modules that ``own_numbers`` returned."""
    for key, number in numbers.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, number)


@torch.no_grad()
def restore_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], unsaved: Mapping[str, Tensor], *, device: torch.device
) -> None:
    """Restore the tensors and buffers of a saved model; raises FormatError if it is another model."""
    own = state_tensors(model)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in tensors.items()}:
        other = sorted(own.keys() ^ tensors.keys())
        raise FormatError(f"the checkpoint is of another model: {listing(other, where='')}.", details=other)
    for key, value in own.items():
        own_part(value).copy_(part_of(tensors[key], value))
    for key, buffer in unsaved.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, buffer.to(device))


@torch.no_grad()
def initialise(
    model: nn.Module, target: TargetSpec, keys: Iterable[str], seed: int, *, parts: Mapping[str, Tensor] | None = None
) -> None:
    """Give tensors the values that ``ckpt transplant --seed`` draws; for ``parts``, only where their mask is true."""
    tensors, parts = state_tensors(model), parts or {}
    for key, value in initial_values(target, [*keys, *parts], seed):
        if key in parts:
            value = torch.where(parts[key], value, tensors[key])
        own_part(tensors[key]).copy_(part_of(value, tensors[key]))


def initial_values(target: TargetSpec, keys: Iterable[str], seed: int) -> Iterable[tuple[str, Tensor]]:
    """Yield each key with the values that its declared initialiser draws."""
    wanted = [key for key in keys if target.tensors[key].numel]
    for key, data in target.initial(wanted, seed):
        info = target.tensors[key]
        yield key, torch.frombuffer(data, dtype=getattr(torch, info.dtype)).reshape(info.shape)


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's values, row-major, on the CPU; for a shard every rank must call this."""
    return whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def digest(tensor: Tensor) -> str:
    """Return the digest of a tensor's values."""
    return hashlib.blake2b(bits(tensor).numpy().data, digest_size=16).hexdigest()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each tensor."""
    return {key: digest(tensor) for key, tensor in tensors.items()}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as a safetensors file with every key of a tied tensor, which ``strict`` loading wants."""
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
    """Write sharded tensors as a safetensors file, one after the other; every rank must call this.

    A rank whose ``path`` is None only sends its shards. Raises OutputError.
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
    """Return for each key the name that safetensors has for the tensor's dtype."""
    import torch
    from safetensors.torch import save

    data = save({key: torch.empty(0, dtype=tensor.dtype) for key, tensor in tensors.items()})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {key: header[key]["dtype"] for key in tensors}


def _in_order(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with its metadata in their order, which safetensors itself changes from run to run."""
    size = int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8 : 8 + size]), "__metadata__": dict(metadata)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :]))
