"""Makes a note on a file of one rank that is opened alone: it has only a part of the model.

DeepSpeed's model states say in ``mp_world_size`` over how many ranks the model is split; in stage 3 of ZeRO the
parameters in ``module`` are empty (``deepspeed/runtime/engine.py``, 0.19). Megatron's files have the arguments of the
run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, listing
from ..pickle.values import OpaqueResult
from .megatron_settings import settings_of

__all__ = ["single_rank_notes"]

_CHUNK = re.compile(r"model\d*")
"""Matches the keys of the model in Megatron's files; with virtual pipeline stages they are numbered."""


def single_rank_notes(tree: Any) -> Iterator[str]:
    """Yield a note if ``tree``, the content of one file, has the weights of only one of several ranks."""
    if not isinstance(tree, Mapping):
        return
    if isinstance(tree.get("module"), Mapping) and "param_shapes" in tree:
        yield from _deepspeed(tree, tree["module"])
    args = tree.get("args")
    models = [key for key in tree if isinstance(key, str) and _CHUNK.fullmatch(key) and isinstance(tree[key], Mapping)]
    if models and isinstance(args, OpaqueResult) and "checkpoint_version" in tree:
        stated = settings_of(args.attributes(), None)
        if stated.experts > 1:
            text = (
                f"the file has the experts of one of {stated.experts} ranks: convert the checkpoint with Megatron's "
                "tools/checkpoint"
            )
            yield Note(NoteKind.SINGLE_RANK, text)
            return
        if max(stated.tensor, stated.pipeline) > 1:
            text = (
                f"the file has the weights of one rank of a run with {count(stated.tensor or 1, 'rank')} of tensor "
                f"parallelism and {count(stated.pipeline or 1, 'stage')}: give the folder with the folders mp_rank_…"
            )
            yield Note(NoteKind.SINGLE_RANK, text)


def _deepspeed(tree: Mapping[Any, Any], module: Mapping[Any, Any]) -> Iterator[str]:
    ranks = tree.get("mp_world_size")
    if type(ranks) is int and ranks > 1:
        text = f"the file has the weights of one of {ranks} ranks of the model: give the folder with the files of all"
        yield Note(NoteKind.SINGLE_RANK, text)
    groups = tree["param_shapes"]
    shapes = {
        key: shape
        for group in (groups if isinstance(groups, (list, tuple)) else ())
        for key, shape in (group.items() if isinstance(group, Mapping) else ())
    }
    lacking = [str(key) for key, shape in shapes.items() if not _has(module.get(key), shape)]
    if lacking:
        text = (
            f"the file lacks the values of {count(len(lacking), 'parameter')}, which stage 3 of ZeRO stores in the "
            f"optimizer states: give the folder with the files of all ranks: {listing(lacking, where='')}"
        )
        yield Note(NoteKind.SINGLE_RANK, text)


def _has(info: Any, shape: Any) -> bool:
    known = isinstance(shape, tuple) and all(type(size) is int for size in shape)
    return not known or (isinstance(info, TensorInfo) and info.numel == prod(shape))
