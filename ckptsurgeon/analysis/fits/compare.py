"""Compares the tensors of a checkpoint with the tensors of a destination, by the rules of ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ...formats.pickle.values import ARRAY
from ...planning.keys.weight_norm import weight_norm_names
from ...planning.target import TargetSpec
from ...tensors.bitsandbytes_values import STATE
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, natural_key, number_in
from ..compare.results import Pair
from .fit import Fit

__all__ = ["compared", "layer_notes", "tied_keys"]


_NEWER = (".original0", ".original1")
COUNTER = "num_batches_tracked"
"""The last part of the key of the counter of batches in a batch norm; the counter exists since torch 0.4.1."""


def compared(
    first: str, source: Mapping[str, TensorInfo], second: str, target: TargetSpec, *, has_versions: bool = True
) -> Fit:
    """Return how the tensors of a source fit a destination; ``first`` and ``second`` are the names of the two.

    ``has_versions`` is true if the source may have the module versions (``_metadata``) that torch adds to a state dict.
    """
    wanted = target.tensors
    source = _as_loaded(source, wanted)
    filled = frozenset() if has_versions else frozenset(_counters(wanted))
    tied = dict(tied_keys(source, target))
    both = [Pair(key, info, wanted[key]) for key, info in source.items() if key in wanted]
    copied = [pair for pair in both if _loads(pair)]
    uncopied = {pair.key: why for pair in copied if (why := _why_not_copied(pair))}
    return Fit(
        first,
        second,
        len(wanted),
        {key: info for key, info in wanted.items() if not (key in source or key in tied or key in filled)},
        {key: source[key] for key in sorted(source, key=natural_key) if key not in wanted},
        tuple(pair for pair in both if not _loads(pair)),
        tuple(pair for pair in copied if pair.key not in uncopied and pair.first.dtype != pair.second.dtype),
        uncopied,
        tied,
    )


def _as_loaded(source: Mapping[str, TensorInfo], wanted: Collection[str]) -> dict[str, TensorInfo]:
    """Return the tensors of a source with old keys of weight norm renamed, as ``load_state_dict`` does.

    The old keys are those of ``torch.nn.utils.weight_norm``, such as ``weight_g``. The hook that renames them is in
    ``weight_norm`` in torch/nn/utils/parametrizations.py.
    """
    names = {
        old: new
        for before, after in weight_norm_names(source, wanted)
        for old, new in zip(before, after, strict=True)
        if new.endswith(_NEWER)
    }
    replaced = set(names.values())
    return {names.get(key, key): info for key, info in source.items() if key not in replaced}


def _counters(wanted: Collection[str]) -> Iterator[str]:
    """Yield the keys ``num_batches_tracked`` of batch norms, which torch adds to a state dict without module versions.

    See ``_NormBase._load_from_state_dict`` in torch/nn/modules/batchnorm.py.
    """
    for key in wanted:
        if key.rpartition(".")[2] == COUNTER and key.removesuffix(COUNTER) + "running_mean" in wanted:
            yield key


def _loads(pair: Pair) -> bool:
    """Return whether the first tensor of a pair loads into the second: their shapes are equal, or (1,) and ().

    ``Module._load_from_state_dict`` in torch/nn/modules/module.py loads (1,) into () for files of torch 0.3. The
    ``quant_state`` of bitsandbytes may have any length: it is JSON as bytes, which transformers reads.
    """
    shapes = pair.first.shape, pair.second.shape
    is_text = STATE in pair.key and len(shapes[0]) == len(shapes[1]) == 1
    return is_text or shapes[0] == shapes[1] or shapes == ((1,), ())


def _why_not_copied(pair: Pair) -> str:
    """Return the reason why torch cannot copy the pair's first tensor into the second, which is plain; "" if it can.

    ``Tensor.copy_``, which ``load_state_dict`` calls, raises an error for quantised and sparse tensors, for objects of
    torchao, and for tensors without values. An array inside a pickle becomes a plain tensor when the file is loaded.
    """
    first, second = pair.first, pair.second
    if first.opaque:
        return "" if first.opaque == ARRAY else first.opaque
    is_castable = not any(DTYPES[one.dtype].is_packed or DTYPES[one.dtype].kind == "bits" for one in (first, second))
    return "" if is_castable or first.dtype == second.dtype else f"torch cannot cast {first.dtype} to {second.dtype}"


def tied_keys(source: Collection[str], target: TargetSpec) -> Iterator[tuple[str, str]]:
    """Yield (key, other key) for each key that a source may lack, because the library ties it to ``other key``.

    A destination without such a library needs every key. If a source has none of the keys of a tied tensor, the key
    that the library stores is not yielded: only this key is then reported as missing.
    """
    groups: dict[str, list[str]] = {}
    for alias, owner in target.ties.items():
        groups.setdefault(owner, [owner]).append(alias)
    for names in groups.values():
        given = [name for name in names if name in source]
        first = next((name for name in given or names if given or name not in target.implied), "")
        is_tied = not target.implied.isdisjoint(given)
        for name in names:
            if first and name not in source and name != first and (name in target.implied or is_tied):
                yield name, first


def layer_notes(fit: Fit, source: Collection[str], wanted: Collection[str]) -> Iterator[str]:
    """Yield a note for each list of layers whose length differs between the source and the destination.

    ``source`` and ``wanted`` are the keys of the source and of the destination.
    """
    here, there = _layers(source), _layers(wanted)
    for name in sorted(here.keys() & there.keys(), key=natural_key):
        if here[name] != there[name]:
            numbers = f"{count(here[name], 'layer')} in {escape(fit.first)}, but {there[name]} in {escape(fit.second)}"
            yield f"{escape(name)} has {numbers}"


def _layers(keys: Collection[str]) -> dict[str, int]:
    """Return the number of modules in each list of modules, by the path of the list; nested lists are left out."""
    found: dict[str, set[int]] = {}
    for key in keys:
        parts = key.split(".")
        place = next((i for i, part in enumerate(parts[:-1]) if i and number_in(part) is not None), 0)
        if place:
            found.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    return {name: len(numbers) for name, numbers in found.items()}
