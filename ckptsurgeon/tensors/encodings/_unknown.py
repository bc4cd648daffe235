"""Codes of encodings that nobody told us of: they are seen by what lies beside them, or by what their folder says."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from ..dtypes import DTYPES
from ..info import TensorInfo
from ._codes import CodedTensor
from ._settings import Said

__all__ = ["could_be_codes", "unknown"]

_CODE_TYPES = frozenset(
    name
    for name, dtype in DTYPES.items()
    if dtype.kind == "quantized" or name.startswith(("float8", "float6", "float4"))
) | {"int8", "uint8", "int16", "uint16", "int32", "uint32"}  # fmt: skip
"""What codes are stored as. Integers of 64 bits are indices and counters."""
_SMALL = frozenset(name for name in _CODE_TYPES if DTYPES[name].bits <= 8 and name != "float8_e8m0fnu")
_WORDS = frozenset({"int16", "uint16", "uint32"})
"""Larger integers that no network has as weights; those of MLX and HIGGS are so."""
_BLOCK_BYTES = 16
"""Of a block of mxfp4, as gpt-oss has it."""
_QUANTISED = r"(?:q|w|q_|w_|quant\w*_|packed_)weights?|weight_(?:packed|q\w*|u?int\d+)|w_?q|qdata"
_WEIGHT = re.compile(rf"weight|{_QUANTISED}", re.IGNORECASE)
"""What codes of a layer's weight are called: they are decoded by any scale of their module."""
_TELLING = re.compile(_QUANTISED, re.IGNORECASE)
"""What only codes are called."""
_SCALE = re.compile(
    r"(?:^|_)(?:w?(?:de)?scales?|scaling_factors?|a(?:bs)?max|zero_points?|qzeros|zeros|codebooks?|scb)(?:_|\d|$)",
    re.IGNORECASE,
)
_OF_NETWORKS = re.compile(r"(?:.*_)?(?:logits?|layer|norm|embed|residual|attn|attention)_scales?\d*", re.IGNORECASE)
"""Scales that a network multiplies by itself: CLIP's temperature, the gains of layers."""


def could_be_codes(info: TensorInfo) -> bool:
    """Whether a tensor's dtype is one that codes are stored as."""
    return info.dtype in _CODE_TYPES


def unknown(
    keys: Iterable[str],
    tensors: Mapping[str, TensorInfo],
    beside: Mapping[str, Sequence[str]],
    known: Container[str],
    said: Said,
) -> Iterator[CodedTensor]:
    """Yield the logical tensors of encodings that are not known, of ``keys`` that could be codes.

    In a folder that says that it is quantised, all that lies in one module is one, but for its bias. Elsewhere codes
    need a scale that is called after them. ``beside`` has the keys of each module, ``known`` what is explained.
    """
    method = f"an unknown encoding ({said.method})" if said.method else "an unknown encoding"
    modules: dict[str, list[str]] = {}
    for key in keys:
        if _looks_coded(key, tensors[key], said):
            modules.setdefault(key.rpartition(".")[0], []).append(key)
    for module, found in modules.items():
        around = [key for key in beside[module] if key not in known]
        whole = bool(said and module) and any(len(tensors[key].shape) > 1 for key in found)
        for codes, others in _whole(found, around) if whole else _by_name(found, around, beside):
            if others or _is_coded(codes[0], tensors[codes[0]], said):
                yield _coded(module if whole or len(codes) > 1 else "", codes, others, tensors, method)


def _looks_coded(key: str, info: TensorInfo, said: Said) -> bool:
    """Whether a tensor could be codes and not what decodes them, by its name and shape."""
    leaf = key.rpartition(".")[2]
    if _SCALE.search(leaf):
        return False
    return (bool(said) and len(info.shape) > 1) or (
        info.numel > 1 and (info.dtype in _SMALL or _WEIGHT.fullmatch(leaf) is not None)
    )


def _is_coded(key: str, info: TensorInfo, said: Said) -> bool:
    """Whether a tensor with nothing beside it is codes: by what its folder says, or as no network has such weights."""
    if len(info.shape) < 2 or said or DTYPES[info.dtype].kind == "float":
        return bool(said) and len(info.shape) > 1
    leaf = key.rpartition(".")[2]
    if leaf.endswith("_blocks") and info.dtype == "uint8":
        return len(info.shape) > 2 and info.shape[-1] == _BLOCK_BYTES
    return bool(_TELLING.fullmatch(leaf)) or (leaf == "weight" and (info.dtype in _SMALL or info.dtype in _WORDS))


_Group = tuple[Sequence[str], Sequence[str]]
"""Codes, and what decodes them together."""


def _whole(codes: Sequence[str], around: Sequence[str]) -> Iterator[_Group]:
    """Yield all that lies in a module as one, but for its bias."""
    own = set(codes)
    yield codes, [key for key in around if key not in own and key.rpartition(".")[2] != "bias"]


def _by_name(codes: Sequence[str], around: Iterable[str], beside: Mapping[str, Sequence[str]]) -> Iterator[_Group]:
    """Yield codes with the scales that are called after them; all of a module if some have none of their own."""
    by_leaf = {key.rpartition(".")[2]: key for key in codes}
    weight = next((key for leaf, key in by_leaf.items() if _WEIGHT.fullmatch(leaf)), None)
    scales: dict[str, list[str]] = {key: list(_within(key, beside)) for key in codes}
    for key in around:
        leaf = key.rpartition(".")[2]
        if _SCALE.search(leaf) and not _OF_NETWORKS.fullmatch(leaf):
            owner = _owner(leaf, by_leaf) or weight
            if owner is not None:
                scales[owner].append(key)
    if "." in next(iter(codes), "") and any(scales.values()) and not all(scales.values()):
        yield codes, [key for each in scales.values() for key in each]
    else:
        yield from (([key], each) for key, each in scales.items())


def _within(key: str, beside: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what lies in codes as in a module, and in the quantiser that is called after them, as ModelOpt has it."""
    yield from beside.get(key, ())
    yield from beside.get(f"{key}_quantizer", ())


def _owner(scale: str, codes: Mapping[str, str]) -> str | None:
    """Return the codes that a scale is called after: ``x_scale`` after ``x``."""
    stem = scale
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        if stem in codes:
            return codes[stem]
    return None


def _coded(
    module: str, codes: Sequence[str], others: Sequence[str], tensors: Mapping[str, TensorInfo], method: str
) -> CodedTensor:
    """Return one logical tensor; its parts are told by how they end behind ``module``, or behind its codes if ""."""
    first, *more = sorted(codes, key=lambda key: -tensors[key].numel)
    stem = module or (first if all(key.startswith(first) for key in others) else first.rpartition(".")[0])
    parts = {f".{key}"[len(stem) + bool(stem) :]: key for key in (first, *more, *others)}
    above, dot, leaf = first.rpartition(".")
    is_stem = leaf == "weight" or any(key.startswith(f"{first}_") for key in others)
    is_told = bool(_TELLING.fullmatch(leaf))
    named = f"{above}{dot}weight" if is_told or (module and not is_stem) else first
    said = method if others else f"{method}, without scales"
    return CodedTensor(named, said, first, parts, None, None, tensors[first].numel, tuple(more))
