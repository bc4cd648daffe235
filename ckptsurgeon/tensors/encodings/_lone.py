"""Parts of a tensor whose others are elsewhere: scales in one shard of a model, and codes in another."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set

from ..info import TensorInfo
from ._codes import CodedTensor
from ._encoding import ACTIVATIONS, Encoding
from ._settings import Said

__all__ = ["could_be_parts", "could_be_words", "lone_codes", "lone_parts", "part_endings"]

_GENERAL = frozenset({
    ".scale", "_scale", ".zero", ".shape", ".meta", ".perm", ".axis", ".group_size", ".packing", ".optimize", ".tables",
    ".su", ".sv", ".output_scale", ".act_scale", ".activation_scale", "_activation_scale",
})  # fmt: skip
"""Endings that tensors of networks have, too: they tell nothing of a vector, as the gain of a norm is."""
_VAGUE = _GENERAL | frozenset(ACTIVATIONS)
"""Those, and endings of what lies beside weights that are not quantised, too: they tell nothing by themselves."""
_SHORT = frozenset({".A", ".s", ".rows", ".cols", ".vals", ".workspace", ".rcp"})
"""Endings that tell nothing even in a folder that says that it is quantised, unless their codes are seen."""
_CERTAIN = frozenset({
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4", ".qzeros", ".g_idx", ".weight_g_idx", "_scale_inv", ".scale_packed",
    ".scale_weight", ".qscale_weight", ".weights_scaling_factor", ".weight_sf", ".weight_sf_rowmajor", ".q_scale_max",
    ".q_invperm", ".q_group_map", ".suh", ".svh", ".qbiases", "._weight_scale", "._weight_scale_and_zero",
})  # fmt: skip
"""Endings that no network has: they tell parts of codes wherever they are."""
_OF_WEIGHTS = frozenset({
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_scales", ".weight_global_scale",
    ".weight_zero_point", ".weight_descale",
})  # fmt: skip
"""Endings that tell them unless the weight itself is there, as a number."""
_TOGETHER = frozenset({".scales", ".biases"})
"""Endings that tell them together, as MLX has them."""


def could_be_parts(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> dict[str, str]:
    """Return the keys that end as parts that are no codes do, and how they end."""
    keys = (key for key in tensors if f".{key}".endswith(endings))
    found = {key: next(end for end in endings if f".{key}".endswith(end)) for key in keys}
    return {key: end for key, end in found.items() if end not in _GENERAL or len(tensors[key].shape) > 1}


def could_be_words(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether some tensor could be codes that are stored as floats, as bitsandbytes does: as one column."""
    return any(info.shape[1:] == (1,) for info in tensors.values())


def part_endings(encodings: Sequence[Encoding]) -> tuple[str, ...]:
    """Return how the parts of any encoding end that are no codes, the longest first."""
    ends = {end for one in encodings for end in one.places} - _code_endings(encodings)
    return tuple(sorted(ends, key=lambda end: (-len(end), end)))


def _code_endings(encodings: Iterable[Encoding]) -> set[str]:
    return {"", ".weight", *(one.telling if one.codes is None else one.codes for one in encodings)}


def lone_codes(
    tensors: Mapping[str, TensorInfo], known: Container[str], elsewhere: Set[str], encodings: Sequence[Encoding]
) -> Iterator[CodedTensor]:
    """Yield the codes whose scales are ``elsewhere``: keys of the other shards of a model, which have no headers here.

    Those that other names tell may be of any type, as bitsandbytes' are.
    """
    if not any(f".{key}".endswith(part_endings(encodings)) for key in elsewhere):
        return
    dotted = {f".{key}" for key in elsewhere}
    for key, info in tensors.items():
        if key not in known and info.numel > 1:
            one = next((one for one in encodings if _tells(one, f".{key}", info, dotted)), None)
            if one is not None:
                end = one.telling if one.codes is None else one.codes
                method = "codes whose scales are elsewhere"
                named = f".{key}".removesuffix(end) + one.named if end else f".{key}"
                yield CodedTensor(named[1:], method, key, {end: key}, None, None, info.numel)


def _tells(one: Encoding, dotted: str, info: TensorInfo, elsewhere: Set[str]) -> bool:
    """Whether a tensor is codes of an encoding by what is elsewhere."""
    if one.codes is not None:
        return dotted.endswith(one.codes) and dotted.removesuffix(one.codes) + one.telling in elsewhere
    if info.dtype not in one.dtypes or not dotted.endswith(one.telling):
        return False
    return any(dotted.removesuffix(one.telling) + mark in elsewhere for mark in one.marks)


def lone_parts(
    parts: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    known: Container[str],
    said: Said,
    elsewhere: Set[str],
    encodings: Sequence[Encoding],
) -> Iterator[CodedTensor]:
    """Yield the logical tensors of which there are ``parts`` and no codes: they are carried, and never computed on.

    A folder that says that it is quantised has such parts by their names; else their codes must be ``elsewhere``, in
    another shard, or their names be such that nothing else is called so.
    """
    stems: dict[str, dict[str, str]] = {}
    for key, end in parts.items():
        if key not in known:
            stem = f".{key}".removesuffix(end)
            stems.setdefault(stem.removesuffix(".weight") if end[0] == "." else stem, {})[end] = key
    endings = {way + end for end in _code_endings(encodings) for way in ("", ".weight")}
    for stem, found in stems.items():
        has_codes = bool(elsewhere) and any(f"{stem}{end}"[1:] in elsewhere for end in endings)
        is_said = bool(said) and not _SHORT.issuperset(found)
        if is_said or (has_codes and not _VAGUE.issuperset(found)) or _is_certain(stem, found, tensors):
            named = "" if any(end[0] != "." for end in found) else ".weight"
            method = f"{said.method}, without its codes" if said.method else "without its codes"
            vectors = (key for end in _GENERAL if (key := f"{stem}{end}"[1:]) in tensors and key not in known)
            keys = dict.fromkeys((*found.values(), *vectors))
            yield CodedTensor(f"{stem}{named}"[1:], method, "", {f".{key}"[len(stem) :]: key for key in keys}, None)


def _is_certain(stem: str, found: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether nothing but parts of codes is called so, and stored so."""
    if not _CERTAIN.isdisjoint(found) or _TOGETHER.issubset(found):
        return True
    if not _OF_WEIGHTS.isdisjoint(found):
        return f"{stem}.weight"[1:] not in tensors
    if any(tensors[key].dtype == "float8_e8m0fnu" for key in found.values()):
        return True
    blocks = tensors[found["_scales"]] if "_scales" in found else None
    return blocks is not None and blocks.dtype == "uint8" and len(blocks.shape) > 1
