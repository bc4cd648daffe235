"""Makes a note on an adapter that another program seems to have merged into the base already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.lora_merge.fitting import AdapterView
from ...planning.plan.plan import Plan
from ...tensors.info import TensorInfo
from ...util.text import escape, together
from ..inputs.stored_recipes import merged_notes

__all__ = ["already_merged_notes"]

SAMPLE = 1 << 16
"""The number of bytes of a tensor that are read to find out whether its values are all equal."""


def already_merged_notes(
    plan: Plan, opened: Sequence[Checkpoint], views: Sequence[AdapterView], weights: Sequence[float]
) -> Iterator[str]:
    """Yield a note on each adapter whose modules_to_save all have exactly the bytes of the base's tensors.

    Modules in modules_to_save are trained as a whole, so an unmerged base has other values. The weights of other
    modules do not show whether the adapter was merged. ``opened`` is the base, followed by the adapters; ``views`` are
    the adapters, ``weights`` their weights. An adapter that was merged according to the base's recipe is left out,
    because it has a note of its own, and one with a negative weight, because that undoes the merge.
    """
    for number, (one, weight) in enumerate(zip(views, weights, strict=True), 1):
        if weight < 0:
            continue
        keys = _replaced(plan, number, one, opened[0])
        if not any(len(opened[0][key].shape) > 1 for key in keys) or merged_notes(
            opened[0], opened[number : number + 1], [1.0]
        ):
            continue
        if _is_trained(opened[number], one) and _are_equal(opened[0], opened[number], keys):
            yield (
                f"{escape(one.adapter.name)} seems to be merged into {escape(opened[0].path)} already, and would be "
                f"added a second time: {together(list(keys), 2)} (modules_to_save) {'is' if len(keys) == 1 else 'are'} "
                "equal bit for bit in both"
            )


def _replaced(plan: Plan, number: int, one: AdapterView, base: Checkpoint) -> dict[str, str]:
    """Return {key in the base: key in the adapter} for the tensors of modules_to_save; {} if the base lacks any.

    ``number`` is the index of the adapter in the plan's sources.
    """
    config = one.adapter.config
    copied = {step.source_key: step.key for step in plan.steps if step.source == number and step.key in base}
    saved = [key for name, key in one.adapter.saved.items() if config is not None and config.saves(name)]
    return {copied[key]: key for key in saved} if copied.keys() >= set(saved) else {}


def _is_trained(adapter: Checkpoint, one: AdapterView) -> bool:
    """Return whether an adapter has a module whose factors all have a value other than zero.

    Before the training, one factor of each module is zero. The result is False if a factor cannot be read.
    """
    with suppress(CheckpointError):
        modules = ([adapter[key] for key in module.factors] for module in one.adapter.modules)
        return any(all(_has_values(adapter, info) for info in some) for some in modules)
    return False


def _has_values(adapter: Checkpoint, info: TensorInfo) -> bool:
    """Return whether a tensor has a byte other than zero; it is read in pieces, up to the first such byte."""
    from ...analysis.verify.differences import reader

    read = reader(adapter, info)
    pieces = ((at, min(SAMPLE, info.nbytes - at)) for at in range(0, info.nbytes, SAMPLE))
    return any(bytes(read(*piece)).strip(b"\0") for piece in pieces)


def _bytes(adapter: Checkpoint, info: TensorInfo, most: int) -> bytes:
    from ...analysis.verify.differences import reader

    return bytes(reader(adapter, info)(0, min(info.nbytes, most)))


def _are_equal(base: Checkpoint, adapter: Checkpoint, keys: Mapping[str, str]) -> bool:
    """Return whether the tensors of each pair have the same bytes, and at least one pair is a non-constant matrix.

    ``keys`` maps keys in the base to keys in the adapter. Smaller tensors are compared first. The result is False if a
    tensor is decoded or remote.
    """
    from ...analysis.verify.differences import first_different_byte

    if any(file.remote for each in (base, adapter) for file in each.open_files().values()):
        return False
    pairs = sorted(((base[ours], adapter[theirs]) for ours, theirs in keys.items()), key=lambda pair: pair[0].nbytes)
    if not all(ours.is_plain and theirs.is_plain and ours.dtype == theirs.dtype for ours, theirs in pairs):
        return False
    with suppress(CheckpointError):
        return any(_is_matrix_of_several(adapter, theirs) for _, theirs in pairs) and all(
            first_different_byte(base, ours, adapter, theirs) is None for ours, theirs in pairs
        )
    return False


def _is_matrix_of_several(adapter: Checkpoint, info: TensorInfo) -> bool:
    """Return whether a tensor has two or more dimensions, and its first values are not all the same."""
    data = _bytes(adapter, info, SAMPLE) if len(info.shape) > 1 else b""
    return data != data[: info.itemsize] * (len(data) // info.itemsize)
