"""Reads, initialises, restores and digests the tensors of a model by key, and writes them as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...destinations.torch_module.tensors import own_part, part_of, whole
from ...errors import FormatError
from ...planning.target import TargetSpec
from ...util.text import listing

if TYPE_CHECKING:
    from ...storage.write.staged_file import StagedFile

__all__ = [
    "BufferSnapshot",
    "FullTensors",
    "SafetensorsLayout",
    "bits",
    "digest",
    "digests",
    "initial_values",
    "initialise",
    "own_numbers",
    "restore_numbers",
    "restore_tensors",
    "state_tensors",
    "unsaved_buffers",
]


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors in a model's state dict by key: the tensors themselves, not copies."""
    return {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


class FullTensors(Mapping[str, Tensor]):
    """A mapping from keys to complete tensors: a sharded tensor in ``tensors`` is gathered when it is read.

    All ranks take part in gathering, so every rank must read the same tensors in the same order.
    """

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
    """Return the numeric attributes (int or float) of all modules of a model, with ``MODULE.ATTRIBUTE`` as keys.

    Some of them are counters that influence how a run continues (``drop_mask_cnt`` of SpeechBrain's LiGRU).
    """
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def restore_numbers(model: nn.Module, numbers: Mapping[str, int | float]) -> None:
    """Set attributes of modules to ``numbers``, which ``own_numbers`` returned."""
    for key, number in numbers.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, number)


@torch.no_grad()
def restore_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], unsaved: Mapping[str, Tensor], *, device: torch.device
) -> None:
    """Restore a model's tensors from ``tensors``, and its non-persistent buffers from ``unsaved``.

    Raises FormatError if ``tensors`` has other keys or shapes than the model.
    """
    own = state_tensors(model)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in tensors.items()}:
        other = sorted(own.keys() ^ tensors.keys())
        differ = f"different keys: {listing(other, where='')}" if other else "shapes differ"
        raise FormatError(
            f"the checkpoint belongs to another model; {differ}.",
            details=other,
        )
    for key, value in own.items():
        own_part(value).copy_(part_of(tensors[key], value))
    for key, buffer in unsaved.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, buffer.to(device))


@torch.no_grad()
def initialise(
    model: nn.Module, target: TargetSpec, keys: Iterable[str], seed: int, *, parts: Mapping[str, Tensor] | None = None
) -> None:
    """Set the tensors ``keys`` of a model to the values that ``ckpt transplant --seed`` draws for them with ``seed``.

    ``parts`` maps the keys of further tensors to masks: of these tensors, only elements whose mask is true are set.
    """
    tensors, parts = state_tensors(model), parts or {}
    wanted = [key for key in (*keys, *parts) if tensors[key].numel()]
    for key, value in initial_values(target, wanted, seed):
        if key in parts:
            value = torch.where(parts[key], value, tensors[key])
        own_part(tensors[key]).copy_(part_of(value, tensors[key]))


def initial_values(target: TargetSpec, keys: Iterable[str], seed: int) -> Iterable[tuple[str, Tensor]]:
    """Yield each of ``keys`` with the values that the initialiser of its tensor, which is not empty, draws."""
    for key, data in target.initial(keys, seed):
        info = target.tensors[key]
        yield key, torch.frombuffer(data, dtype=getattr(torch, info.dtype)).reshape(info.shape)


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's values, row-major, on the CPU; for a sharded tensor, every rank must call this."""
    return whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def digest(tensor: Tensor) -> str:
    """Return the BLAKE2b digest of a tensor's values, as hexadecimal text."""
    return hashlib.blake2b(bits(tensor).numpy().data, digest_size=16).hexdigest()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the BLAKE2b digest of each tensor, by key."""
    return {key: digest(tensor) for key, tensor in tensors.items()}


class SafetensorsLayout:
    """Computes the layout of a safetensors file with ``tensors``, and writes the file.

    A tied tensor is written under each of its keys, because ``load_state_dict(strict=True)`` needs all keys. The
    tensors may be sharded: ``write`` gathers them one by one.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self._tensors = tensors
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        codes, end = _codes(tensors), 0
        for key in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
            begin, end = end, end + tensors[key].numel() * tensors[key].element_size()
            header[key] = {"dtype": codes[key], "shape": list(tensors[key].shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._header, self._front = header, len(text).to_bytes(8, "little") + text
        self.nbytes = len(self._front) + end

    def write(self, staged: StagedFile | None) -> None:
        """Write the file ``staged``; raises OutputError.

        Every rank must call this. A rank that passes None writes nothing, and only sends its shards.
        """
        if staged is not None:
            staged.write(0, self._front)
        for key, tensor in self._tensors.items():
            data = bits(tensor)
            if staged is not None and len(data):
                staged.write(len(self._front) + self._header[key]["data_offsets"][0], data.numpy().data)


def _codes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name of each tensor's dtype in safetensors, such as ``BF16``, by key."""
    import torch
    from safetensors.torch import save

    data = save({key: torch.empty(0, dtype=tensor.dtype) for key, tensor in tensors.items()})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {key: header[key]["dtype"] for key in tensors}


class BufferSnapshot:
    """A copy of the buffers of all modules in training mode, such as the statistics of batch norms.

    All of these buffers are copied, because ``Tensor._version`` does not tell which buffers have changed: torch's norm
    layers do not increase this number.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [
            (module, name, buffer)
            for module in model.modules() if module.training
            for name, buffer in module._buffers.items() if buffer is not None
        ]  # fmt: skip
        self._owners = [(module, name) for module, name, _ in found]
        self._live = [buffer for _, _, buffer in found]
        self._saved = [buffer.detach().clone() for buffer in self._live]

    @torch.no_grad()
    def restore_if(self, condition: Tensor) -> None:
        """Restore the buffers if ``condition`` (0-d) is true; it is not read from a GPU, because the CPU would wait."""
        on_cpu = condition.device.type == "cpu"
        if on_cpu and not bool(condition):
            return
        for (module, name), live, saved in zip(self._owners, self._live, self._saved, strict=True):
            now = module._buffers[name]
            if now is not None and now is not live and now.shape == live.shape:  # the forward pass replaced the tensor
                live.copy_(now)
            module._buffers[name] = live
            live.copy_(saved if on_cpu else torch.where(condition.to(live.device), saved, live))
