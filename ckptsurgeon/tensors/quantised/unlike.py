"""Finds weights that are stored unlike most weights of a quantised model: plainly, twice, or with different scales."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..dtypes import DTYPES
from ..info import TensorInfo
from .agreement import stores_codes
from .encoding import QuantisedTensor, QuantisedTensors
from .methods import KNOWN, UNKNOWN, family
from .modules import Modules, module_of
from .parts import OF_ACTIVATIONS, is_of_codes_only
from .settings import QuantisationSettings, Settings, modelopt_of, values_called

__all__ = [
    "MODELOPT",
    "WHOLE",
    "OddTensors",
    "is_mlx_of_signed",
    "is_number",
    "method_of",
    "odd_ones",
    "of_another_scale",
    "plain_with_scales",
    "stored_twice",
    "targets_of",
    "unfit_parts",
    "without_numbers",
    "wrong_nvfp4_scales",
]

MODELOPT = "modelopt"
WHOLE = ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4", MODELOPT)
"""Methods that quantise all modules of a kind, except those that the settings exclude."""
_NUMBER = re.compile(r"\.\d+(?=\.)")


def without_numbers(name: str) -> str:
    """Return a name in which ``#`` replaces each number between dots, so that it is the same in all layers."""
    return _NUMBER.sub(".#", name)


def method_of(settings: Settings) -> str:
    """Return the quantisation method: "modelopt" for ModelOpt, but "" if ModelOpt treats modules in different ways."""
    modelopt = modelopt_of(settings)
    if not modelopt:
        return QuantisationSettings(settings).method
    is_mixed = "MIXED" in str(modelopt.get("quant_algo")).upper() or "quantized_layers" in modelopt
    return "" if is_mixed else MODELOPT


def targets_of(settings: Settings) -> set[str]:
    """Return the targets of the config groups of compressed-tensors."""
    groups = settings.get("config_groups")
    found = [one.get("targets") for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    return {target for one in found if isinstance(one, list) for target in one if isinstance(target, str)}


def is_number(info: TensorInfo) -> bool:
    """Return whether a tensor has at least two dimensions and floats of more than 8 bits: then it is not quantised."""
    dtype = DTYPES[info.dtype]
    return len(info.shape) > 1 and dtype.kind == "float" and dtype.bits > 8


def stored_twice(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the keys of the weights that are stored both plainly and quantised."""
    return [
        one.name
        for one in codes.tensors
        if one.codes and one.name in tensors and one.name not in codes.by_key and is_number(tensors[one.name])
    ]  # fmt: skip


def unfit_parts(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """Yield ("qzeros", name of the weight) if the shape of zero points does not fit the codes and scales.

    Also yield ("parts", key of the codes) for a weight whose stored tensors have shapes that do not fit each other.
    Such a weight is in an unknown encoding, although codes with the same name are recognised in other modules.
    """
    if {family(method) for method in codes.methods()}.isdisjoint(("AWQ", "GPTQ", UNKNOWN)):
        return
    known = {_leaf(one): one.method for one in codes.tensors if family(one.method) in KNOWN and one.codes}
    for one in codes.tensors:
        kind = family(one.method)
        if kind in ("AWQ", "GPTQ") and {".qzeros", ".scales", ".qweight"} <= one.parts.keys():
            if not _fits(kind, *(tensors[one.parts[end]].shape for end in (".qweight", ".scales", ".qzeros"))):
                yield "qzeros", one.name
        elif kind == UNKNOWN and one.codes and _is_like(one, family(known.get(_leaf(one), "")), tensors):
            yield "parts", one.codes


def _is_like(one: QuantisedTensor, usual: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a weight in an unknown encoding has the stored tensors of the family ``usual``.

    Then only their shapes are unusual, and these are wrong. Returns False if ``usual`` is not in ``ALIKE``.
    """
    if usual == "MLX":  # other notes are more exact if scales are missing, or if codes have another dtype
        return ".scales" in one.parts and not is_mlx_of_signed(one, tensors)
    if usual == "nvfp4" and _NVFP4_SCALE in one.parts and tensors[one.parts[_NVFP4_SCALE]].dtype != _E4M3:
        return False
    return usual in ALIKE and len(one.parts) > 1


def is_mlx_of_signed(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a weight is stored as MLX stores it, but its codes are int32; MLX accepts only uint32."""
    is_mlx = {".scales", ".biases"} <= one.parts.keys() and one.codes.endswith(".weight")
    return is_mlx and tensors[one.codes].dtype == "int32"


MOST_BITS = 8
ALIKE = ("mxfp4", "nvfp4", "GPTQ", "AWQ", "MLX")
"""Families of encodings in which the shape of the codes determines the shapes of the scales and zero points."""


def _leaf(one: QuantisedTensor) -> str:
    return one.codes.rpartition(".")[2]


def _fits(kind: str, codes: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...]) -> bool:
    """Return whether there are as many zero points as scales; ``kind`` is the family, GPTQ or AWQ.

    ``codes``, ``scales`` and ``zeros`` are shapes. Zero points are packed into words of 32 bits.
    """
    if len(scales) != 2 or len(zeros) != 2 or not all((*codes, *scales, *zeros)) or (scales[0] == codes[0]):
        return True
    are_wide = 1 < zeros[1] * 32 / scales[1] <= MOST_BITS if kind == "GPTQ" else zeros[1] == codes[1]
    return zeros[0] == scales[0] and are_wide


# Finds quantised tensors whose scales have a different name, or whose codes have a different dtype, from most others.

_FLOATS = ("fp8", "mxfp8")
_BYTES = ("int8", "uint8")
_OF_ANY, _OF_BLOCKS = ".weight_scale", ".weight_scale_inv"


@dataclass(frozen=True)
class OddTensors:
    """Quantised tensors (``names``) that have ``found``, while most similar tensors have ``usual``.

    Both are the dtype of the codes, the dtype of the scales ("scales of float32"), or the name of the scales, such as
    "weight_scale". ``others`` is the number of tensors that have ``usual``.
    """

    found: str
    usual: str
    names: tuple[str, ...]
    others: int


def odd_ones(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> Iterator[OddTensors]:
    """Yield the few 8-bit float weights whose codes or scales have an unusual dtype, or scales with an unusual name.

    A dtype or name is unusual if most other weights have a different one. A tensor is yielded only if the same module
    of another layer has the usual name and dtypes: different kinds of modules may differ on purpose. Bytes with a scale
    in an unknown encoding are treated as 8-bit floats if the codes with the same name in other modules are 8-bit
    floats.
    """
    groups: dict[tuple[str, str], list[QuantisedTensor]] = {}
    renamed = of_another_scale(codes, settings)[1]
    scales = {form: _scale(one) for form, one in codes.by_form().items()}  # the endings of the scales
    for one in codes.tensors if settings else ():
        if one.codes and scales[one.form] and (kind := family(one.method)) in (*_FLOATS, UNKNOWN):
            groups.setdefault((kind, _leaf(one)), []).append(one)
    for (kind, leaf), group in groups.items():
        if kind == UNKNOWN:
            continue
        if not renamed:
            yield from _odd(group, lambda one: scales[one.form].lstrip("."))
        yield from _odd(group, lambda one: f"scales of {tensors[one.parts[scales[one.form]]].dtype}")
        others = groups.get((UNKNOWN, leaf), []) if kind == _FLOATS[0] else []
        alike = [one for one in others if tensors[one.codes].dtype in _BYTES]
        yield from _odd([*group, *alike], lambda one: tensors[one.codes].dtype)


def _scale(one: QuantisedTensor) -> str:
    """Return the ending of a weight's scale, such as ``.weight_scale``; "" if it has none."""
    return next((end for end in one.parts if "scale" in end and not end.endswith(OF_ACTIVATIONS)), "")


def _odd(group: list[QuantisedTensor], trait: Callable[[QuantisedTensor], str]) -> Iterator[OddTensors]:
    """Yield the tensors of a group whose trait (a name or a dtype) differs from the trait of most others.

    ``trait`` returns the trait of a tensor, which is the same for all tensors with the same ``form``.
    """
    by_form = {form: trait(one) for form, one in {one.form: one for one in group}.items()}
    if len(set(by_form.values())) < 2:
        return
    traits = {one.name: by_form[one.form] for one in group}
    (usual, number), *others = Counter(traits.values()).most_common()
    forms = {without_numbers(name) for name, found in traits.items() if found == usual}
    for other, _ in others if number * 2 > len(group) else ():
        names = tuple(name for name, found in traits.items() if found == other and without_numbers(name) in forms)
        if names:
            yield OddTensors(other, usual, names, number)


def of_another_scale(codes: QuantisedTensors, settings: Settings) -> tuple[str, list[str]]:
    """Return the ending that keys of scales should have, and the names of the 8-bit weights with the other ending.

    The ending is "" if loaders accept either. Loaders of the method "fp8" (transformers, vLLM, SGLang) accept only
    ``.weight_scale_inv`` if the settings contain a ``weight_block_size``; loaders of compressed-tensors accept only
    ``.weight_scale``, even for blocks.
    """
    wanted, other = _scale_names(settings)
    return wanted, [
        one.name
        for one in (codes.tensors if wanted else ())
        if wanted not in one.parts and other in one.parts and one.codes and family(one.method) in _FLOATS
    ]


def _scale_names(settings: Settings) -> tuple[str, str]:
    method = settings.get("quant_method")
    if method == "fp8" and QuantisationSettings(settings).pairs("weight_block_size"):
        return _OF_BLOCKS, _OF_ANY
    return (_OF_ANY, _OF_BLOCKS) if method == "compressed-tensors" else ("", "")


# Finds scales of nvfp4 that were cast.

_NVFP4_SCALE, _E4M3 = ".weight_scale", "float8_e4m3fn"
_NVFP4_WHOLE = (".weight_scale_2", ".weight_global_scale")
"""Endings of nvfp4's scales: of block scales, which always have the dtype ``_E4M3``, and of scales of whole weights."""


def wrong_nvfp4_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, ending of the scale, its dtype, text with the right dtype) for each nvfp4 weight with cast scales.

    Weights with block scales and a scale of the whole weight are nvfp4 if the settings say so, or if most of them are
    recognised as nvfp4. The scale of a whole weight may have any dtype, because loaders cast it: it is yielded only if
    most weights have another dtype.
    """
    if modelopt_of(settings) and not method_of(settings):
        return
    every = [one for one in codes.tensors if one.codes and _beside(one, _NVFP4_SCALE) in tensors]
    every = [one for one in every if any(_beside(one, end) in tensors for end in _NVFP4_WHOLE)]
    number = sum(family(one.method) == "nvfp4" for one in every)
    if not every or not (number * 2 > len(every) or _says_nvfp4(settings)):
        return
    for end in _NVFP4_WHOLE:
        dtypes = {one.name: tensors[key].dtype for one in every if (key := _beside(one, end)) in tensors}
        usual, others = next(iter(Counter(dtypes.values()).most_common(1)), ("", 0))
        for name, dtype in dtypes.items():
            if dtype != usual and others * 2 > len(dtypes):
                like = f"{others:,} similar tensors have" if others > 1 else "1 similar tensor has"
                yield name, end, dtype, f"{like} {usual}"
    wrong = {one.name: dtype for one in every if (dtype := tensors[_beside(one, _NVFP4_SCALE)].dtype) != _E4M3}
    if len(wrong) == len(every) and method_of(settings) == "compressed-tensors":
        return  # another note is on all tensors of the format
    for name, dtype in wrong.items():
        yield name, _NVFP4_SCALE, dtype, f"nvfp4 has {_E4M3}"


def _beside(one: QuantisedTensor, end: str) -> str:
    """Return the key with the ending ``end`` in the module of a quantised tensor."""
    return f"{one.codes.rpartition('.')[0]}{end}"


def _says_nvfp4(settings: Settings) -> bool:
    stated = (str(modelopt_of(settings).get("quant_algo")), *map(str, values_called(settings, "format")))
    return any(one.lower().startswith("nvfp4") for one in stated)


# Finds plain weights that have scales for codes: for example, because plain values have replaced the codes.

_DECODING = (
    "_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_global_scale", ".weight_descale", ".scale_weight",
    ".qscale_weight", ".scales", ".qzeros", ".absmax", ".SCB", "_scales",
)  # fmt: skip
"""Endings of tensors that decode codes, and that no plain weight needs; activation scales are not included."""


def plain_with_scales(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (name, endings) for each plain weight that also has tensors to decode codes, such as scales.

    Weights that the settings leave unquantised are not yielded, since a loader loads them as they are. Methods that
    train with simulated quantisation may store plain weights with scales: for models of these methods nothing is
    yielded, unless other weights are quantised. Without settings, only endings that plain tensors never have are
    considered.
    """
    if settings and not (_is_of_codes(settings) or any(one.codes and _is_coded(one, tensors) for one in codes.tensors)):
        return
    modules = Modules(settings)
    coded = {form for form, one in codes.by_form().items() if _is_coded(one, tensors)}
    for one in codes.tensors:
        if one.form in coded or not _is_plain(one, tensors) or modules.left_out(module_of(one.name)):
            continue
        parts = (end for end in one.parts if end.endswith(_DECODING) and (settings or is_of_codes_only(end)))
        if ends := tuple(end.removeprefix(".weight.").lstrip("._") for end in parts):
            yield one.name, ends


def _is_of_codes(settings: Settings) -> bool:
    """Return whether, according to the settings, every weight with scales is stored as codes."""
    method = stores_codes(settings)
    if method == "compressed-tensors":
        return settings.get("quantization_status") in (None, "compressed")
    return bool(method) or ("quant_method" not in settings and {"bits", "group_size"} <= settings.keys())


def _is_coded(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a quantised tensor has codes, and not plain numbers in their place.

    bitsandbytes may store codes as floats, but then in a single column or row.
    """
    if not one.codes:
        return False
    if family(one.method) != "bitsandbytes":
        return True
    info = tensors[one.codes]
    return not is_number(info) or 1 in info.shape


def _is_plain(one: QuantisedTensor, tensors: Mapping[str, TensorInfo]) -> bool:
    return one.name in tensors and is_number(tensors[one.name])
