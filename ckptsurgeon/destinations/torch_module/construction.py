"""Constructs an ``nn.Module`` without storage (memory for values) if this can be recorded, else with storage."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...tensors.info import TensorInfo
from ...util.text import escape, human_bytes, listing
from .opened import Opened
from .recording.graph import Node, Recording, StorageView, Unrecordable
from .recording.record import recording, release
from .recording.replay import Streams, behind, evaluate
from .seeding import drawing, python_random
from .state import infos_of, state_of, ties_of

__all__ = ["Build", "BuiltModule", "construct_with_storage", "construct_without_storage", "real_tensors"]

Build = Callable[[], nn.Module]
"""A function that constructs a module."""


@dataclass
class BuiltModule:
    """A constructed module: dtype and shape of each tensor, its ties, and where its values come from.

    ``real`` has the tensors of a module that was constructed with storage. For a module without storage, ``record`` is
    the recording of its construction, ``refs`` has the view of each tensor in the recording, and ``nodes`` has the
    recorded operations that make the values of each tensor.
    """

    infos: dict[str, TensorInfo]
    ties: dict[str, str]
    skipped: tuple[str, ...] = ()
    real: dict[str, Tensor] = field(default_factory=dict)
    record: Recording | None = None
    refs: dict[str, StorageView] = field(default_factory=dict)
    nodes: dict[str, list[Node]] = field(default_factory=dict)
    streams: Streams = field(default_factory=dict)
    seed: int = 0
    uses_python_random: bool = False
    notes: tuple[str, ...] = ()
    opened: Opened = field(default_factory=Opened)


def construct_without_storage(build: Build, seed: int) -> BuiltModule:
    """Construct a module without storage (memory for values); raises Unrecordable if this is not possible."""
    with python_random(seed) as used, drawing(), torch.enable_grad():
        with recording(evaluate) as record:
            module = build()
            tensors, skipped = state_of(module)
        if any(tensor.is_meta and not record.knows(tensor) for tensor in tensors.values()):
            raise Unrecordable("keeps a tensor without values (on the meta device) that it did not make itself")
        refs = {key: record.ref(tensor) for key, tensor in tensors.items() if tensor.is_meta or record.knows(tensor)}
        built = BuiltModule(infos_of(tensors), ties_of(tensors), skipped, record=record, refs=refs, seed=seed)
        built.real = {key: tensor for key, tensor in tensors.items() if key not in refs}
        del module, tensors
        release(record, seed)
    built.nodes = {key: behind(record, [ref.storage]) for key, ref in refs.items()}
    built.streams = _streams(built.nodes)
    built.uses_python_random = used[0]
    return built


def _streams(nodes: dict[str, list[Node]]) -> Streams:
    """Return {number of a random operation in the recording: (its key, its index for this key)}.

    ``nodes`` has, by key, the operations on which a tensor depends. The key of an operation is the first key whose
    tensor depends on the operation. The index counts the operations with the same key, from 0. Key and index determine
    the seed of the operation.
    """
    streams: dict[int, tuple[str, int]] = {}
    places: dict[str, int] = {}
    for key, behind_key in nodes.items():
        for node in behind_key:
            if node.random and node.index not in streams:
                streams[node.index] = (key, places.get(key, 0))
                places[key] = places.get(key, 0) + 1
    return streams


def real_tensors(build: Build, seed: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Construct a module with storage; return its tensors, and the names of the other entries of its state dict."""
    with drawing(), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        return state_of(build())


def construct_with_storage(build: Build, seed: int, why: Exception) -> BuiltModule:
    """Construct a module with storage, and add a note on the time and memory that this took.

    ``why`` is the exception that made it impossible to construct the module without storage. Raises ConfigError if
    tensors of the module have no values.
    """
    began = time.perf_counter()
    with python_random(seed) as used:
        tensors, skipped = real_tensors(build, seed)
    cached = [key for key, tensor in tensors.items() if tensor.is_meta]
    if cached:
        raise ConfigError(
            f"tensors of the model have no values (meta device, or made by an earlier construction): {listing(cached)}."
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    reason = str(why) if isinstance(why, Unrecordable) else f"fails on the meta device: {type(why).__name__}: {why}"
    note = (
        f"built with its weights in memory, which took {time.perf_counter() - began:.1f} s ({human_bytes(size)} of "
        f"tensors, peak memory of the process {human_bytes(peak)}), because its constructor {escape(reason, 160)}"
    )
    return BuiltModule(
        infos_of(tensors), ties_of(tensors), skipped, tensors, seed=seed, uses_python_random=used[0], notes=(note,)
    )
