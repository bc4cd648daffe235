"""Checks that the scales of quantised tensors are finite, not zero, not negative, and not too large for weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ....tensors.decoders._scale_tests import are_exchanged
from ....tensors.dtypes import DTYPES
from ....tensors.encodings.ctranslate2 import SCALE as CTRANSLATE2
from ....tensors.odd_scales.averaged_words import AVERAGED, averaged_names
from ....tensors.odd_scales.group_codes import LOST_ZEROS, UNFIT_ZEROS, lost_zero_points, unfit_zero_points
from ....tensors.odd_scales.group_ends import MOVED, ROUNDED_UP, moved_codes, rounded_scales
from ....tensors.odd_scales.kinds import (
    BELOW,
    CLIPPED,
    EXPLAIN,
    NARROW,
    NEGATED,
    NEGATIVE,
    NESTED,
    OPPOSED,
    ROUNDED,
    SAID,
    SIGNED_CODES,
)
from ....tensors.odd_scales.stray_signs import STRAY, stray_signs
from ....tensors.quantised.unlike import is_number
from ....util.note_kind import NoteKind
from ....util.text import count, natural_key
from ..check import Check, of_keys
from ..measuring.byte_scales import EXPONENTS
from ..measuring.figures import Figures
from ..report import Found, Status
from ..subject import Subject
from ..tensor_roles import is_scale
from ._fnuz_codes import perhaps_fnuz
from ._fused_scales import APART, shared_by_fused, unlike_fused

__all__ = ["CHECK", "is_global_or_activation", "is_global_weight_scale", "scales_of"]

_GLOBAL = re.compile(r"global|input|output|act|scale_2|[kv]_scale|smooth|descale", re.IGNORECASE)
"""Matches parts of the keys of scales of whole tensors and of activations, which may have any size."""
HUGE = 1e6
"""The largest plausible scale: larger ones cannot give usable weights."""
LARGE = 1e4
"""The largest plausible weight: scales that give larger weights are perhaps inverse, or belong to another layer."""
WITH_RANGE = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "int8")
"""Dtypes of codes that decoding does not normalise: a weight is the product of its code and its scale.

In other encodings, a scale is multiplied by at most about 1 or 8, whatever the code.
"""
FP4, DIVISOR = 6.0, "weight_global_scale"
"""The largest 4-bit float, and the ending of the keys of global scales by which codes are divided, not multiplied."""
LARGEST_CODE = 128.0
"""The largest 8-bit code; it is assumed for torch's own quantised tensors, whose codes are not measured."""
SMALLEST = 2.0**-127
"""The smallest scale that is stored as an exponent; blocks of zeros have it."""
SIGNED = ("MLX", "q4_0", "q5_0", "q3_k", "q6_k", "iq")
"""Encodings whose scales may be negative."""
MIXED = re.compile(r"GPTQ|AWQ|int\d|packed", re.IGNORECASE)
"""Encodings of integers that may come from AutoRound, which makes about half of the scales negative."""
ODD = (NEGATIVE, NEGATED, OPPOSED, NARROW, NESTED, SIGNED_CODES, CLIPPED, BELOW)
"""Kinds of implausible scales that only the decoded weights show, not the scales themselves."""
DECODE = (
    "Copy these tensors from the quantised model again, or quantise the model again: the codes decode to "
    "unusable values."
)

RECODE = "Copy the file from where it was made; if it has these codes there, quantise the model again."
FNUZ = "If so, quantise the model again; halving the scales is enough if no code is NaN under the stated dtype."


def _run(subject: Subject) -> Iterator[Found]:
    found = {key: one for key, one in scales_of(subject) if not _is_beside_plain(subject, key)}
    mixed = _of_mixed_signs(subject, found)
    below = [key for key, one in found.items() if one.low < 0 and key not in mixed and not _is_signed(subject, key)]
    yield from _odd_figures(subject, found, below)
    yield from _of_fused(subject, found)
    fnuz, what = perhaps_fnuz(subject)
    if fnuz:
        yield of_keys(Status.WARN, fnuz, what, FNUZ)
    yield from _odd_weights(subject)
    named = {key.removesuffix(subject.parts.get(key, "")) for key in below}
    if wide := [key for key, bits in subject.code_bits.items() if _need_more_bits(subject, key, bits)]:
        what = f"of codes that need more bits than the quantization_config says ({_bits_of(subject, wide)})"
        yield of_keys(Status.FAIL, wide, what, DECODE)
    for some, said in (
        *((subject.odd.get(kind, ()), SAID[kind]) for kind in ODD),
        (sorted(stray_signs([subject.odd]), key=natural_key), STRAY),
    ):
        names = [one for one in some if one.removesuffix(".weight") not in named]
        if names:
            status = Status.WARN if said in (SAID[CLIPPED], SAID[BELOW]) else Status.FAIL
            todo = RECODE if said == SAID[BELOW] else "Check how these scales were computed."
            yield of_keys(status, names, f"with {said}", todo)


def _need_more_bits(subject: Subject, key: str, bits: int) -> bool:
    """Return whether a code of ``key`` does not fit in a signed integer of ``bits`` bits."""
    figures, limit = subject.measured[key].figures, 1 << bits - 1
    return figures is not None and figures.number > 0 and not -limit <= figures.low <= figures.high < limit


def _bits_of(subject: Subject, keys: Sequence[str]) -> str:
    return " or ".join(f"{bits} bits" for bits in sorted({subject.code_bits[key] for key in keys}))


def _odd_figures(subject: Subject, found: dict[str, Figures], below: list[str]) -> Iterator[Found]:
    """Yield findings about scales with impossible or implausible values: NaN, zeros, negative or far too large values.

    ``found`` has the figures of all scales, ``below`` the keys of scales that are negative by mistake.
    """
    broken = [key for key, one in found.items() if one.nan or one.inf]
    zero = [key for key, one in found.items() if one.number and one.low == one.high == 0 and _has_codes(subject, key)]
    huge = [key for key, one in found.items() if one.largest > HUGE and _multiplies_rows(subject, key)]
    large = [key for key, one in found.items() if key not in huge and _makes_large_weights(subject, key, one)]
    some = [key for key, one in found.items() if one.zeros and key not in zero and not one.nan]
    exchanged = [key for key, one in found.items() if _is_exchanged(subject, key, one)]
    for keys, status, what, todo in (
        (broken, Status.FAIL, "of scales with NaN or infinities", DECODE),
        (zero, Status.FAIL, "of scales that are all zero", DECODE),
        (huge, Status.FAIL, f"of scales above {HUGE:g}", DECODE),
        (
            large,
            Status.FAIL,
            f"of scales that make weights above {LARGE:,.0f}: perhaps they are inverse scales",
            DECODE,
        ),
        (below, Status.FAIL, "of scales with negative values", "Check how these scales were computed."),
        (
            exchanged,
            Status.FAIL,
            "of scales that are larger than the biases of the same weight: perhaps scales and biases are swapped",
            "Swap scales and biases, or copy these tensors from the original again.",
        ),
        (
            some,
            Status.WARN,
            "of scales with zeros",
            "A scale of zero makes all weights of its group zero: compare them with the original.",
        ),
    ):
        if keys:
            yield of_keys(status, keys, what, todo, values=_number(keys, found))


def _of_fused(subject: Subject, found: Mapping[str, Figures]) -> Iterator[Found]:
    """Yield findings on the scales of modules that vLLM fuses into one."""
    fused = unlike_fused(subject, {key: one for key, one in found.items() if is_global_weight_scale(subject, key)})
    if fused:
        what = (
            f"of global scales that differ by a factor of over {APART} between modules that vLLM fuses into one, with "
            "a single global scale"
        )
        yield of_keys(
            Status.WARN, fused, what, "Quantise again, with one global scale for q, k and v, and one for gate and up."
        )
    own = {key: one for key, one in found.items() if not is_global_or_activation(subject, key)}
    if shared := shared_by_fused(subject, own):
        what = (
            "of equal scales in modules that vLLM fuses, although the codes of each weight reach the largest code, as "
            "with separate scales: perhaps the scales were made equal, but the weights were not quantised again"
        )
        yield of_keys(Status.WARN, shared, what, DECODE)


def _odd_weights(subject: Subject) -> Iterator[Found]:
    """Yield findings on decoded weights whose codes were rounded, averaged or moved, or whose zero points are wrong."""
    if rounded := subject.odd.get(ROUNDED):
        yield of_keys(Status.FAIL, [*rounded], f"with {SAID[ROUNDED]}", DECODE)
    if averaged := averaged_names([subject.odd]):
        yield of_keys(Status.WARN, sorted(averaged, key=natural_key), f"with {AVERAGED}", NoteKind.AVERAGED_CODES.todo)
    if lost := lost_zero_points(subject.odd):
        yield of_keys(Status.FAIL, sorted(lost, key=natural_key), f"with {LOST_ZEROS}", DECODE)
    for some_names, said in ((moved_codes([subject.odd]), MOVED), (rounded_scales([subject.odd]), ROUNDED_UP)):
        if some_names:
            yield of_keys(Status.FAIL, sorted(some_names, key=natural_key), f"with {said}", DECODE)
    if unfit := unfit_zero_points(subject.odd, [averaged, *(subject.odd.get(kind, ()) for kind in EXPLAIN)]):
        yield of_keys(Status.FAIL, sorted(unfit, key=natural_key), f"with {UNFIT_ZEROS}", DECODE)


def _has_codes(subject: Subject, key: str) -> bool:
    """Return whether any code that belongs to the scales ``key`` is not zero; only then are scales of zero a fault.

    The result is True if the codes were not measured. It is False for blocks of GGUF, which contain their scales.
    """
    if _is_of_blocks(subject, key):
        return False
    codes = [subject.measured[one].figures for one in _codes_of(subject, key)]
    return not codes or any(one is None or one.zeros < one.number for one in codes)


def _is_beside_plain(subject: Subject, key: str) -> bool:
    """Return whether the weight of the scales ``key`` is not quantised, so that no loader uses these scales.

    transformers saves such scales with any values if it could not quantise a weight (``FineGrainedFP8Config``).
    """
    end = subject.parts.get(key, "")
    weight = f"{key.removesuffix(end)}.weight"
    info = subject.tensors.get(weight) if end.startswith(".weight") and weight not in subject.parts else None
    return info is not None and is_number(info)


def _codes_of(subject: Subject, key: str) -> list[str]:
    """Return the keys of the codes to which the scales ``key`` belong."""
    return [one for one in _beside(subject, key).values() if one in subject.codes and one in subject.measured]


def _beside(subject: Subject, key: str) -> Mapping[str, str]:
    """Return {ending: key} of all parts of the quantised weight to which the scales ``key`` belong."""
    return subject.by_weight.get(key.removesuffix(subject.parts.get(key, "")), {})


def _makes_large_weights(subject: Subject, key: str, scales: Figures) -> bool:
    """Return whether the largest weight that the scales ``key`` can encode is above ``LARGE``.

    It is the largest scale times the largest code. The scale of a whole weight (NVFP4) is also multiplied by the
    largest scale of the weight's blocks. If codes are divided by the scale of the whole weight, its inverse is used.
    CTranslate2 divides codes by the scales of rows.
    """
    if _is_of_blocks(subject, key):
        return False
    if is_global_weight_scale(subject, key):
        blocks = subject.measured.get(_beside(subject, key).get(".weight_scale", ""))
        own = 1 / scales.high if subject.parts[key].endswith(DIVISOR) and scales.high else scales.high
        return blocks is not None and blocks.figures is not None and own * blocks.figures.largest * FP4 > LARGE
    if is_global_or_activation(subject, key):
        return False
    if subject.parts.get(key) == CTRANSLATE2:
        codes = {subject.tensors[one].dtype for one in _codes_of(subject, key)}
        largest = 1 << 15 if codes == {"int16"} else LARGEST_CODE
        return scales.low > 0 and largest / scales.low > LARGE
    largest = LARGEST_CODE if key in subject.pickled_scales else 1.0
    if not subject.parts.get(key, "").endswith("SCB"):  # bitsandbytes: the scale is the row's largest weight
        for one in _codes_of(subject, key):
            figures = subject.measured[one].figures
            if figures is not None and subject.tensors[one].dtype in WITH_RANGE:
                largest = max(largest, figures.largest)
    return scales.largest * largest > LARGE


def _number(keys: list[str], found: dict[str, Figures]) -> int:
    return sum(found[key].number + found[key].nan + found[key].inf for key in keys)


def scales_of(subject: Subject) -> Iterator[tuple[str, Figures]]:
    """Yield (key, figures of the scales) for each tensor that consists of scales, or is stored together with scales."""
    yield from subject.pickled_scales.items()
    for key, one in subject.measured.items():
        if one.figures is None or not (one.is_of_scales or is_scale(subject.parts.get(key, ""))):
            continue
        if one.dtype == EXPONENTS:
            yield key, _of_exponents(one.figures)
        elif one.is_of_scales or DTYPES[one.dtype].kind == "float":
            yield key, one.figures


def _of_exponents(one: Figures) -> Figures:
    """Return ``one``, the figures of scales stored as exponents, with 0 for an extreme that is ``SMALLEST``.

    A scale of ``SMALLEST`` belongs to a block of zeros.
    """
    low, high = (0.0 if value == SMALLEST else value for value in (one.low, one.high))
    return replace(one, low=low, high=high, total=one.total if high else 0.0)


def is_global_or_activation(subject: Subject, key: str) -> bool:
    """Return whether ``key`` has the scales of a whole tensor or of activations, which may have any magnitude."""
    return _GLOBAL.search(subject.parts.get(key, "")) is not None


def _multiplies_rows(subject: Subject, key: str) -> bool:
    """Return whether ``key`` has scales of rows or blocks by which codes are multiplied, not divided."""
    return not is_global_or_activation(subject, key) and subject.parts.get(key) != CTRANSLATE2


def is_global_weight_scale(subject: Subject, key: str) -> bool:
    """Return whether ``key`` has the scale of a whole weight: of any magnitude, but similar in all layers."""
    return subject.parts.get(key, "").endswith(("weight_global_scale", "weight_scale_2"))


def _is_signed(subject: Subject, key: str) -> bool:
    said = subject.methods.get(key, subject.tensors[key].dtype)
    return _is_of_blocks(subject, key) or any(word in said for word in SIGNED)


def _of_mixed_signs(subject: Subject, found: Mapping[str, Figures]) -> set[str]:
    """Return the keys of scales of integer codes of which some are positive and some are negative.

    AutoRound makes such scales. If only a few tensors have them, the result is empty, so that their negative scales are
    reported. ``found`` has the figures of all scales, by key.
    """
    whole = [key for key in found if MIXED.search(subject.methods.get(key, ""))]
    mixed = {key for key in whole if found[key].low < 0 < found[key].high}
    return mixed if len(mixed) * 2 > len(whole) else set()


def _is_exchanged(subject: Subject, key: str, scales: Figures) -> bool:
    """Return whether the scales ``key`` and the biases of the same MLX tensor seem to have been swapped.

    Tensors with 1-bit codes are not checked.
    """
    biases = subject.measured.get(_beside(subject, key).get(".biases", ""))
    if subject.parts.get(key) != ".scales" or biases is None or biases.figures is None or not scales.number:
        return False
    is_binary = "1 bit" in subject.methods.get(key, "")
    return not is_binary and are_exchanged(scales.low, scales.rms**2, biases.figures.rms**2)


def _is_of_blocks(subject: Subject, key: str) -> bool:
    """Return whether ``key`` is a tensor of GGUF codes, whose blocks contain their scales."""
    return key in subject.measured and subject.measured[key].is_of_scales


def _against(subject: Subject) -> str:
    return "" if any(True for _ in scales_of(subject)) else "no tensor is quantised with scales"


def _looks_at(subject: Subject) -> str:
    return count(sum(1 for _ in scales_of(subject)), "tensor") + " of scales"


CHECK = Check("scales", "scales of quantised tensors are finite and of a plausible size", _run, _against, _looks_at)
