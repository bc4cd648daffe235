"""Reads folders of DeepSpeed ZeRO: the float32 weights, from the flat vectors in the optimizer states of all ranks.

The header describes the tensors that ``zero_to_fp32.py`` would write; this script is not run. In stages 1 and 2, each
group of parameters is one flat vector, which is cut into one piece per rank. In stage 3, each parameter is cut into
pieces. Follows ``deepspeed/utils/zero_to_fp32.py`` and ``deepspeed/checkpoint/constants.py`` (0.19).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FormatError, SourceError
from ..storage.read.base import Folder, Source
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing, natural_key
from ._open import open_header
from .base.format_table import has_weights
from .base.header import Header, naming
from .pickle.values import GlobalName, OpaqueResult
from .torch.zero import (
    StateFile,
    buffers,
    entry,
    flats_of,
    frozen,
    frozen_parts,
    groups_of,
    of_stage_2,
    of_stage_3,
    tied,
    with_ties,
)

__all__ = ["FORMAT"]

_LATEST = "latest"
_OPTIMIZER, _MODEL = "_optim_states.pt", "_model_states.pt"
_RANK = re.compile(r"mp_rank_(\d{2,6})_")
_TAG_BYTES = 256
_STAGE_ENUM = "ZeroStageEnum"
_BESIDE = ("global_steps", "global_samples", "ds_version", "iteration", "epoch")
"""Entries of the model states that are shown next to the weights."""
_USED = frozenset({
    "module", "buffer_names", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params",
    "sparse_tensor_module_names", "skipped_steps", "dp_world_size", "mp_world_size", "ds_config",
    "checkpoint_parallel_dimensions", "universal_checkpoint_info",
})  # fmt: skip
"""Entries of the model states that describe the weights or the run. All others are named in a note."""


class _DeepSpeedZero:
    name = "deepspeed zero"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has optimizer and model states, or has no weights, but a subfolder with such states.

        The file ``latest`` must name this subfolder.
        """
        if not isinstance(source, Folder):
            return False
        names = source.names()
        if _has_states(names):
            return True
        return _LATEST in names and not has_weights(names) and _has_states(_tagged(source)[1])

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the files of all ranks.

        Raises FormatError if a file is missing or the files do not fit together.
        """
        assert isinstance(source, Folder)
        tag, names = ("", source.names()) if _has_states(source.names()) else _tagged(source)
        from .ranks.zero_ranks import check_names

        check_names(source.uri, names)
        every: list[StateFile] = []
        try:
            for suffix in (_MODEL, _OPTIMIZER):
                _open_states(source, tag, names, suffix, every)
            models = [one for one in every if one.file.name.endswith(_MODEL)]
            optimizers = [one for one in every if one.file.name.endswith(_OPTIMIZER)]
            with naming(models[0].file):
                weights, stage, notes = _of_all_ranks(models, optimizers)
        except BaseException:
            for one in every:
                one.file.close()
            raise
        beside = {key: models[0].tree[key] for key in _BESIDE if key in models[0].tree}
        where = f" of {tag}" if tag else ""
        left = [str(key) for key, value in models[0].tree.items() if key not in {*_BESIDE, *_USED} and _is_some(value)]
        left_out = f"; left out: {listing(left, 12, where='')}" if left else ""
        return Header(
            format=self.name,
            tree={"module": weights, **beside},
            files=tuple(file for one in every for file in one.header.files),
            handles={key: file for one in every for key, file in one.header.handles.items()},
            notes=(
                f"ZeRO stage {stage}{where}: float32 weights from the optimizers of {count(len(optimizers), 'rank')}"
                f"{left_out}",
                *notes,
            ),
        )


def _is_some(value: Any) -> bool:
    return value is not None and not (isinstance(value, (dict, list)) and not value)


def _has_states(names: Sequence[str]) -> bool:
    return any(name.endswith(_OPTIMIZER) for name in names) and any(name.endswith(_MODEL) for name in names)


def _tagged(folder: Folder) -> tuple[str, list[str]]:
    """Return the subfolder that the file ``latest`` names, and the names of its files; ('', []) if there is none."""
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
        return tag, folder.inside(tag).names()
    except SourceError:
        return "", []


def _open_states(folder: Folder, tag: str, names: Sequence[str], suffix: str, opened: list[StateFile]) -> None:
    """Append to ``opened`` the state files whose names end in ``suffix``, one for each rank, in the order of the ranks.

    ``tag`` is the subfolder of the files, or ''; ``names`` are the names of its files. Raises FormatError if a file
    does not contain a dict.
    """
    for name in sorted((name for name in names if name.endswith(suffix)), key=natural_key):
        inner = f"{tag}/{name}" if tag else name
        file = folder.file(inner)
        opened.append(StateFile(file, header := open_header(file, inner)))
        if not isinstance(header.tree, Mapping):
            raise FormatError(
                f"{escape(file.uri)} is not a dict of training states as DeepSpeed saves it.", rule="zero states"
            )


_Found = tuple[dict[str, TensorInfo], int, list[str]]
"""The weights by name, the stage of ZeRO, and notes."""


def _of_all_ranks(models: Sequence[StateFile], optimizers: Sequence[StateFile]) -> _Found:
    """Return the weights of the whole model, the stage of ZeRO and notes; parts of tensor-parallel ranks are joined.

    Raises FormatError if files are missing or do not fit together.
    """
    ranks = sorted({_model_rank(one) for one in models})
    ties = tied([one.tree for one in models])
    stated = models[0].tree.get("mp_world_size")
    if type(stated) is int and stated != len(ranks):
        raise FormatError(
            f"the model was split over {count(stated, 'tensor-parallel rank')}, but there are model states of "
            f"{len(ranks)}.",
            hint="Fetch the whole folder again."
            if stated > len(ranks)
            else "Move the files of another run out of the folder.",
            rule="zero ranks",
        )
    if len(ranks) == 1:
        weights, stage, found = _weights(models, optimizers, ties)
        return with_ties(weights, ties), stage, found
    if ranks != list(range(len(ranks))) or ranks != sorted({_model_rank(one) for one in optimizers}):
        raise FormatError("the model or optimizer states of some tensor-parallel ranks are missing.", rule="zero ranks")
    made, first = [], []
    for rank in ranks:
        own = [[one for one in every if _model_rank(one) == rank] for every in (models, optimizers)]
        made.append(_weights(own[0], own[1], ties))
        first.append(own[0][0])
    if len({stage for _, stage, _ in made}) > 1:
        raise FormatError("the ranks were saved with different stages of ZeRO.", rule="zero states")
    from .ranks.zero_tensor_parallel import join_tensor_parallel

    handles = {name: file for one in (*models, *optimizers) for name, file in one.header.handles.items()}
    notes = dict.fromkeys(note for _, _, found in made for note in found)
    joined, padded = join_tensor_parallel([weights for weights, _, _ in made], first, handles)
    return with_ties(joined, ties), made[0][1], [*notes, *padded]


def _with_stage(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return an optimizer state in which the stage of ZeRO is an integer, not a member of DeepSpeed's enum."""
    stage = state.get("zero_stage")
    if not isinstance(stage, OpaqueResult) or not isinstance(stage.args, tuple) or len(stage.args) != 1:
        return state
    is_enum = isinstance(stage.name, GlobalName) and stage.name.name == _STAGE_ENUM
    return {**state, "zero_stage": stage.args[0]} if is_enum else state


def _model_rank(one: StateFile) -> int:
    """Return the rank of tensor parallelism in the name of a file; 0 if it has none."""
    found = _RANK.search(one.file.name)
    return int(found[1]) if found is not None else 0


def _weights(models: Sequence[StateFile], optimizers: Sequence[StateFile], ties: Mapping[str, str]) -> _Found:
    """Return the float32 weights from the model and optimizer states of all ranks, with the stage of ZeRO and notes.

    ``ties`` is {further name of a tied parameter: its name}; the further names are left out. Raises FormatError if the
    states do not fit together.
    """
    from .ranks import zero_ranks
    from .ranks.zero_steps import optimizer_step_notes
    from .ranks.zero_values import unlike_notes

    states = [_with_stage(entry(one, "optimizer_state_dict", dict)) for one in optimizers]
    stage, ranks = states[0].get("zero_stage"), states[0].get("partition_count")
    ranks = max(ranks) if isinstance(ranks, list) and ranks and all(type(n) is int for n in ranks) else ranks
    if type(stage) is not int or stage not in (0, 1, 2, 3) or type(ranks) is not int:
        raise FormatError(f"{escape(optimizers[0].file.uri)} is not the state of a ZeRO optimizer.", rule="zero states")
    if ranks != len(optimizers):
        raise FormatError(
            f"there are optimizer states of {count(len(optimizers), 'rank')}, but the model was trained on {ranks}.",
            hint="Fetch the whole folder again: a rank did not save its states, or some files are missing."
            if len(optimizers) < ranks
            else "Move the files of another run out of the folder.",
            rule="zero ranks",
        )
    zero_ranks.check_ranks(optimizers, ranks)
    zero_ranks.check_settings(optimizers, states)
    model = models[0]
    handles = {name: file for one in (*models, *optimizers) for name, file in one.header.handles.items()}
    notes = [*zero_ranks.step_notes(models), *optimizer_step_notes(optimizers, states, handles)]
    if stage == 3:
        notes += zero_ranks.rank_notes(models, ranks, frozen=bool(model.tree.get("frozen_param_shapes")))
    weights = buffers(model)
    weights.update(frozen(models, stage))
    groups = groups_of(model)
    if stage == 3:
        flats = flats_of(optimizers, states, "fp32_flat_groups")
        weights.update(of_stage_3(groups, flats))
        parts = [{str(number): info for number, info in enumerate(flat)} for flat in flats]
        notes += zero_ranks.copy_notes(parts, optimizers, handles)
        notes += zero_ranks.copy_notes([frozen_parts(one) for one in models], models, handles)
    else:
        flats = flats_of(optimizers, states, "single_partition_of_fp32_groups")
        paddings = states[0].get("param_alignment_paddings")
        weights.update(of_stage_2(groups, flats, paddings))
        notes += unlike_notes(groups, flats, paddings, model=model, handles=handles)
    return weights, stage, [*notes, *zero_ranks.lost_notes(model, {*weights, *ties})]


FORMAT = _DeepSpeedZero()
