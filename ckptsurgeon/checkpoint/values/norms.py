"""Makes notes on the weights of norms (LayerNorm, RMSNorm) that are around 0, or lack the 1 that a model adds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from operator import mul

from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import NUMBER_IN_KEY, count, listing
from .samples import NORM, SmallSample

__all__ = [
    "AROUND_ZERO",
    "BIAS",
    "MOSTLY",
    "OF_ONE_SIGN",
    "WITHOUT_ONE",
    "around_zero_notes",
    "norms_around_zero",
    "unlike_layer_notes",
    "without_one_notes",
]

Weights = Mapping[str, Sequence[float]]
OF_ONE_SIGN, AROUND_ZERO = 0.8, 0.3
"""Values of a norm are about equal if |mean| / root mean square is above ``OF_ONE_SIGN``.

They are around 0, like the values of a matrix, if it is below ``AROUND_ZERO``.
"""
FEWEST, MOSTLY = 3, 3 / 4
"""A norm or bias is wrong if at least ``FEWEST`` other layers, and the share ``MOSTLY`` of all, are unlike it."""
FEW, SHARE, ALIKE = 2, 1 / 3, 3
"""It is enough that ``FEW`` other layers, and the share ``SHARE`` of all, have about equal values in their norm.

The means of these layers may differ by at most the factor ``ALIKE``. There is a note only if at least ``FEW`` norms are
around 0.
"""
NEGATIVE, ABOVE = 0.2, 0.97
"""A norm may lack the 1 that is added to it if at least the share ``NEGATIVE`` of its values is negative.

At least the share ``ABOVE`` must be above -1: in trained networks, hardly any weight 1 + w of a norm is negative.
"""
FEWEST_NORMS, FIRST = 4, 256
"""A model with fewer than ``FEWEST_NORMS`` norms gets no note; at most ``FIRST`` values of each norm are looked at."""
WITHOUT_ONE = "perhaps the 1 was not added to them (Gemma's norms add 1), or they are differences between two models"
ADDS_ONE = frozenset((
    "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "nemotron", "paligemma", "qwen3_5",
    "qwen3_next", "recurrent_gemma", "shieldgemma2", "t5gemma", "vaultgemma",
))  # fmt: skip
"""Each known ``model_type`` of transformers whose norms multiply by 1 + w, where w is the stored weight."""
TINY, HUGE = 1e-30, 1e30
"""Norms whose largest value is outside this range are not looked at: squares would become 0 or infinite."""
TIMES_WEIGHT = frozenset((
    "deepseek_v2", "deepseek_v3", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "smollm3",
))  # fmt: skip
"""Model types of transformers whose RMSNorm multiplies by the stored weight w, and whose w is near 1 in all layers.

The norms of Gemma, Qwen3-Next and Nemotron multiply by 1 + w instead.
"""
TIMES_WEIGHT_IN_GGUF = frozenset((
    "deepseek2", "gemma", "gemma2", "gemma3", "granite", "llama", "olmo2", "phi3", "qwen2", "qwen2moe", "qwen3",
    "qwen3moe", "qwen3next", "smollm3",
))  # fmt: skip
"""Architectures of llama.cpp with RMSNorm. llama.cpp always multiplies by the stored weight: its converter adds 1 to
the weights of Gemma, Gemma 2, Gemma 3 and Qwen3-Next (``convert_hf_to_gguf.py``)."""


@notes_of(NoteKind.REMARK)
def around_zero_notes(weights: Weights, kind: str) -> Iterator[str]:
    """Yield a note if norms of some layers have values around 0, but the same norms of other layers do not.

    ``kind`` is the ``model_type`` of transformers; "" for llama.cpp, which always multiplies by the stored weights.
    """
    some = {key: values[:FIRST] for key, values in weights.items() if TINY < _largest(values[:FIRST]) < HUGE}
    odd = norms_around_zero({key: _figures(values) for key, values in some.items()}, kind)
    if odd:
        has = "has" if len(odd) == 1 else "have"
        yield (
            f"{count(len(odd), 'norm')} {has} values around 0, but in other layers such norms have "
            f"about equal values: perhaps the bytes are those of other tensors: {listing(odd)}"
        )


def _largest(values: Sequence[float]) -> float:
    return max(map(abs, values))


def _figures(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the root mean square of the values of a norm.

    A few huge weights of a sound norm can make the root mean square far larger than the mean. So if the values seem to
    be around 0, the largest hundredth of them is left out.
    """
    mean, rms = sum(values) / len(values), sqrt(sum(map(mul, values, values)) / len(values))
    if abs(mean) >= AROUND_ZERO * rms:
        return mean, rms
    most = sorted(values, key=abs)[: -(-99 * len(values) // 100)]
    rms = sqrt(sum(map(mul, most, most)) / len(most))
    return sum(most) / len(most), rms or 1.0


def norms_around_zero(figures: Mapping[str, tuple[float, float]], kind: str = "") -> list[str]:
    """Return the keys of norms with values around 0, if the same norms of other layers have no such values.

    ``figures`` has the mean and the root mean square (above 0) of each norm, by key, in the order of the layers. The
    result is empty if models of the type ``kind`` add 1 to the weights of norms, so that these may be around 0.
    """
    if kind in ADDS_ONE:
        return []
    roles: dict[str, list[str]] = defaultdict(list)
    for key in figures:
        roles[NUMBER_IN_KEY.sub("#", key)].append(key)
    sure, likely = list[str](), list[str]()
    for keys in roles.values():
        keys.sort(key=lambda key: [int(one) for one in NUMBER_IN_KEY.findall(key)])
        ratios = {key: abs(figures[key][0]) / figures[key][1] for key in keys}
        even = [key for key in keys if ratios[key] > OF_ONE_SIGN]
        odd = [key for key in keys if ratios[key] < AROUND_ZERO]
        means = sorted(figures[key][0] for key in even)
        have_one_sign = bool(even) and means[0] * means[-1] > 0  # means that cross 0 from layer to layer are sound
        are_alike = have_one_sign and max(map(abs, means)) <= ALIKE * min(map(abs, means))
        if odd and have_one_sign and len(even) >= max(FEWEST, MOSTLY * len(keys)):
            sure += odd if are_alike else _between(keys, even, odd)
        elif are_alike and len(even) >= max(FEW, SHARE * len(keys)) and len(even) + len(odd) >= MOSTLY * len(keys):
            likely += odd
    return [*sure, *likely] if len(sure) + len(likely) >= FEW else sure


def _between(keys: Sequence[str], even: Sequence[str], odd: Sequence[str]) -> list[str]:
    """Return the keys of ``odd`` that are between the first and the last key of ``even``, in the order of ``keys``.

    In some models, such as Llama, the means of a role begin near 0 and grow with depth. So the first or the last norms
    may be around 0.
    """
    first, last = keys.index(even[0]), keys.index(even[-1])
    return [key for key in odd if first < keys.index(key) < last]


@notes_of(NoteKind.LACKING_ONE)
def without_one_notes(weights: Weights, kind: str, *, is_gguf: bool) -> Iterator[str]:
    """Yield a note if most norms have many negative weights, although the model does not add 1 to weights of norms.

    ``kind`` is the ``model_type`` of transformers; if ``is_gguf`` is true, it is the architecture of llama.cpp.
    """
    if kind not in (TIMES_WEIGHT_IN_GGUF if is_gguf else TIMES_WEIGHT):
        return
    some = {key: values[:FIRST] for key, values in weights.items() if any(values[:FIRST])}
    odd = [key for key, values in some.items() if sum(one < 0 for one in values) >= NEGATIVE * len(values)]
    above = [sum(one > -1 for one in some[key]) / len(some[key]) for key in odd]
    if len(some) >= FEWEST_NORMS and 2 * len(odd) > len(some) and min(above) >= ABOVE:
        program = "llama.cpp" if is_gguf else f"a model of the type {kind}"
        yield (
            f"{len(odd)} of {len(some)} norms have many negative weights, although {program} multiplies by these "
            f"weights: {WITHOUT_ONE}: {listing(odd)}"
        )


BIAS = re.compile(r"[._/](?:bias|beta)$")
"""Matches the ends of the keys of biases."""


@notes_of(NoteKind.REMARK)
def unlike_layer_notes(sample: SmallSample, *, are_zeros_said: bool = False) -> Iterator[str]:
    """Yield a note on norms and biases in a sample that are all zeros, although they are not zeros in other layers.

    If ``are_zeros_said`` is true, another note already says that a part of the file is zeros: then there is no note
    here.
    """
    roles: dict[str, list[str]] = defaultdict(list)
    for key in sample.raw:
        if NORM.search(key) or BIAS.search(key):
            roles[NUMBER_IN_KEY.sub("#", key)].append(key)
    zeros = list[str]()
    for keys in roles.values():
        if len(keys) <= FEWEST:
            continue
        empty = [key for key in keys if not any(sample.raw[key])]
        if len(keys) - len(empty) >= max(FEWEST, MOSTLY * len(keys)):
            zeros += empty
    if zeros and not are_zeros_said:
        are = "is" if len(zeros) == 1 else "are"
        yield (
            f"{count(len(zeros), 'norm or bias', 'norms or biases')} {are} all zeros, unlike the same tensor of other "
            f"layers: {listing(zeros)}"
        )
