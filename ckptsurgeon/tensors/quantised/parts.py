"""Finds codes or scales of quantised tensors whose other tensors are missing or in another shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from ..info import TensorInfo
from .encoding import ACTIVATIONS, EXPERT_SCALES, Encoding, QuantisedTensor, QuantisedTensors
from .methods import IN_OTHER_SHARD, UNKNOWN, family
from .settings import QuantisationSettings

__all__ = [
    "OF_CACHE",
    "UNCODED",
    "UNSCALED",
    "WITHOUT_SCALES",
    "IncompleteTensors",
    "broken_partners",
    "could_be_parts",
    "could_be_words",
    "is_of_codes_only",
    "lone_codes",
    "lone_parts",
    "part_endings",
]

UNCODED = "without its codes"
"""``QuantisedTensor.method`` ends with this text if the codes are missing, or were replaced by plain numbers."""
UNSCALED = "without some of its scales"
"""``QuantisedTensor.method`` ends with this text if there are codes, but not all tensors that decode them."""

WITHOUT_SCALES = ", without scales"
"""``QuantisedTensor.method`` ends with this text if codes have no scale at all."""

# Quantised tensors that are split over shards: scales in one, codes in another.

_GENERAL = frozenset({
    ".scale", "_scale", ".zero", ".zero_point", ".shape", ".meta", ".perm", ".axis", ".group_size", ".packing",
    ".optimize", ".tables", ".su", ".sv", ".output_scale", ".act_scale", ".activation_scale", "_activation_scale",
})  # fmt: skip
"""Endings that plain tensors have too: a vector with such an ending may be the gain of a norm, for example."""
_VAGUE = _GENERAL | frozenset(ACTIVATIONS)
"""Endings that alone do not prove that there are codes: unquantised weights may have such tensors too."""
OF_CACHE = frozenset({".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point"})
"""Scales of the KV cache, which compressed-tensors stores in the attention module itself."""
_SHORT = frozenset({".A", ".s", ".rows", ".cols", ".vals", ".workspace", ".rcp"})
"""Endings that prove nothing without codes, even if the folder has quantisation settings."""
_CERTAIN = frozenset({
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4", ".qzeros", ".g_idx", ".weight_g_idx", "_scale_inv", ".scale_packed",
    ".weight_scale_inv", ".weight_scale_2",
    ".scale_weight", ".qscale_weight", ".weights_scaling_factor", ".weight_sf", ".weight_sf_rowmajor", ".q_scale_max",
    ".q_invperm", ".q_group_map", ".suh", ".svh", ".qbiases", "._weight_scale", "._weight_scale_and_zero",
})  # fmt: skip
"""Endings that plain tensors never have: they always belong to quantised tensors."""
_OF_WEIGHTS = frozenset({
    ".weight_scale", ".weight_scales", ".weight_global_scale", ".weight_zero_point", ".weight_descale",
})  # fmt: skip
"""Endings that belong to quantised tensors unless the weight itself is stored as plain numbers."""
_TOGETHER = frozenset({".scales", ".biases"})
"""If a module has tensors with both endings, as in MLX, they belong to a quantised tensor."""


def is_of_codes_only(ending: str) -> bool:
    """Return whether only keys of quantised tensors have this ending."""
    return ending in _CERTAIN


def could_be_parts(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> dict[str, str]:
    """Return {key: its ending} for the tensors that could be scales, or other tensors that decode codes.

    ``endings`` are the endings of such tensors. If plain models use an ending too (``.scale``), vectors are left out.
    """
    most = max((end.count(".") + (end[:1] != ".") for end in endings), default=0)
    by_tail: dict[str, str] = {}  # a cache: a hundred thousand keys have few different tails
    found: dict[str, str] = {}
    for key, info in tensors.items():
        tail = ".".join(key.rsplit(".", most)[-most:])
        end = by_tail.get(tail)
        if end is None:
            dotted = f".{tail}"
            any_of = dotted.endswith(endings)
            end = by_tail[tail] = next((end for end in endings if dotted.endswith(end)), "") if any_of else ""
        if end and (end not in _GENERAL or len(info.shape) > 1):
            found[key] = end
    return found


def could_be_words(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether any tensor has a single column: bitsandbytes stores codes in this shape, sometimes as floats."""
    return any(info.shape[1:] == (1,) for info in tensors.values())


def part_endings(encodings: Sequence[Encoding]) -> tuple[str, ...]:
    """Return the endings, in all encodings, of scales and other tensors that decoding needs, the longest first.

    The endings in ``EXPERT_SCALES`` are left out: if its codes are missing, such a tensor is found by a shorter ending.
    """
    ends = {end for one in encodings for end in one.places} - _code_endings(encodings) - {*EXPERT_SCALES}
    return tuple(sorted(ends, key=lambda end: (-len(end), end)))


def _code_endings(encodings: Iterable[Encoding]) -> set[str]:
    return {"", ".weight", *(one.telling if one.codes is None else one.codes for one in encodings)}


def lone_codes(
    tensors: Mapping[str, TensorInfo], known: Container[str], elsewhere: Set[str], encodings: Sequence[Encoding]
) -> Iterator[QuantisedTensor]:
    """Yield the codes whose scales are in another shard; ``elsewhere`` contains the keys of the other shards.

    In some encodings, such as those of bitsandbytes, the key of another stored tensor identifies the encoding. For
    these encodings, codes of any dtype are accepted.
    """
    if not any(f".{key}".endswith(part_endings(encodings)) for key in elsewhere):
        return
    dotted = {f".{key}" for key in elsewhere}
    for key, info in tensors.items():
        if key not in known and info.numel > 1:
            one = next((one for one in encodings if _tells(one, f".{key}", info, dotted)), None)
            if one is not None:
                end = one.telling if one.codes is None else one.codes
                method = IN_OTHER_SHARD
                named = f".{key}".removesuffix(end) + one.named if end else f".{key}"
                yield QuantisedTensor(named[1:], method, key, {end: key}, None, None, info.numel)


def _tells(one: Encoding, dotted: str, info: TensorInfo, elsewhere: Set[str]) -> bool:
    """Return whether keys of other shards show that a tensor is the codes of the encoding ``one``.

    ``dotted`` is the key of the tensor with a dot in front; ``elsewhere`` are the keys of other shards, with dots, too.
    """
    if one.codes is not None:
        return dotted.endswith(one.codes) and dotted.removesuffix(one.codes) + one.telling in elsewhere
    if info.dtype not in one.dtypes or not dotted.endswith(one.telling):
        return False
    return any(dotted.removesuffix(one.telling) + mark in elsewhere for mark in one.marks)


def lone_parts(
    parts: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    known: Container[str],
    quantisation: QuantisationSettings,
    elsewhere: Set[str],
    encodings: Sequence[Encoding],
) -> Iterator[QuantisedTensor]:
    """Yield quantised tensors with scales or zero points, but no codes, in this file; such tensors can only be copied.

    ``parts`` maps the keys of the scales and zero points to their endings. If the folder has a ``quantization_config``,
    most endings suffice as proof. Otherwise the codes must be in another shard (``elsewhere`` contains the keys of
    other shards), or the endings and dtypes must be ones that only quantised tensors have. If codes were cast to a
    dtype that codes never have, they are treated as one more stored tensor next to the scales. Scales of a KV cache are
    left out.
    """
    stems: dict[str, dict[str, str]] = {}
    for key, end in parts.items():
        if key not in known:
            stem = f".{key}".removesuffix(end)
            stems.setdefault(stem.removesuffix(".weight") if end[0] == "." else stem, {})[end] = key
    named_codes = _code_endings(encodings) - {"", ".weight"}
    endings = {way + end for end in _code_endings(encodings) for way in ("", ".weight")}
    for stem, found in stems.items():
        has_codes = bool(elsewhere) and any(f"{stem}{end}"[1:] in elsewhere for end in endings)
        if OF_CACHE.issuperset(found) and not has_codes:
            continue
        is_said = bool(quantisation) and not _SHORT.issuperset(found)
        if is_said or (has_codes and not _VAGUE.issuperset(found)) or _is_certain(stem, found, tensors):
            named = "" if any(end[0] != "." for end in found) else ".weight"
            lacking = UNSCALED if f"{stem}{named}"[1:] in known else UNCODED
            method = f"{quantisation.method}, {lacking}" if quantisation.method else lacking
            vectors = (key for end in _GENERAL if (key := f"{stem}{end}"[1:]) in tensors and key not in known)
            miscast = (key for end in named_codes if (key := f"{stem}{end}"[1:]) in tensors and key not in known)
            keys = dict.fromkeys((*found.values(), *vectors, *sorted(miscast)))
            yield QuantisedTensor(f"{stem}{named}"[1:], method, "", {f".{key}"[len(stem) :]: key for key in keys}, None)


def _is_certain(stem: str, found: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether the endings and dtypes in ``found`` prove that these tensors store a quantised weight.

    ``found`` is {ending: key}; all keys begin with ``stem``.
    """
    if not any(tensors[key].numel for key in found.values()):
        return False
    if not _CERTAIN.isdisjoint(found) or _TOGETHER.issubset(found):
        return True
    if not _OF_WEIGHTS.isdisjoint(found):
        return f"{stem}.weight"[1:] not in tensors
    if any(tensors[key].dtype == "float8_e8m0fnu" for key in found.values()):
        return True
    blocks = tensors[found["_scales"]] if "_scales" in found else None
    return blocks is not None and blocks.dtype == "uint8" and len(blocks.shape) > 1


# Quantised weights without a tensor (such as zero points) that similar weights have, or with one of a wrong length.

ALWAYS = (
    ".qzeros", ".g_idx", ".weight_shape", ".weight_global_scale", ".quant_map", ".nested_absmax", ".nested_quant_map",
    ".zero", ".svh", ".Wscale", ".q_scale_max", ".q_groups", ".q_invperm", ".biases",
)  # fmt: skip
"""Endings of optional tensors: either all quantised weights of a model have such a tensor, or none has one."""
OF_ACTIVATIONS = tuple(end[1:] for end in ACTIVATIONS)
"""Endings of tensors for activations, such as their scales, without the dot."""
FLOATS = frozenset({"float16", "bfloat16", "float32"})
BLOCKS = tuple(1 << power for power in range(4, 17))
"""Possible lengths of bitsandbytes' blocks."""
USUAL = {".absmax": 64, ".nested_absmax": 256}
"""Default lengths of bitsandbytes' blocks, by the ending of the scales of the blocks."""

Tensors: TypeAlias = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class IncompleteTensors:
    """Quantised tensors (``names``) whose stored tensor with the ending ``part`` is missing or has a wrong length.

    ``others`` is the number of similar quantised tensors whose stored tensor is there and has a correct length. If the
    length is wrong, ``block`` is the block length that it should fit; if the tensor is missing, ``block`` is 0.
    """

    part: str
    names: Sequence[str]
    others: int
    block: int = 0


def broken_partners(
    codes: QuantisedTensors, tensors: Tensors, elsewhere: Container[str]
) -> Iterator[IncompleteTensors]:
    """Yield the tensors, such as codes or scales, that some quantised weights lack although similar weights have them.

    ``elsewhere`` contains the keys in other shards, whose tensors are not missing. Scales of bitsandbytes with a wrong
    length are yielded, too.
    """
    groups: dict[tuple[str, str, int], list[QuantisedTensor]] = {}
    infos = {form: tensors[one.codes] for form, one in codes.by_form().items() if one.codes}
    for one in codes.tensors:
        if one.codes:
            info = infos[one.form]
            groups.setdefault((_leaf(one.codes), info.dtype, len(info.shape)), []).append(one)
    without = [one for one in codes.tensors if not one.codes]
    for (leaf, dtype, rank), group in groups.items():
        known = [one for one in group if family(one.method) not in (UNKNOWN, IN_OTHER_SHARD)]
        if known:
            needed = _needed(known)
            found = {one.codes: one.codes for one in group if family(one.method) in (UNKNOWN, IN_OTHER_SHARD)}
            for one in without:
                for key in _codes_of(one, needed, leaf):
                    there = tensors.get(key)
                    if there is None or (there.dtype, len(there.shape)) == (dtype, rank):
                        found[key] = one.name
            yield from _lacking(found, [f".{leaf}", *needed], len(known), tensors, elsewhere)
            yield from _left_out(known, tensors, elsewhere)
    yield from _lengths(codes, tensors)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _decoding_endings(one: QuantisedTensor) -> set[str]:
    """Return the endings of the tensors that decode the codes, such as ``.scales``, without scales of activations.

    Tensors in another module than the codes are left out: ``needed_parts`` finds out whether they are missing.
    """
    module, dot, _ = one.codes.rpartition(".")
    keys = (key for end, key in one.parts.items() if key != one.codes and end not in EXPERT_SCALES)
    ends = (key[len(module) :] for key in keys if key.startswith(module + dot))
    return {end for end in ends if not end.endswith(OF_ACTIVATIONS)}


def _needed(known: Sequence[QuantisedTensor]) -> list[str]:
    """Return the endings of the tensors, such as ``.scales``, that decode the codes of every weight in ``known``."""
    return sorted(set.intersection(*(ends for ends, _ in _endings_by_form(known))))


def _endings_by_form(known: Sequence[QuantisedTensor]) -> list[tuple[set[str], int]]:
    """Return, for each form of quantised weights, (endings of the tensors that decode the codes, number of weights).

    Weights with the same ``QuantisedTensor.form`` have the same endings. The codes of all weights in ``known`` must
    have the same name in their module.
    """
    numbers = Counter(one.form for one in known)
    forms = {one.form: one for one in known}
    return [(_decoding_endings(forms[form]), number) for form, number in numbers.items()]


def _codes_of(one: QuantisedTensor, needed: Sequence[str], leaf: str) -> Iterator[str]:
    """Yield the keys that the missing codes of ``one`` could have; ``leaf`` is their name in the module.

    Each is a key of ``one`` with an ending in ``needed``, in which ``leaf`` replaces this ending.
    """
    for end in needed:
        yield from (f"{key.removesuffix(end)}.{leaf}" for key in one.keys if key.endswith(end))


def _lacking(
    found: Mapping[str, str], ends: Sequence[str], others: int, tensors: Tensors, elsewhere: Container[str]
) -> Iterator[IncompleteTensors]:
    """Yield, for each ending in ``ends``, the quantised weights without the tensor that has this ending.

    ``ends`` begins with the ending of the codes. ``found`` maps the keys that the codes have, or would have, to the
    names of the weights.
    """
    left = dict(found)
    for end in ends:
        keys = {codes: codes.rpartition(".")[0] + end for codes in left}
        lacking = [codes for codes, key in keys.items() if key not in tensors and key not in elsewhere]
        if lacking:
            yield IncompleteTensors(end[1:], list(dict.fromkeys(left[codes] for codes in lacking)), others)
        if end == ends[0]:
            left = {codes: name for codes, name in found.items() if codes not in lacking}


def _left_out(
    known: Sequence[QuantisedTensor], tensors: Tensors, elsewhere: Container[str]
) -> Iterator[IncompleteTensors]:
    """Yield the optional tensors, such as zero points, that some weights lack although most weights have them."""
    numbers: Counter[str] = Counter()
    for ends, number in _endings_by_form(known):
        numbers.update({end: number for end in ends if end.endswith(ALWAYS)})
    for end, number in numbers.items():
        among = [one for one in known if end != ".biases" or _has_float_scales(one, tensors)]
        if len(among) / 2 < number < len(among):
            keys = {one.name: one.codes.rpartition(".")[0] + end for one in among}
            names = [name for name, key in keys.items() if key not in tensors and key not in elsewhere]
            if names:
                yield IncompleteTensors(end[1:], names, number)


def _has_float_scales(one: QuantisedTensor, tensors: Tensors) -> bool:
    """Return whether the scales of ``one`` are floats.

    MLX stores biases only with such scales, and so not for mxfp4 and nvfp4.
    """
    return ".scales" in one.parts and tensors[one.parts[".scales"]].dtype in FLOATS


def _lengths(codes: QuantisedTensors, tensors: Tensors) -> Iterator[IncompleteTensors]:
    """Yield the scales of bitsandbytes whose number does not fit the most frequent block length in the model."""
    has_blocks = any(family(one.method) == "bitsandbytes" for one in codes.by_form().values())
    for end, whole in ((".absmax", ""), (".nested_absmax", ".absmax")) if has_blocks else ():
        possible = dict[str, set[int]]()
        for one in codes.tensors:
            if family(one.method) == "bitsandbytes" and {end, whole} <= one.parts.keys():
                values = tensors[one.parts[whole]].numel if whole else one.parameters or 0
                blocks = tensors[one.parts[end]].numel
                possible[one.name] = {size for size in BLOCKS if -(-values // size) == blocks}
        sizes = Counter(size for each in possible.values() for size in each)
        size = max(sizes, key=lambda size: (sizes[size], size == USUAL[end], -size), default=USUAL[end])
        names = [name for name, each in possible.items() if size not in each]
        if names:
            yield IncompleteTensors(end[1:], names, len(possible) - len(names), size)
