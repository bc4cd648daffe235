"""What becomes of every tensor of a base that adapters change. Pure."""

from __future__ import annotations

from dataclasses import replace

from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo, alias_groups
from ...util.text import escape
from ..plan.lora import Lora
from ..plan.step import Input, Step
from .changes import Changes

__all__ = ["changed_steps"]


def changed_steps(changes: Changes, dtype: str) -> list[Step]:
    """Return what becomes of every tensor, in the order of the base; what it lacks comes last.

    An output layer that the base does not store, since it is the embedding, is left out if it still is.
    """
    first: dict[tuple[str, str], str] = {}
    ties = alias_groups(changes.base.tensors)
    made = []
    for key, info in changes.base.tensors.items():
        if key in changes.tied and _is_resized(changes, changes.tied[key]) and key not in changes.fresh:
            changes.notes.append(
                f"{escape(changes.tied[key])} gets other rows, and is the output layer too: so does that, while PEFT "
                "computes with the rows of the base there"
            )
            continue
        step = _step(changes, key, info, dtype)
        alike = (ties.get(key, key), repr((step.op, step.lora, step.inputs[1:], step.source)))
        owner = first.setdefault(alike, key)
        if key in ties and owner == key:
            changes.notes.append(
                f"{escape(key)} and {escape(ties[key])} were one tensor, and adapters change them differently: "
                "they are two now"
            )
        if owner == key or key not in changes.tied:
            made.append(step if owner == key else replace(step, tied_to=owner))
    fresh = [name for name in changes.fresh if name not in changes.base.tensors]
    return [*made, *(_copied(name, changes.fresh[name], changes.fresh[name].dtype, dtype) for name in fresh)]


def _is_resized(changes: Changes, key: str) -> bool:
    return key in changes.fresh and changes.fresh[key].shape != changes.base.tensors[key].shape


def _step(changes: Changes, key: str, info: TensorInfo, dtype: str) -> Step:
    if key in changes.fresh:
        return _copied(key, changes.fresh[key], info.dtype, dtype)
    own = Input(0, changes.tied.get(key, key), info.dtype, info.shape)
    changed = changes.changed.get(key)
    if changed is None:
        return _copied(key, own, info.dtype, dtype)
    if [(term.kind, term.weight) for term in changed.terms] == [("saved", 1.0)]:
        return _copied(key, changed.inputs[0], info.dtype, dtype)
    return Step(
        key, "lora", _dtype(info.dtype, dtype), info.shape, *own,
        rule=" + ".join(changed.by), more=tuple(changed.inputs), lora=Lora(tuple(changed.terms)),
    )  # fmt: skip


def _dtype(dtype: str, wanted: str) -> str:
    """Return the dtype of an output; only real floating tensors follow a wish."""
    return wanted if wanted not in ("", "keep") and DTYPES[dtype].kind == "float" else dtype


def _copied(key: str, one: Input, dtype: str, wanted: str) -> Step:
    made = _dtype(dtype, wanted)
    return Step(key, "copy", made, one.shape, one.source, one.key, one.dtype, one.shape)
