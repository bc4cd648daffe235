"""Makes notes on parts of quantised tensors, such as scales, that are missing, superfluous or unusual."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ..tensors.info import TensorInfo
from ..tensors.quantised.agreement import stores_codes
from ..tensors.quantised.config_groups import static_activations
from ..tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ..tensors.quantised.methods import UNKNOWN, family
from ..tensors.quantised.needed_parts import needed_parts
from ..tensors.quantised.parts import IncompleteTensors
from ..tensors.quantised.unknown import is_named_codes
from ..tensors.quantised.unlike import (
    is_mlx_of_signed,
    odd_ones,
    of_another_scale,
    plain_with_scales,
    wrong_nvfp4_scales,
)
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing, together

__all__ = ["incomplete", "notes_on_parts"]

Tensors = Mapping[str, TensorInfo]
SHOWN = 3
SCB = ".SCB"
"""The key ending of the scales of int8 weights of bitsandbytes."""
ABSMAX, NESTED = ".absmax", ".nested_absmax"
"""The key endings of the scales of bitsandbytes' 4-bit weights, and of the scales of these scales."""
TABLES = (".quant_map", NESTED, ".nested_quant_map")
"""The key endings of the parts of 4-bit weights of bitsandbytes that are always float32."""
SHAPE = ".weight_shape"
"""The key ending of the tensor in which compressed-tensors stores the shape of a weight."""
INTEGERS = frozenset({"int16", "int32", "int64", "uint16", "uint32"})
PACKED = ".q_scale"
"""The key ending of the scales of EXL2 (exllamav2): eight scales of 4 bits in each int32."""
ORDER = ".g_idx"
"""The key ending of GPTQ's order of the columns: the group of each column."""
OSS_SCALES, POWERS = "_scales", "float8_e8m0fnu"
OSS_CODES, OSS_BIAS = "_blocks", "_bias"
ACTIVATION = re.compile(r"(?:input|output|act|[kv])_scale")
"""Matches the names of scales of activations, which are not needed to decode weights."""
_GUESSED = {
    UNKNOWN: "but the dtypes and shapes of the other parts are those of no known encoding",
    "packed": "but the dtypes and shapes of the other parts are those of packed integers",
}
"""Texts on a part that does not fit, if the encoding is inferred from the other parts: one of them may be wrong."""
NO_SCALES = "without scales"
"""If a tensor has no scales, the name of its quantisation method ends with this text."""


@notes_of(NoteKind.QUANTISATION)
def notes_on_parts(
    path: str,
    codes: QuantisedTensors,
    tensors: Tensors,
    settings: Mapping[str, Any],
    elsewhere: Sequence[str],
    *,
    is_whole: bool,
) -> Iterator[str]:
    """Yield notes on parts (such as scales) that all or most tensors lack, or that are superfluous or unusual.

    A part is superfluous if its weight is not quantised, or if its encoding does not use such a part. It is unusual if
    the same part of most other tensors has another name or dtype. ``elsewhere`` has the keys of the other shards.
    ``is_whole`` is False if there are other shards, but no index that lists their keys.
    """
    lacking = list(_lacking_in_all(path, codes, tensors, settings, elsewhere)) if is_whole else []
    yield from lacking or _scaleless(path, codes, settings, elsewhere)
    if is_whole and not elsewhere:
        yield from _codeless(path, codes, tensors)
    yield from _unused_parts(path, codes, {name for name, *_ in wrong_nvfp4_scales(codes, tensors, settings)})
    yield from _left_scales(path, codes, tensors, settings)
    yield from _unlike_parts(path, codes, tensors, settings)


@notes_of(NoteKind.BROKEN_CODES)
def _lacking_in_all(
    path: str, codes: QuantisedTensors, tensors: Tensors, settings: Mapping[str, Any], elsewhere: Sequence[str]
) -> Iterator[str]:
    """Yield a note for each needed part, such as a scale, that all tensors lack (for some parts: at least half)."""
    others = frozenset(elsewhere)
    asked = needed_parts(codes, tensors, settings, others), static_activations(codes, tensors, settings, others)
    for one in chain(*asked):
        number, is_one = count(len(one.names), "quantised tensor"), len(one.names) == 1
        has = "no quantised tensor has" if one.is_all else f"{number} {'lacks' if is_one else 'lack'}"
        yield f"{escape(path)}: {has} {one.part}, which {escape(one.method)} needs: {listing(one.names, SHOWN)}"


@notes_of(NoteKind.BROKEN_CODES)
def _codeless(path: str, codes: QuantisedTensors, tensors: Tensors) -> Iterator[str]:
    """Yield a note if a tensor has the name of codes, but a dtype that codes never have, as after a cast to floats."""
    cast: dict[str, str] = {}
    have_codes = {one.name for one in codes.tensors if one.codes}
    lacking = (one.name for one in codes.tensors if not one.codes and one.name not in have_codes)
    stems = {name.removesuffix(".weight"): name for name in lacking}
    for key in tensors if stems else ():
        module = key.removesuffix("_blocks") if key.endswith("_blocks") else key.rpartition(".")[0]
        if module in stems and (is_named_codes(key) or key.endswith("_blocks")):
            cast[key] = stems[module]
    if cast:
        key = next(iter(cast))
        have = f"{count(len(cast), 'quantised tensor')} {'has' if len(cast) == 1 else 'have'} numbers in place of codes"
        yield f"{escape(path)}: {have} ({escape(key)} is {tensors[key].dtype}): {listing(list(cast.values()), SHOWN)}"


def _unused_parts(path: str, codes: QuantisedTensors, cast: Container[str]) -> Iterator[Note]:
    """Yield notes on parts of quantised tensors that their encoding does not use, such as a ``g_idx`` of AWQ.

    Other scales than those of the encoding may belong to codes that are missing: such a weight is not decoded. A weight
    in ``cast`` has all parts of its encoding, but one in a wrong dtype, on which there is another note.
    """
    found: dict[tuple[NoteKind, str], list[str]] = {}
    have_codes = {one.name: family(one.method) for one in codes.tensors if one.codes}
    for one in codes.tensors:
        kind = have_codes.get(one.name, "")
        if not one.codes and kind and one.name not in cast:
            ends = together([end.rpartition(".")[2] for end in one.parts])
            said = _GUESSED.get(kind, f"which {kind} does not use")
            found.setdefault((NoteKind.BROKEN_CODES, f"{ends}, {said}"), []).append(one.name)
        elif kind == "AWQ" and ORDER in one.parts:
            said = f"{ORDER[1:]}, which AWQ does not use: runtimes ignore this order of the columns"
            found.setdefault((NoteKind.QUANTISATION, said), []).append(one.name)
    for (note_kind, said), names in found.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        yield Note(note_kind, f"{escape(path)}: {has} {said}: {listing(names, SHOWN)}")


def _left_scales(path: str, codes: QuantisedTensors, tensors: Tensors, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on weights that are not quantised, but have scales, which only quantised weights need.

    There is one note for all weights whose scales have the same last name, such as ``weight_scale``.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name, ends in plain_with_scales(codes, tensors, settings):
        found.setdefault(ends, []).append(name)
    method = settings.get("quant_method")
    said = f"its quantization_config says quant_method {escape(method)}" if isinstance(method, str) else ""
    for ends, names in found.items():
        have = f"{count(len(names), 'weight')} without quantisation {'has' if len(names) == 1 else 'have'}"
        beside = f"{have} {listing(ends, SHOWN)}, which only quantised weights need"
        yield f"{escape(path)}: {', and '.join(filter(None, (beside, said)))}: {listing(names, SHOWN)}"


def _unlike_parts(path: str, codes: QuantisedTensors, tensors: Tensors, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on tensors whose scales have an unusual name, or whose codes or scales have an unusual dtype.

    There is also a note if loaders, because of ``settings``, look for scales under another name.
    """
    wanted, names = of_another_scale(codes, settings)
    if names:
        inverse = wanted.endswith("_inv")
        has = f"{'has' if len(names) == 1 else 'have'} {'weight_scale' if inverse else 'weight_scale_inv'}"
        by = f"the {'weight_block_size' if inverse else 'quant_method compressed-tensors'}"
        said = f"but with {by} in its quantization_config, loaders look for {wanted[1:]}"
        what = f"{count(len(names), 'quantised tensor')} {has}, {said}"
        yield Note(NoteKind.QUANTISATION_REFUSED, f"{escape(path)}: {what}: {listing(names, SHOWN)}")
    yield from _cast_parts(path, codes, tensors)
    yield from _nvfp4_scales(path, codes, tensors, settings)
    if cast := [
        one for one in codes.tensors if any(_is_of_powers(end, tensors[key]) for end, key in one.parts.items())
    ]:
        has = f"{count(len(cast), 'quantised tensor')} {'has' if len(cast) == 1 else 'have'}"
        said = "but transformers expects exponents in uint8, and would convert these values to wrong exponents"
        names = [one.name for one in cast]
        yield f"{escape(path)}: {has} {OSS_SCALES[1:]} in {POWERS}, {said}: {listing(names, SHOWN)}"
    yield from _turned(path, codes, tensors)
    whole = {form: end for form, one in codes.by_form().items() if (end := _whole_scale(one, tensors))}
    for scale in dict.fromkeys(whole.values()):
        names = [one.name for one in codes.tensors if whole.get(one.form) == scale]
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        is_of_activations = ACTIVATION.fullmatch(scale.partition(" ")[0]) is not None
        why = (
            "although scales of activations are fractions"
            if is_of_activations
            else "from which no weights can be decoded"
        )
        kind = NoteKind.QUANTISATION if is_of_activations else NoteKind.BROKEN_CODES
        yield Note(kind, f"{escape(path)}: {has} integers as {scale}, {why}: {listing(names, SHOWN)}")
    for one in odd_ones(codes, tensors, settings):
        has = f"{count(len(one.names), 'quantised tensor')} {'has' if len(one.names) == 1 else 'have'}"
        like = f"but {count(one.others, 'similar tensor')} {'has' if one.others == 1 else 'have'} {escape(one.usual)}"
        yield f"{escape(path)}: {has} {escape(one.found)}, {like}: {listing(one.names, SHOWN)}"


def _cast_parts(path: str, codes: QuantisedTensors, tensors: Tensors) -> Iterator[Note]:
    """Yield a note for each kind of part whose dtype loaders do not accept, as after a cast of all tensors."""
    cast = {form: said for form, one in codes.by_form().items() if (said := [*_casts(one, tensors)])}
    found: dict[str, list[str]] = {}
    for one in codes.tensors if cast else ():
        for what in cast.get(one.form, ()):
            found.setdefault(what, []).append(one.name)
    for what, names in found.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        kind = NoteKind.BROKEN_CODES if what.startswith(SHAPE[1:]) else NoteKind.QUANTISATION
        yield Note(kind, f"{escape(path)}: {has} {what}: {listing(names, SHOWN)}")


def _casts(one: QuantisedTensor, tensors: Tensors) -> Iterator[str]:
    """Yield a text for each part of a quantised tensor whose dtype loaders do not accept.

    With double quantisation, the scales (``absmax``) of 4-bit weights of bitsandbytes are codes, of the dtype uint8.
    """
    wanted = {SCB: ("bitsandbytes", ("float32",)), SHAPE: ("compressed-tensors", ("int64", "int32"))}
    if "bitsandbytes" in one.method:
        wanted |= dict.fromkeys(TABLES, ("bitsandbytes", ("float32",)))
        wanted[ABSMAX] = ("bitsandbytes", ("uint8",) if NESTED in one.parts else ("float32", "uint8"))
    if is_mlx_of_signed(one, tensors):
        yield "codes in int32, but MLX accepts only uint32"
    for end, (program, dtypes) in wanted.items():
        dtype = tensors[one.parts[end]].dtype if end in one.parts else ""
        if dtype and dtype not in dtypes:
            yield f"{end[1:]} in {dtype}, but {program} accepts only {' or '.join(dtypes)}"


def _nvfp4_scales(path: str, codes: QuantisedTensors, tensors: Tensors, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on nvfp4 tensors whose scales have a dtype that loaders do not accept, or an unusual dtype."""
    found: dict[str, list[str]] = {}
    for name, end, dtype, usual in wrong_nvfp4_scales(codes, tensors, settings):
        found.setdefault(f"{end[1:]} in {dtype}, but {usual}", []).append(name)
    for what, names in found.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        yield f"{escape(path)}: {has} {what}: {listing(names, SHOWN)}"


@notes_of(NoteKind.BROKEN_CODES)
def _turned(path: str, codes: QuantisedTensors, tensors: Tensors) -> Iterator[str]:
    """Yield a note on experts of gpt-oss whose codes have another number of outputs than their bias.

    Codes have the shape (experts, out, blocks, 16). Before packing, the matrix (experts, in, out) has to be transposed;
    if this was forgotten, the codes have the shape (experts, in, blocks, 16).
    """
    found: dict[str, list[str]] = {}
    for one in codes.tensors:
        bias = tensors.get(f"{one.name}{OSS_BIAS}") if OSS_CODES in one.parts else None
        shape = tensors[one.codes].shape if bias is not None and one.codes else ()
        if bias is None or len(shape) != 4 or len(bias.shape) != 2 or shape[1] == bias.shape[1]:
            continue
        turned = 32 * shape[2] == bias.shape[1]
        why = f"the codes have {count(shape[1], 'row')}, the bias {count(bias.shape[1], 'value')}"
        found.setdefault(f"{why}{': packed without the transpose' if turned else ''}", []).append(one.name)
    for why, names in found.items():
        fit = f"{count(len(names), 'quantised tensor')} {'does' if len(names) == 1 else 'do'} not fit the bias"
        yield f"{escape(path)}: {fit} ({why}): {listing(names, SHOWN)}"


def _is_of_powers(ending: str, info: TensorInfo) -> bool:
    """Return whether a part is a scale of gpt-oss's mxfp4 whose dtype is float8_e8m0fnu instead of uint8.

    ``ending`` is the ending of the part's key. The bytes of such a scale are right. But ``Mxfp4HfQuantizer`` of
    transformers would convert the values to uint8, which gives other bytes.
    """
    return ending.endswith(OSS_SCALES) and info.dtype == POWERS


def _whole_scale(one: QuantisedTensor, tensors: Tensors) -> str:
    """Return the name and dtype of a scale that is stored as integers of more than 8 bits; "" if there is none.

    An example is "weight_scale (int32)".
    """
    parts = ((end, tensors[key].dtype) for end, key in one.parts.items() if end != PACKED)
    ends = (end for end, dtype in parts if "scale" in end and dtype in INTEGERS)
    return next((f"{end.rpartition('.')[2].strip('_')} ({tensors[one.parts[end]].dtype})" for end in ends), "")


def incomplete(path: str, found: Sequence[IncompleteTensors]) -> Iterator[Note]:
    """Yield notes on parts, such as scales, that some quantised tensors lack, although similar tensors have them.

    If the same tensors lack several parts, there is one note on all these parts.
    """
    parts: dict[tuple[tuple[str, ...], int, int], list[str]] = {}
    for one in found:
        parts.setdefault((tuple(one.names), one.others, one.block), []).append(escape(one.part))
    for (names, others, block), lost in parts.items():
        number, is_one = count(len(names), "quantised tensor"), len(names) == 1
        like = f"{count(others, 'similar tensor')} {'has' if others == 1 else 'have'}"
        has = f"{'lacks' if is_one else 'lack'} {together(lost)}, which {like}"
        if block:
            has = f"{'has' if is_one else 'have'} too few or too many values in {together(lost)} for blocks of {block}"
            has += f", the block size of {count(others, 'similar tensor')}" if others else ""
        kind = NoteKind.BROKEN_CODES if block or not all(map(ACTIVATION.search, lost)) else NoteKind.QUANTISATION
        yield Note(kind, f"{escape(path)}: {number} {has}: {listing(names, SHOWN)}")


def _scaleless(
    path: str, codes: QuantisedTensors, settings: Mapping[str, Any], elsewhere: Sequence[str]
) -> Iterator[str]:
    """Yield a note if no quantised tensor has scales, although the quantisation method in the settings needs scales."""
    method = stores_codes(settings)
    names = [one.name for one in codes.tensors if one.method.endswith(NO_SCALES)]
    if method and len(names) == len(codes.tensors) and names and not elsewhere:
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'} no scales"
        said = f"although the quant_method {escape(method)} in its quantization_config needs scales"
        yield f"{escape(path)}: {has}, {said}: {listing(names, SHOWN)}"
