"""Reads the model and optimizer states that DeepSpeed ZeRO saves; cuts the parameters out of flat vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...tensors.composition import cast, cut, join, reshape
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from ..base import limits
from ..base.header import Header

__all__ = [
    "Flat",
    "StateFile",
    "buffers",
    "entry",
    "flats_of",
    "frozen",
    "groups_of",
    "of_stage_2",
    "of_stage_3",
    "tied",
    "with_ties",
]

Flat = list[TensorInfo]
"""The flat vectors of one rank: one for each group of parameters."""
Shapes = Mapping[str, tuple[int, ...]]


def of_stage_2(groups: Sequence[Shapes], ranks: Sequence[Flat], paddings: Any = None) -> dict[str, TensorInfo]:
    """Return the parameters of ZeRO stages 1 and 2 by name, cut out of the flat vectors of the groups.

    ``groups`` has, for each group, the shapes of its parameters by name. ``ranks`` has, for each rank, its piece of
    each group's flat vector; the pieces of all ranks are joined. ``paddings`` has, for each group, the number of unused
    elements after each parameter, or is None if there are none. Raises FormatError if the vectors do not fit the
    parameters.
    """
    _check_number(groups, ranks)
    if len(groups) != len(ranks[0]):
        raise FormatError(
            f"there are {len(groups)} groups of parameters, but {len(ranks[0])} flat vectors.", rule="zero"
        )
    made: dict[str, TensorInfo] = {}
    for number, shapes in enumerate(groups):
        vector = join([_same(rank[number], ranks[0][number]) for rank in ranks], 0)
        free = _paddings(paddings, number, len(shapes))
        at = 0
        for (name, shape), padding in zip(shapes.items(), free, strict=True):
            made[name] = _taken(vector, at, shape, name)
            at += prod(shape) + padding
        _check_used(at, vector.numel, align=2 * len(ranks))
    return made


def of_stage_3(groups: Sequence[Shapes], ranks: Sequence[Flat]) -> dict[str, TensorInfo]:
    """Return the parameters of ZeRO stage 3 by name, joined from the pieces of all ranks.

    ``groups`` has, for each group, the shapes of its parameters by name. ``ranks`` has the flat vectors of each rank.
    Each rank has a piece of each parameter; all pieces of a parameter have the same size, so the last piece may be
    padded. Raises FormatError if the vectors do not fit the parameters.
    """
    _check_number(groups, ranks)
    vectors = [join([_same(one, rank[0]) for one in rank], 0) for rank in ranks if rank]
    if len(vectors) != len(ranks) or len({vector.numel for vector in vectors}) > 1:
        raise FormatError("the flat parameter vectors of the ranks differ in length, or are missing.", rule="zero")
    made: dict[str, TensorInfo] = {}
    at = 0
    for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
        share = -(-prod(shape) // len(ranks))
        if at + share > vectors[0].numel:
            raise FormatError(f"the flat vectors of the ranks have too few values for {name!r:.80}.", rule="zero")
        if share:
            pieces = [cut(_same(vector, vectors[0]), 0, at, share) for vector in vectors]
            made[name] = reshape(cut(join(pieces, 0), 0, 0, prod(shape)), shape)
        else:
            made[name] = reshape(cut(vectors[0], 0, 0, 0), shape)
        at += share
    _check_used(at, vectors[0].numel, align=1)
    return made


def _check_number(groups: Sequence[Shapes], ranks: Sequence[Flat]) -> None:
    """Raise UnsafeError if the parameters may have too many pieces: each may have a piece on every rank."""
    pieces = sum(map(len, groups)) * len(ranks)
    if pieces > limits.ZERO_PIECES:
        raise UnsafeError(
            f"the ranks could have up to {pieces} pieces of parameters, more than the limit of {limits.ZERO_PIECES}.",
            hint="Convert the checkpoint with zero_to_fp32.py, which DeepSpeed saves in its folder.",
            rule="pieces",
        )


def _taken(vector: TensorInfo, at: int, shape: tuple[int, ...], name: str) -> TensorInfo:
    if at + prod(shape) > vector.numel:
        raise FormatError(f"the flat vectors of the ranks have too few values for {name!r:.80}.", rule="zero")
    return reshape(cut(vector, 0, at, prod(shape)), shape)


def _same(info: TensorInfo, first: TensorInfo) -> TensorInfo:
    if info.dtype != first.dtype:
        raise FormatError(
            f"the flat vectors of the ranks have different dtypes: {first.dtype} and {info.dtype}.", rule="zero"
        )
    return info


def _paddings(paddings: Any, group: int, number: int) -> Sequence[int]:
    """Return the number of unused elements after each of the ``number`` parameters of a group.

    Raises FormatError if the entry is not valid.
    """
    if paddings is None:
        return [0] * number
    of_group = paddings[group] if isinstance(paddings, (list, tuple)) and group < len(paddings) else None
    if not isinstance(of_group, (list, tuple)):
        raise FormatError(f"param_alignment_paddings of the ZeRO state has no list for group {group}.", rule="zero")
    if len(of_group) != number:
        raise FormatError(
            f"param_alignment_paddings of the ZeRO state has {len(of_group)} numbers for group {group}, "
            f"which has {number} parameters.",
            rule="zero",
        )
    if not all(type(one) is int and 0 <= one < 2**40 for one in of_group):
        raise FormatError(
            "param_alignment_paddings of the ZeRO state has a value that is not a number of elements.", rule="zero"
        )
    return of_group


def _check_used(used: int, there: int, align: int) -> None:
    """Raise FormatError unless the parameters fill the vectors, except for padding to a multiple of ``align`` values.

    ``used`` is the number of values that the parameters take in a flat vector, ``there`` the number of its values.
    """
    if -(-used // align) != -(-there // align):
        raise FormatError(
            f"the parameters need flat vectors of {used} values, but those of the ranks have {there}.", rule="zero"
        )


# The content of state files: buffers, shapes, flat vectors, frozen parameters.


@dataclass(frozen=True)
class StateFile:
    """An open file with the model states or optimizer states of one rank, and its header."""

    file: File
    header: Header

    @property
    def tree(self) -> Mapping[Any, Any]:
        """The content of the file."""
        tree: Mapping[Any, Any] = self.header.tree
        return tree


def entry(one: StateFile, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return the entry ``name`` of a state file; raises FormatError if it is missing or not of the type ``kind``."""
    value = one.tree.get(name)
    if not isinstance(value, kind):
        raise FormatError(f"{escape(one.file.uri)} has no valid entry {name}.", rule="zero states")
    return value


def buffers(model: StateFile) -> dict[str, TensorInfo]:
    """Return the buffers of the model by name; floating-point buffers are cast to float32."""
    module, names = entry(model, "module", dict), entry(model, "buffer_names", (list, tuple))
    wanted = {name for name in names if isinstance(name, str)}
    found = {}
    for key, info in module.items():
        if isinstance(key, str) and key in wanted and isinstance(info, TensorInfo):
            floats = DTYPES[info.dtype].kind == "float" and not info.opaque
            found[key] = cast(info, "float32") if floats else info
    return found


def tied(trees: Sequence[Any]) -> dict[str, str]:
    """Return {further name of a tied parameter: its first name}, from the first of ``trees`` that lists any."""
    found = (tree.get("shared_params") for tree in trees if isinstance(tree, Mapping))
    shared = next((one for one in found if one and isinstance(one, Mapping)), {})
    return {key: other for key, other in shared.items() if isinstance(key, str) and isinstance(other, str)}


def with_ties(weights: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> dict[str, TensorInfo]:
    """Return the weights, with each tied parameter also under its further names.

    ``ds_to_universal.py`` may have written a further name to a folder of its own, with rounded values: the values of
    the first name replace them.
    """
    return {**weights, **{key: weights[other] for key, other in ties.items() if other in weights}}


def groups_of(model: StateFile) -> list[dict[str, tuple[int, ...]]]:
    """Return, for each parameter group, the shapes of its trained parameters by name."""
    return [_shapes(model, group) for group in entry(model, "param_shapes", (list, tuple))]


def _shapes(model: StateFile, group: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(group, dict) or not all(isinstance(key, str) and _is_shape(s) for key, s in group.items()):
        raise FormatError(f"{escape(model.file.uri)} has an invalid entry param_shapes.", rule="zero shapes")
    return {key: tuple(shape) for key, shape in group.items()}


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def flats_of(optimizers: Sequence[StateFile], states: Sequence[Mapping[Any, Any]], name: str) -> list[Flat]:
    """Return, for each rank, the flat vectors of all groups: the entry ``name`` of the rank's optimizer state.

    ``states`` has the optimizer state of each rank. ``optimizers`` has the files of these states, for messages. Raises
    FormatError if the entry is not valid, or if the ranks have different numbers of groups.
    """
    flats: list[Flat] = []
    for one, state in zip(optimizers, states, strict=True):
        groups = state.get(name)
        if not isinstance(groups, (list, tuple)) or not all(_is_flat(group) for group in groups):
            raise FormatError(f"{escape(one.file.uri)} has no valid entry {name}.", rule="zero states")
        flats.append(list(groups))
    if len({len(flat) for flat in flats}) > 1:
        raise FormatError(
            "the files of the ranks have different numbers of parameter groups: they are not from the same checkpoint.",
            rule="zero states",
        )
    return flats


def _is_flat(info: Any) -> bool:
    return isinstance(info, TensorInfo) and len(info.shape) == 1 and not info.opaque and info.stride is None


def frozen_parts(model: StateFile) -> dict[str, TensorInfo]:
    """Return one rank's parts of the parameters that were not trained, by name; stage 3 stores them as parts."""
    found = model.tree.get("frozen_param_fragments")
    parts = found if isinstance(found, Mapping) else {}
    return {key: info for key, info in parts.items() if isinstance(key, str) and isinstance(info, TensorInfo)}


def frozen(models: Sequence[StateFile], stage: int) -> dict[str, TensorInfo]:
    """Return the parameters that were not trained, by name; they are in the model states, not in flat vectors.

    Raises FormatError if a parameter is missing, or does not have the shape that the model states give.
    """
    shapes = models[0].tree.get("frozen_param_shapes")
    if not shapes:
        return {}
    sized = _shapes(models[0], shapes)
    pieces = []
    for model in models if stage == 3 else models[:1]:
        piece = entry(model, "frozen_param_fragments", dict)
        absent = [key for key in sized if not isinstance(piece.get(key), TensorInfo)]
        if absent:
            raise FormatError(
                f"{escape(model.file.uri)} lacks the frozen parameters {listing(absent)}.", rule="zero frozen"
            )
        pieces.append(piece)
    if stage != 3:
        for key, shape in sized.items():
            if pieces[0][key].shape != shape:
                raise FormatError(
                    f"{escape(models[0].file.uri)}: the frozen parameter {escape(key)} has the shape "
                    f"{pieces[0][key].shape}, but frozen_param_shapes gives {shape}.",
                    rule="zero shapes",
                )
        return {key: pieces[0][key] for key in sized}
    made: dict[str, TensorInfo] = {}
    for key, shape in sized.items():
        made.update(of_stage_3([{key: shape}], [[one[key]] for one in pieces]))
    return made
