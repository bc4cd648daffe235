"""Finds quantised tensors in encodings that no module describes, by their keys, dtypes and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..dtypes import DTYPES
from ..info import TensorInfo
from ..possible_scales import decodes_nothing, fits_as_scale
from .encoding import CODE_TYPES, QuantisedTensor, are_plain_integers
from .methods import UNKNOWN
from .parts import WITHOUT_SCALES
from .settings import QuantisationSettings

__all__ = ["is_named_codes", "unknown"]

# Codes in unknown encodings are recognised by scales in the same module, or by the settings in their folder.

_SMALL = frozenset(name for name in CODE_TYPES if DTYPES[name].bits <= 8 and name != "float8_e8m0fnu")
_WORDS = frozenset({"int16", "uint16", "int32", "uint32"})
"""Dtypes of larger integers, which are never plain weights; MLX and HIGGS use them for codes."""
_BLOCK_BYTES = 16
"""Bytes in one block of mxfp4, as in gpt-oss."""
_QUANTISED = r"(?:q|w|q_|w_|quant\w*_|packed_)weights?|weight_(?:packed|q\w*|u?int\d+)|w_?q|qdata"
_WEIGHT = re.compile(rf"weight|{_QUANTISED}", re.IGNORECASE)
"""Matches names of the codes of a layer's weight, such as ``qweight``: any scale in the same module belongs to them."""
_TELLING = re.compile(_QUANTISED, re.IGNORECASE)
"""Matches names that only codes have."""
_SCALE = re.compile(
    r"(?:^|_)(?:[qwx]?(?:de|inv)?scales?|scaling_factors?|a(?:bs)?max|zero_points?|qzeros|zeros|codebooks?|scb)(?:_|\d|$)",
    re.IGNORECASE,
)
_BIAS = re.compile(r"bias|(?!weight_).*_bias")
"""Matches names of biases of layers and of fused experts (``down_proj_bias``), but not VPTQ's ``weight_bias``."""
_OF_NETWORKS = re.compile(r"(?:.*_)?(?:logits?|layer|norm|embed|residual|attn|attention)_scales?\d*", re.IGNORECASE)
"""Matches names of scales that are parameters of a network, such as CLIP's temperature, and do not decode codes."""


def is_named_codes(key: str) -> bool:
    """Return whether only codes have the name of a tensor, as in ``qweight``."""
    return _TELLING.fullmatch(key.rpartition(".")[2]) is not None


def unknown(
    keys: Iterable[str],
    tensors: Mapping[str, TensorInfo],
    by_module: Mapping[str, Sequence[str]],
    known: Collection[str],
    quantisation: QuantisationSettings,
) -> Iterator[QuantisedTensor]:
    """Yield the quantised tensors in unknown encodings; ``keys`` are the keys that could be codes.

    If the folder has a ``quantization_config`` and a module has a matrix of codes, all tensors of the module except its
    biases are one quantised tensor. Otherwise a tensor is taken for codes in one of two cases:

    - It has a scale: a tensor whose name begins with its name (``x`` and ``x_scale``).
    - It has no scale, but a name that only codes have, or the name ``weight`` and a dtype of codes. A ``weight`` of
      signed integers counts only if the state dict has other quantised tensors, or if its module has a scale.

    ``by_module`` has the keys of each module, ``known`` the keys that belong to known encodings.
    """
    method = f"{UNKNOWN} ({quantisation.method})" if quantisation.method else UNKNOWN
    modules: dict[str, list[str]] = {}
    for key in keys:
        if _looks_coded(key, tensors[key], quantisation):
            modules.setdefault(key.rpartition(".")[0], []).append(key)
    for module, found in modules.items():
        around = [key for key in by_module[module] if key not in known]
        whole = bool(quantisation and module) and any(len(tensors[key].shape) > 1 for key in found)
        for codes, others in _whole(found, around) if whole else _by_name(found, around, by_module, tensors):
            is_alone = not known and are_plain_integers(codes[0], tensors[codes[0]])
            if is_alone and not others:
                others = [key for key in around if _may_be_scale(key, tensors[key], tensors[codes[0]])]
            if others or (_is_coded(codes[0], tensors[codes[0]], quantisation) and not (is_alone and not quantisation)):
                yield _coded(module if whole or len(codes) > 1 else "", codes, others, tensors, method)


def _may_be_scale(key: str, info: TensorInfo, codes: TensorInfo) -> bool:
    """Return whether a floating-point tensor has a shape that the scale of integers in its module can have.

    It may have any name, except the names of parameters that are never scales, such as ``bias``.
    """
    is_float = DTYPES[info.dtype].kind == "float" and not decodes_nothing(key.rpartition(".")[2])
    return is_float and fits_as_scale(codes.dtype, codes.shape, info.shape)


def _looks_coded(key: str, info: TensorInfo, quantisation: QuantisationSettings) -> bool:
    """Return whether a tensor could contain codes, by its name, dtype and shape."""
    leaf = key.rpartition(".")[2]
    if _SCALE.search(leaf):
        return False
    return (bool(quantisation) and len(info.shape) > 1) or (
        info.numel > 1 and (info.dtype in _SMALL or _WEIGHT.fullmatch(leaf) is not None)
    )


def _is_coded(key: str, info: TensorInfo, quantisation: QuantisationSettings) -> bool:
    """Return whether a tensor without scales contains codes: its folder's settings or an unusual dtype show this."""
    if len(info.shape) < 2 or quantisation or DTYPES[info.dtype].kind == "float":
        return bool(quantisation) and len(info.shape) > 1
    leaf = key.rpartition(".")[2]
    if leaf.endswith("_blocks") and info.dtype == "uint8":
        return len(info.shape) > 2 and info.shape[-1] == _BLOCK_BYTES
    return bool(_TELLING.fullmatch(leaf)) or (leaf == "weight" and (info.dtype in _SMALL or info.dtype in _WORDS))


_Group = tuple[Sequence[str], Sequence[str]]
"""The keys of codes, and the keys of the tensors that decode them."""


def _whole(codes: Sequence[str], around: Sequence[str]) -> Iterator[_Group]:
    """Yield one group: the keys of a module's codes, and all other keys of the module except the keys of biases."""
    own = set(codes)
    yield codes, [key for key in around if key not in own and not _BIAS.fullmatch(key.rpartition(".")[2])]


def _by_name(
    codes: Sequence[str],
    around: Iterable[str],
    by_module: Mapping[str, Sequence[str]],
    tensors: Mapping[str, TensorInfo],
) -> Iterator[_Group]:
    """Yield a group for each key of codes, with the keys of its scales.

    The name of a scale is derived from the name of the codes, such as ``x_scale`` from ``x``. If the codes are 8-bit
    floats, it may also be the name of the codes followed by text with "scal". If a module contains one matrix of 8-bit
    floats and a floating-point tensor with one element, this tensor is the scale, whatever its name. If only some of
    the codes have such scales, all codes and scales of the module are one group.
    """
    by_leaf = {key.rpartition(".")[2]: key for key in codes}
    weight = next((key for leaf, key in by_leaf.items() if _WEIGHT.fullmatch(leaf)), None)
    scales: dict[str, list[str]] = {key: list(_within(key, by_module)) for key in codes}
    for key in around:
        leaf = key.rpartition(".")[2]
        owner = _owner(leaf, by_leaf) or _only_matrix(codes, key, tensors)
        if _SCALE.search(leaf) and not _OF_NETWORKS.fullmatch(leaf):
            owner = owner or weight
        elif owner is None or not _is_scaled_by(owner, key, tensors):
            continue
        if owner is not None:
            scales[owner].append(key)
    if "." in next(iter(codes), "") and any(scales.values()) and not all(scales.values()):
        yield codes, [key for each in scales.values() for key in each]
    else:
        yield from (([key], each) for key, each in scales.items())


def _only_matrix(codes: Sequence[str], key: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return the only key of codes in a module if the tensor ``key`` must be its scale; else None.

    ``key`` must be the scale if the codes are one matrix of 8-bit floats, and ``key`` is a floating-point tensor with
    one element.
    """
    first = tensors[codes[0]]
    is_matrix = len(codes) == 1 and len(first.shape) > 1 and DTYPES[first.dtype].kind == "float"
    return codes[0] if is_matrix and "." in key and _is_single_float(tensors[key]) else None


def _is_single_float(info: TensorInfo) -> bool:
    return info.numel == 1 and DTYPES[info.dtype].kind == "float"


def _is_scaled_by(codes: str, key: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether ``codes`` are 8-bit floats and ``key`` is their scale.

    ``key`` is a scale in two cases: its tensor is floating-point with one element, or its key is the key of the codes
    followed by text with "scal"; in the second case, the tensor may have any dtype and shape.
    """
    is_scale = _is_single_float(tensors[key]) or "scal" in key[len(codes) :].lower()
    return DTYPES[tensors[codes].dtype].kind == "float" and is_scale


def _within(key: str, by_module: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the keys in the module ``key``, and those in the module ``key`` + "_quantizer", as ModelOpt names it."""
    yield from by_module.get(key, ())
    yield from by_module.get(f"{key}_quantizer", ())


def _owner(scale: str, codes: Mapping[str, str]) -> str | None:
    """Return the key of the codes if a scale's name is derived from it (``x_scale`` from ``x``); else None."""
    stem = scale
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        if stem in codes:
            return codes[stem]
    return None


def _coded(
    module: str, codes: Sequence[str], others: Sequence[str], tensors: Mapping[str, TensorInfo], method: str
) -> QuantisedTensor:
    """Return a quantised tensor in an unknown encoding; ``codes`` and ``others`` are the keys of its stored tensors.

    The endings of its stored tensors are the texts after ``module`` in their keys. If ``module`` is "", they are the
    texts after the key of the codes, or after the codes' module.
    """
    first, *more = sorted(codes, key=lambda key: -tensors[key].numel)
    stem = module or (first if all(key.startswith(first) for key in others) else first.rpartition(".")[0])
    parts = {f".{key}"[len(stem) + bool(stem) :]: key for key in (first, *more, *others)}
    above, dot, leaf = first.rpartition(".")
    is_stack = len(codes) == 1 and not others and len(tensors[first].shape) > 2  # experts without scales
    is_stem = leaf == "weight" or is_stack or any(key.startswith(f"{first}_") for key in others)
    is_told = bool(_TELLING.fullmatch(leaf))
    named = f"{above}{dot}weight" if is_told or (module and not is_stem) else first
    quantisation = method if others else method + WITHOUT_SCALES
    return QuantisedTensor(named, quantisation, first, parts, None, None, tensors[first].numel, tuple(more))
