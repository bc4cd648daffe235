"""Finds tensors that a method of quantisation needs but no quantised weight of a model has, such as GPTQ's scales.

The modules in ``encodings`` list the tensors that each method stores. Tensors that depend on a format are needed only
if the format is known. GPTQ and AWQ store zero points in their own formats but not in Marlin's; AWQ stores none if
``zero_point`` is false. The format marlin-24 of compressed-tensors has different names for all tensors. MLX stores
biases only with scales that are floats. Tensors that are needed because of a setting (``g_idx``, ``weight_zero_point``)
are checked in ``contradictions``.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass

from ..info import TensorInfo
from .encoding import EXPERT_SCALES, QuantisedTensor, QuantisedTensors
from .modules import Modules, module_of
from .parts import ALWAYS, FLOATS, OF_ACTIVATIONS
from .settings import Settings, stated_by
from .unlike import is_number

__all__ = ["NeededPart", "needed_parts"]

_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_GPTQ = ("", "gptq", "gptq_v2")
_NVFP4 = ("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "W4A8_NVFP4_FP8")
"""The values of ``quant_algo`` for nvfp4 in ModelOpt."""
_PACKED = ("pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")
_SCALED = ("float-quantized", "int-quantized", "naive-quantized")
"""Formats of compressed-tensors: those that pack several codes in an element, and those with 8 bits for each code."""
_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8")
_ONLY_IF: Mapping[str, tuple[str, frozenset[str]]] = {
    ".biases": (".scales", FLOATS),
    ".nested_absmax": (".absmax", frozenset({"uint8"})),
    ".nested_quant_map": (".absmax", frozenset({"uint8"})),
    ".weight_shape": (".weight_packed", frozenset({"int32"})),
    ".weight_global_scale": (".weight_scale", frozenset({"float8_e4m3fn"})),
}
"""{ending of a tensor: (ending of another tensor of the same weight, dtypes)}.

A weight needs the first tensor only if the other tensor has one of the dtypes.
"""


@dataclass(frozen=True)
class _Layout:
    """The tensors that a method needs for one weight: ``parts`` are the endings of their keys, the codes first.

    Each item of ``parts`` is a tuple of alternative endings. A key with one of these endings shows that a weight is
    quantised, except for some endings: "" and the endings in ``vague`` never show it, and ".weight" shows it only if
    the tensor has the dtype ``codes``.
    """

    method: str
    parts: tuple[tuple[str, ...], ...]
    codes: str = ""
    vague: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeededPart:
    """A tensor that a method needs (``part``, such as scales), and the ``names`` of the quantised weights that lack it.

    ``is_all`` is true if all quantised weights lack it.
    """

    method: str
    part: str
    names: tuple[str, ...]
    is_all: bool


def needed_parts(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings, elsewhere: Collection[str]
) -> Iterator[NeededPart]:
    """Yield each tensor (such as scales) that the quantisation method needs but that no quantised weight has.

    A tensor in ``ALWAYS`` (such as zero points) is also yielded if at most half of the weights have it. If more weights
    have it, ``broken_partners`` finds the weights without it. ``elsewhere`` are the keys in other shards, which are not
    missing.
    """
    for layout in _layouts(settings):
        stems = _stems(layout, codes, tensors)
        for part in layout.parts if stems else ():
            asked = [stem for stem in stems if _is_asked(part[0], stem, tensors)]
            lacking = [stem for stem in asked if not any(_is_there(stem, end, tensors, elsewhere) for end in part)]
            is_all = len(lacking) == len(asked)
            if lacking and (is_all or (part[0] in ALWAYS and len(lacking) * 2 >= len(asked))):
                name = part[0].strip("._") or "codes"
                yield NeededPart(layout.method, name, tuple(stem[1:] for stem in lacking), is_all)
    if not elsewhere:
        yield from _without_weight_scales(codes, tensors, settings)


def _is_there(stem: str, end: str, tensors: Container[str], elsewhere: Container[str]) -> bool:
    key = f"{stem}{end}"[1:]
    return key in tensors or key in elsewhere


def _is_asked(end: str, stem: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a weight needs a tensor with the ending ``end``; the dtypes of its other tensors decide.

    ``stem`` is the common beginning of the keys of the weight's tensors, as ``_stems`` returns it.
    """
    other, dtypes = _ONLY_IF.get(end, ("", frozenset[str]()))
    beside = tensors.get(f"{stem}{other}"[1:]) if other else None
    return not other or (beside is not None and beside.dtype in dtypes)


def _stems(layout: _Layout, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the common beginning of the keys of each quantised weight, with a dot in front: ``.layers.0.proj``."""
    ends = tuple(end for part in layout.parts for end in part if end not in ("", ".weight", *layout.vague))
    found = dict[str, None]()
    for key in codes.by_key:
        end = next((end for end in ends if f".{key}".endswith(end)), "")
        if not end and layout.codes and key.endswith(".weight") and tensors[key].dtype == layout.codes:
            end = ".weight"
        if end:
            found[f".{key}".removesuffix(end)] = None
    return [stem for stem in found if not _is_plain(stem, layout, tensors)]


def _is_plain(stem: str, layout: _Layout, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a weight whose keys begin with ``stem`` is stored as floats of more than 8 bits, not quantised."""
    names = (stem[1:], f"{stem}.weight"[1:])
    return layout.parts[0] != ("",) and any(name in tensors and is_number(tensors[name]) for name in names)


def _layouts(settings: Settings) -> Iterator[_Layout]:
    """Yield the tensors that the method in the settings needs; nothing for methods and formats that are not known."""
    method, stated = settings.get("quant_method"), stated_by(settings)
    if method == "gptq" or (method is None and "desc_act" in settings):
        if stated.format in _GPTQ and not settings.get("is_marlin_format"):
            yield _gptq(stated.format, settings)
    elif method == "awq" or (method is None and "w_bit" in settings):
        is_other = "marlin" in f"{stated.version} {stated.format}" or settings.get("zero_point") is False
        zeros = () if is_other else ((".qzeros", ".scaled_zeros"),)
        yield _Layout("AWQ", ((".qweight",), (".scales",), *zeros))
    elif method == "mxfp4":
        yield _Layout("mxfp4", (("_blocks",), ("_scales",)))
    elif method == "bitsandbytes":
        yield from _bitsandbytes(settings)
    elif method == "compressed-tensors" and settings.get("format") in _PACKED:
        yield _Layout(f"the format {settings['format']}", _OF_PACKED)
    elif settings.get("quant_algo") in _NVFP4:
        yield _Layout("nvfp4", ((".weight",), (".weight_scale",), (".weight_scale_2",)), "uint8")
    elif method is None and {"bits", "group_size"} <= settings.keys():
        yield _Layout("MLX", ((".weight",), (".scales",), (".biases", ".qbiases")), "uint32", vague=(".scales",))
    elif method == "aqlm":
        yield _Layout("AQLM", ((".codes",), (".codebooks",), (".scales",)))
    elif method == "eetq":
        yield _Layout("EETQ", ((".weight",), (".weight_scales",)), "int8")


_OF_PACKED = ((".weight_packed",), (".weight_scale",), (".weight_shape",), (".weight_global_scale",))


def _gptq(form: str, settings: Settings) -> _Layout:
    has_zeros = settings.get("sym") is False or (settings.get("sym") is True and form != "gptq_v2")
    zeros = ((".qzeros",),) if has_zeros else ()
    return _Layout("GPTQ", ((".qweight",), (".scales",), *zeros))


def _bitsandbytes(settings: Settings) -> Iterator[_Layout]:
    if settings.get("load_in_4bit"):
        states = _STATES[::-1] if settings.get("bnb_4bit_quant_type") == "fp4" else _STATES
        nested = ((".nested_absmax",), (".nested_quant_map",))
        yield _Layout("bitsandbytes", (("",), (".absmax",), (".quant_map",), states, *nested))
    if settings.get("load_in_8bit"):
        yield _Layout("bitsandbytes", ((".weight",), (".SCB",)), "int8")


def _without_weight_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> Iterator[NeededPart]:
    """Yield the 8-bit weights if all of them lack scales, and the settings name a method or format that stores scales.

    Scales of activations do not count.

    With the method fp8, weights of a kind (name of the codes, dtype, number of dimensions) are yielded if no weight of
    this kind has scales in its module. Weights in modules that the settings leave out are never yielded. If some
    weights of the kind have scales, ``broken_partners`` finds those without scales.
    """
    method = settings.get("quant_method")
    is_scaled = method in ("fp8", "fbgemm_fp8") or settings.get("quant_algo") == "FP8"
    if not is_scaled and not (method == "compressed-tensors" and settings.get("format") in _SCALED):
        return
    coded = {
        form: one for form, one in codes.by_form().items() if one.codes and tensors[one.codes].dtype in _EIGHT_BITS
    }
    if coded and not any(map(_has_scale, coded.values())):
        names = tuple(one.name for one in codes.tensors if one.form in coded)
        yield NeededPart(str(method or "FP8"), "scales of weights", names, is_all=True)
    elif method == "fp8":
        scaled = {_kind(one, tensors) for one in coded.values() if _has_scale(one) and not _is_apart(one)}
        forms = {form for form, one in coded.items() if not _has_scale(one) and _kind(one, tensors) not in scaled}
        lacking = [one.name for one in codes.tensors if one.form in forms]
        modules = Modules(settings) if lacking else None
        if modules and (names := tuple(name for name in lacking if not modules.left_out(module_of(name)))):
            yield NeededPart(method, "scales of weights", names, is_all=False)


def _kind(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> tuple[str, str, int]:
    info = tensors[one.codes]
    return one.codes.rpartition(".")[2], info.dtype, len(info.shape)


def _is_apart(one: QuantisedTensor) -> bool:
    """Return whether the scales of a weight are in another module than its codes."""
    return not one.parts.keys().isdisjoint(EXPERT_SCALES)


def _has_scale(one: QuantisedTensor) -> bool:
    others = (key for key in one.keys if key not in (one.codes, *one.more_codes))
    return any(not key.endswith(OF_ACTIVATIONS) for key in others)
