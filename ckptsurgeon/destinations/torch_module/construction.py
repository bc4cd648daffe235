"""Constructs an ``nn.Module`` without storage (memory for values) if this can be recorded, else with storage.

During the construction, the number of parameters is limited, and the random states and defaults of Python, numpy and
torch are set; they are restored afterwards.
"""

from __future__ import annotations

import itertools
import math
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ...errors import ConfigError, UnsafeError
from ...planning.target import Draw
from ...tensors.dtypes import contiguous_stride
from ...tensors.info import TensorInfo
from ...util.text import escape, human_bytes, listing
from .opened import Opened
from .recording.dispatch import aten
from .recording.graph import (
    Node,
    Recording,
    StorageView,
    Streams,
    Unrecordable,
    behind,
    covers,
    default_dtype,
    evaluate,
)
from .recording.record import recording, release
from .simple_draws import RANDOM
from .tensors import infos_of, state_of, ties_of
from .user_code import PROCESS_STATE

__all__ = [
    "MOST_PARAMETERS",
    "Build",
    "BuiltModule",
    "bounded",
    "construct_with_storage",
    "construct_without_storage",
    "drawing",
    "python_random",
    "real_tensors",
    "simple_draws",
]


Build = Callable[[], nn.Module]
"""A function that constructs a module."""
_FILLS: dict[Any, str] = {
    aten.normal_.default: "normal_",
    aten.uniform_.default: "uniform_",
    aten.fill_.Scalar: "fill_",
    aten.zero_.default: "zero_",
}
"""Operations that fill a tensor: their names as methods of a tensor."""


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


def simple_draws(built: BuiltModule) -> dict[str, Draw]:
    """Return {key: operation} for the tensors whose values are the result of a single known operation."""
    if built.record is None or built.uses_python_random:
        return {}
    found = {}
    for key, nodes in built.nodes.items():
        draw = _draw(nodes[0], built.refs[key], built.record) if len(nodes) == 1 else None
        if draw is not None and built.streams.get(nodes[0].index, (key, 0)) == (key, 0):
            found[key] = draw
    return found


def _draw(node: Node, ref: StorageView, record: Recording) -> Draw | None:
    how, (view, *numbers) = _FILLS.get(node.call), node.args or (None,)
    if how is None or view != ref or any(node.kwargs.values()) or len(numbers) > 2:
        return None
    if how in RANDOM and not ref.dtype.is_floating_point:
        return None
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        return None
    if ref.offset or ref.stride != contiguous_stride(ref.size) or not covers(ref, record):
        return None
    return Draw(how, tuple(numbers))


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
            f"tensors of the model have no values (they are on the meta device): {listing(cached)}.",
            hint="Make these tensors in the model's constructor: they may be cached from an earlier model.",
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


MOST_PARAMETERS = 200_000
"""The most parameters (tensors) of a network; each takes kilobytes with its module, even without memory for its values.

A model of 61 layers of 384 experts, each of them a module, has some 70,000.
"""


@contextmanager
def bounded(name: str) -> Iterator[None]:
    """Raise UnsafeError in the block as soon as modules have over MOST_PARAMETERS parameters, registered or copied.

    No field of the configuration needs to be large for this: the numbers of layers and of experts are multiplied.
    ``name`` is the name of the network.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    parameters: Any = nn.Parameter
    numbers, copied = itertools.count(1), parameters.__deepcopy__

    def count_parameter(*_: object) -> None:
        if next(numbers) > MOST_PARAMETERS:
            raise UnsafeError(
                f"{escape(name)} would have over {MOST_PARAMETERS:,} parameters: it is not built.",
                hint="Correct the numbers of layers and experts; if the file is from elsewhere, do not trust it.",
                rule="modules",
            )

    def copy_parameter(parameter: nn.Parameter, memo: dict[int, Any]) -> Any:
        count_parameter()  # the parameters of a copied module are not registered
        return copied(parameter, memo)

    with PROCESS_STATE:
        hook = register_module_parameter_registration_hook(count_parameter)
        parameters.__deepcopy__ = copy_parameter
        try:
            yield
        finally:
            parameters.__deepcopy__ = copied
            hook.remove()


@contextmanager
def drawing() -> Iterator[None]:
    """Make torch run on the CPU, with one thread and without gradients, during the block.

    Afterwards the number of threads, the random state and the default dtype are restored. Only one thread of the
    process can be in such a block, because all threads share the random generator; other threads wait.
    """
    with PROCESS_STATE:
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        torch.set_num_threads(1)
        try:
            with torch.no_grad(), torch.device("cpu"), default_dtype(torch.get_default_dtype()):
                yield
        finally:
            torch.set_rng_state(state)
            torch.set_num_threads(threads)


@contextmanager
def python_random(seed: int) -> Iterator[list[bool]]:
    """Seed the random generators of Python and numpy for the block, and restore them afterwards.

    Yields an empty list; after the block the list has one item, which is true if the generators were used.
    """
    with PROCESS_STATE:
        python, array = random.getstate(), numpy.random.get_state()
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        seeded = random.getstate(), _numpy_state()
        used: list[bool] = []
        try:
            yield used
        finally:
            used.append((random.getstate(), _numpy_state()) != seeded)
            random.setstate(python)
            numpy.random.set_state(array)


def _numpy_state() -> tuple[Any, ...]:
    """Return the state of numpy's random generator as values that ``==`` can compare."""
    name, keys, *others = numpy.random.get_state(legacy=True)
    return name, numpy.asarray(keys).tobytes(), *others
