"""Folders of DeepSpeed ZeRO: the float32 weights, which the optimizers of all ranks hold in flat pieces.

What ``zero_to_fp32.py`` gives, as descriptions and without running anything: stages 1 and 2 cut one flat vector for
each group of parameters into a piece for each rank, stage 3 each parameter. Written after
``deepspeed/utils/zero_to_fp32.py`` and ``deepspeed/checkpoint/constants.py`` (0.19).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..composition import cast
from ..errors import FormatError, SourceError
from ..sources import File, Folder, Source, open_source
from ..tensors import DTYPES, TensorInfo
from ..text import count, escape, listing, natural_key
from ._header import Header, naming
from ._open import has_weights, read_header
from ._zero import Flat, of_stage_2, of_stage_3

__all__ = ["FORMAT"]

_LATEST = "latest"
_OPTIMIZER, _MODEL = "_optim_states.pt", "_model_states.pt"
_TAG_BYTES = 256
_BESIDE = ("global_steps", "global_samples", "ds_version", "iteration", "epoch")
"""Entries of the model states that are shown beside the weights."""


class _DeepSpeedZero:
    name = "deepspeed zero"

    def sniff(self, source: Source, head: bytes) -> bool:
        """A folder of optimizer states, or one whose ``latest`` names such a folder."""
        if not isinstance(source, Folder):
            return False
        names = source.names()
        if _has_states(names):
            return True
        return _LATEST in names and not has_weights(names) and _has_states(_tagged(source)[1])

    def read(self, source: Source, name: str = "") -> Header:
        """Read the headers of all ranks; raises FormatError where one is missing or they do not fit together."""
        assert isinstance(source, Folder)
        tag, names = ("", source.names()) if _has_states(source.names()) else _tagged(source)
        every: list[_States] = []
        try:
            for suffix in (_MODEL, _OPTIMIZER):
                every += _states(source, tag, names, suffix)
            models = [one for one in every if one.file.name.endswith(_MODEL)]
            optimizers = [one for one in every if one.file.name.endswith(_OPTIMIZER)]
            with naming(models[0].file):
                weights, stage = _weights(models, optimizers)
        except BaseException:
            for one in every:
                one.file.close()
            raise
        beside = {key: models[0].tree[key] for key in _BESIDE if key in models[0].tree}
        where = f" of {tag}" if tag else ""
        return Header(
            format=self.name,
            tree={"module": weights, **beside},
            files=tuple(file for one in every for file in one.header.files),
            handles={key: file for one in every for key, file in one.header.handles.items()},
            notes=(
                f"ZeRO stage {stage}{where}: float32 weights from the optimizers of {count(len(optimizers), 'rank')}",
            ),
        )


def _has_states(names: Sequence[str]) -> bool:
    return any(name.endswith(_OPTIMIZER) for name in names) and any(name.endswith(_MODEL) for name in names)


def _tagged(folder: Folder) -> tuple[str, list[str]]:
    """Return the folder that ``latest`` names, and what is in it; nothing where it names none."""
    try:
        file = folder.file(_LATEST)
        raw = file.read(0, min(file.size, _TAG_BYTES))
        file.close()
    except SourceError:
        return "", []
    tag = raw.decode("utf-8", "replace").strip()
    if not re.fullmatch(r"[\w.+=-]{1,200}", tag) or tag in (".", ".."):
        return "", []
    try:
        inside = open_source(f"{folder.uri.rstrip('/')}/{tag}")
    except SourceError:
        return "", []
    return (tag, inside.names()) if isinstance(inside, Folder) else ("", [])


@dataclass(frozen=True)
class _States:
    """One file of states: what it is called, its header, and what it holds."""

    file: File
    header: Header

    @property
    def tree(self) -> Mapping[Any, Any]:
        tree: Mapping[Any, Any] = self.header.tree
        return tree


def _states(folder: Folder, tag: str, names: Sequence[str], suffix: str) -> list[_States]:
    """Return the states of all ranks, in their order."""
    found = []
    for name in sorted((name for name in names if name.endswith(suffix)), key=natural_key):
        if "mp_rank_" in name and "mp_rank_00_" not in name:
            raise FormatError(
                f"{escape(folder.uri)} is of a model that is spread over ranks ({escape(name)}).",
                hint="Merge its ranks with DeepSpeed first: tensor and pipeline parallelism is not read.",
                rule="model parallel",
            )
        inner = f"{tag}/{name}" if tag else name
        file = folder.file(inner)
        header = read_header(file, inner)
        if not isinstance(header.tree, Mapping):
            raise FormatError(f"{escape(file.uri)} holds no states.", rule="zero states")
        found.append(_States(file, header))
    return found


def _weights(models: Sequence[_States], optimizers: Sequence[_States]) -> tuple[dict[str, TensorInfo], int]:
    """Return the weights by name, and the stage."""
    states = [_entry(one, "optimizer_state_dict", dict) for one in optimizers]
    stage, ranks = states[0].get("zero_stage"), states[0].get("partition_count")
    ranks = max(ranks) if isinstance(ranks, list) and ranks and all(type(n) is int for n in ranks) else ranks
    if type(stage) is not int or stage not in (0, 1, 2, 3) or type(ranks) is not int:
        raise FormatError(f"{escape(optimizers[0].file.uri)} is no state of a ZeRO optimizer.", rule="zero states")
    if ranks != len(optimizers):
        raise FormatError(
            f"there are optimizer states of {count(len(optimizers), 'rank')}, of {ranks} that there were.",
            hint="A rank did not save, or the folder is not all there.",
            rule="zero ranks",
        )
    model = models[0]
    weights = _buffers(model)
    weights.update(_frozen(models, stage))
    groups = _groups(model)
    if stage == 3:
        weights.update(of_stage_3(groups, _flats(optimizers, states, "fp32_flat_groups")))
    else:
        flats = _flats(optimizers, states, "single_partition_of_fp32_groups")
        weights.update(of_stage_2(groups, flats, states[0].get("param_alignment_paddings")))
    shared = model.tree.get("shared_params")
    for key, other in shared.items() if isinstance(shared, dict) else ():
        if isinstance(key, str) and isinstance(other, str) and other in weights:
            weights[key] = weights[other]
    return weights, stage


def _entry(one: _States, name: str, kind: type | tuple[type, ...]) -> Any:
    value = one.tree.get(name)
    if not isinstance(value, kind):
        raise FormatError(f"{escape(one.file.uri)} has no {name}.", rule="zero states")
    return value


def _buffers(model: _States) -> dict[str, TensorInfo]:
    """Return the buffers, floating ones in float32."""
    module, names = _entry(model, "module", dict), _entry(model, "buffer_names", (list, tuple))
    wanted = {name for name in names if isinstance(name, str)}
    found = {}
    for key, info in module.items():
        if isinstance(key, str) and key in wanted and isinstance(info, TensorInfo):
            floats = DTYPES[info.dtype].kind == "float" and not info.opaque
            found[key] = cast(info, "float32") if floats else info
    return found


def _groups(model: _States) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of the trained parameters, by name, for each group of them."""
    return [_shapes(model, group) for group in _entry(model, "param_shapes", (list, tuple))]


def _shapes(model: _States, group: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(group, dict) or not all(isinstance(key, str) and _is_shape(s) for key, s in group.items()):
        raise FormatError(f"{escape(model.file.uri)} has shapes of parameters that are none.", rule="zero shapes")
    return {key: tuple(shape) for key, shape in group.items()}


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def _flats(optimizers: Sequence[_States], states: Sequence[Mapping[Any, Any]], name: str) -> list[Flat]:
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


def _frozen(models: Sequence[_States], stage: int) -> dict[str, TensorInfo]:
    """Return the parameters that were not trained, which lie with the model."""
    shapes = models[0].tree.get("frozen_param_shapes")
    if not shapes:
        return {}
    sized = _shapes(models[0], shapes)
    pieces = [_entry(one, "frozen_param_fragments", dict) for one in (models if stage == 3 else models[:1])]
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


FORMAT = _DeepSpeedZero()
