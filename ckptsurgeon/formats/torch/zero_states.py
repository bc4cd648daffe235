"""What the states of one rank of DeepSpeed ZeRO hold: buffers, shapes, flat vectors, frozen parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ...storage.read.base import File
from ...tensors.composition import cast
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from ..base.header import Header
from .zero import Flat, of_stage_3

__all__ = ["States", "buffers", "entry", "flats_of", "frozen", "groups_of"]


@dataclass(frozen=True)
class States:
    """One file of states: what it is called, its header, and what it holds."""

    file: File
    header: Header

    @property
    def tree(self) -> Mapping[Any, Any]:
        """What the file holds."""
        tree: Mapping[Any, Any] = self.header.tree
        return tree


def entry(one: States, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return an entry of a file of states; raises FormatError where it is none of its kind."""
    value = one.tree.get(name)
    if not isinstance(value, kind):
        raise FormatError(f"{escape(one.file.uri)} has no {name}.", rule="zero states")
    return value


def buffers(model: States) -> dict[str, TensorInfo]:
    """Return the buffers, floating ones in float32."""
    module, names = entry(model, "module", dict), entry(model, "buffer_names", (list, tuple))
    wanted = {name for name in names if isinstance(name, str)}
    found = {}
    for key, info in module.items():
        if isinstance(key, str) and key in wanted and isinstance(info, TensorInfo):
            floats = DTYPES[info.dtype].kind == "float" and not info.opaque
            found[key] = cast(info, "float32") if floats else info
    return found


def groups_of(model: States) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of the trained parameters, by name, for each group of them."""
    return [_shapes(model, group) for group in entry(model, "param_shapes", (list, tuple))]


def _shapes(model: States, group: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(group, dict) or not all(isinstance(key, str) and _is_shape(s) for key, s in group.items()):
        raise FormatError(f"{escape(model.file.uri)} has shapes of parameters that are none.", rule="zero shapes")
    return {key: tuple(shape) for key, shape in group.items()}


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def flats_of(optimizers: Sequence[States], states: Sequence[Mapping[Any, Any]], name: str) -> list[Flat]:
    """Return the flat vectors of each rank, one for each group."""
    flats: list[Flat] = []
    for one, state in zip(optimizers, states, strict=True):
        groups = state.get(name)
        if not isinstance(groups, (list, tuple)) or not all(_is_flat(group) for group in groups):
            raise FormatError(f"{escape(one.file.uri)} has no {name}.", rule="zero states")
        flats.append(list(groups))
    if len({len(flat) for flat in flats}) > 1:
        raise FormatError("the ranks hold different numbers of groups.", rule="zero states")
    return flats


def _is_flat(info: Any) -> bool:
    return isinstance(info, TensorInfo) and len(info.shape) == 1 and not info.opaque and info.stride is None


def frozen(models: Sequence[States], stage: int) -> dict[str, TensorInfo]:
    """Return the parameters that were not trained, which lie with the model."""
    shapes = models[0].tree.get("frozen_param_shapes")
    if not shapes:
        return {}
    sized = _shapes(models[0], shapes)
    pieces = [entry(one, "frozen_param_fragments", dict) for one in (models if stage == 3 else models[:1])]
    absent = [key for key in sized if not all(isinstance(one.get(key), TensorInfo) for one in pieces)]
    if absent:
        raise FormatError(
            f"{escape(models[0].file.uri)} lacks frozen parameters: {listing(absent)}.", rule="zero frozen"
        )
    if stage != 3:
        return {key: pieces[0][key] for key in sized}
    made: dict[str, TensorInfo] = {}
    for key, shape in sized.items():
        made.update(of_stage_3([{key: shape}], [[one[key]] for one in pieces]))
    return made
