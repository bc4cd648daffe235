"""Checks that the weights of all layers together have a usual size: outputs are about as large as inputs.

A layer multiplies the size of its inputs by about the root mean square of its weights, times the square root of the
number of its inputs. In trained and in new networks, the median of this factor over all layers is between about 0.1 and
30.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import isfinite, prod

from ....tensors.odd_scales.kinds import EXPLAIN, NO_OFFSET
from ....tensors.odd_scales.shifted import (
    LEANING,
    OFF_BY_ONE,
    ONE_OFF,
    ONE_STEP,
    SHIFTED,
    UNCENTRED,
    UNCLEAR,
    WRONG_OFFSETS,
    one_off_names,
    shifted_names,
    uncentred_names,
)
from ....tensors.odd_scales.sizes import DECODED, FEWEST, INVERSE, LARGE, OF_SIZES, SMALL, USUAL
from ....util.text import count, escape
from ..check import Check, of_keys
from ..note_findings import noted
from ..report import Found, Status
from ..subject import Subject, WeightSize
from .scales import CHECK as OF_SCALES
from .value_family import median

__all__ = ["CHECK"]

ID = "weight-size"
PLAIN = (0.003, 100.0)
"""The smallest and the largest plausible median factor of weights that are not quantised.

For weights that are decoded, the bounds are ``DECODED``. Plain weights may be smaller, because norms make up for it.
"""
NEAR, BESIDE = (0.1, 20.0), 20.0
"""If decoded weights are ``BESIDE`` times as large or small as the plain embeddings, the bounds are ``NEAR``."""
SCALES = (
    "Compare with the original (ckpt diff --values): the stored scales may be the inverse (1/scale) or the square of "
    "the right ones, or those of other weights."
)
TABLE = 30.0
"""An embedding is too small if its root mean square is this many times smaller than the median of the matrices, and
than that of an output layer of its own; an output layer is too large if it is this many times larger than both.

In most trained networks, all three are within a factor of 10. Embeddings may be larger: T5's are 1000 times as large.
"""
OTHER_TABLES = ("falcon_h1", "rwkv")
"""Model types with other sizes: RWKV's embeddings begin at 0.0001, Falcon-H1 multiplies its logits by 0.02."""
VALUES = "Compare with the original (ckpt diff --values): they may have been multiplied or divided by a number."
"""``SCALES`` is the advice for decoded weights, ``VALUES`` the advice for plain weights."""


def _run(subject: Subject) -> Iterator[Found]:
    decoded: Mapping[str, WeightSize] = {} if any(OF_SCALES.run(subject)) else subject.decoded  # reported there
    plain = _plain(subject)
    yield from _shifted(subject)
    if mislabelled := tuple(noted(subject, ID)):  # a wrong dtype explains the size of plain weights
        yield from mislabelled
        plain = {}
    for sizes, bounds, decode, todo in ((decoded, DECODED, "decode to", SCALES), (plain, PLAIN, "have", VALUES)):
        factor = _factor(sizes)
        low, high = NEAR if sizes is decoded and _contradict_embeddings(subject) else bounds
        if factor and not low <= factor <= high:
            what = f"{decode} weights that make outputs {factor:.2g} times as large as inputs (median)"
            odd = [name for name, one in sizes.items() if not low <= one.factor <= high]
            status = Status.FAIL if sizes is decoded else Status.WARN
            yield of_keys(status, odd, what, todo, factor=float(f"{factor:.3g}"))
        elif sizes is decoded and len(names := _inverse(subject)) * 2 > len(decoded) >= FEWEST:
            what = f"{_decode(names)} to weights that {OF_SIZES[INVERSE]}"
            yield of_keys(Status.FAIL, names, what, todo, factor=float(f"{factor:.3g}"))
    yield from _tables(subject)


def _tables(subject: Subject) -> Iterator[Found]:
    """Yield findings on embeddings that are far too small for the matrices of the layers, or heads far too large."""
    sizes = [one.rms for one in {**_plain(subject), **subject.decoded}.values() if one.rms > 0 and isfinite(one.rms)]
    if len(sizes) < FEWEST or subject.kind in OTHER_TABLES:
        return
    usual, tables = median(sizes), _sizes_of(subject, subject.embeddings)
    heads = {
        key: rms for key, rms in _sizes_of(subject, subject.heads).items() if rms not in tables.values()
    }  # not tied
    for key, rms in tables.items():
        if (times := min((usual, *heads.values())) / rms) > TABLE:
            yield _table(key, f"{times:.2g} times smaller", times)
    for key, rms in heads.items() if tables else ():
        if (times := rms / max(usual, *tables.values())) > TABLE:
            yield _table(key, f"{times:.2g} times larger", times)


def _sizes_of(subject: Subject, keys: Collection[str]) -> dict[str, float]:
    """Return {key: root mean square} of the matrices ``keys`` (embeddings, heads) that are not quantised.

    Matrices of zeros, and matrices with values that are not finite, are left out.
    """
    found = {key: subject.measured[key].figures for key in keys if key in subject.measured and key not in subject.parts}
    return {key: one.rms for key, one in found.items() if one is not None and one.rms > 0 and isfinite(one.rms)}


def _table(key: str, how: str, times: float) -> Found:
    what = f"{escape(key)} has values that are {how} than those of the other matrices"
    return Found(Status.WARN, what, VALUES, (key,), figures={"factor": float(f"{times:.3g}")})


def _shifted(subject: Subject) -> Iterator[Found]:
    """Yield findings on decoded weights whose means are far from 0, unless implausible scales explain this."""
    kinds = (*(kind for kind in EXPLAIN if kind != NO_OFFSET), *SHIFTED.values(), UNCENTRED, LEANING, ONE_OFF, UNCLEAR)
    names = {kind: subject.odd.get(kind, ()) for kind in kinds}
    shifted = shifted_names(names, len(subject.decoded))
    if shifted:
        todo = "Compare with the original, or (GPTQ) with the same model under the other checkpoint_format."
        yield of_keys(Status.FAIL, sorted(shifted), f"{_decode(shifted)} to weights that have {OFF_BY_ONE}", todo)
    if uncentred := uncentred_names(names, {*subject.decoded, *names[UNCENTRED]}) - shifted:
        todo = "Compare with the original (ckpt diff --values)."
        yield of_keys(
            Status.FAIL, sorted(uncentred), f"{_decode(uncentred)} to weights that have {WRONG_OFFSETS}", todo
        )
    if one_off := one_off_names(names, subject.decoded) - shifted - uncentred:
        todo = "Compare with the original (ckpt diff --values)."
        yield of_keys(Status.FAIL, sorted(one_off), f"{_decode(one_off)} to matrices that have {ONE_STEP}", todo)


def _decode(names: Collection[str]) -> str:
    return "decodes" if len(names) == 1 else "decode"


def _inverse(subject: Subject) -> list[str]:
    """Return the names of decoded weights that are too large because their scales seem to be stored as reciprocals."""
    others = {*subject.odd.get(USUAL, ()), *subject.odd.get(SMALL, ())}
    large = dict.fromkeys((*subject.odd.get(LARGE, ()), *subject.odd.get(INVERSE, ())))
    return [name for name in large if name not in others]


def _plain(subject: Subject) -> Mapping[str, WeightSize]:
    tables = {*subject.embeddings, *subject.heads}
    return {key: WeightSize(one.rms, prod(info.shape[1:])) for key, info, one in subject.weights if key not in tables}


def _factor(sizes: Mapping[str, WeightSize]) -> float:
    """Return the median factor by which layers change the size of their inputs.

    Layers whose root mean square is 0 or not finite are left out. Returns 0 if fewer than ``FEWEST`` layers are left.
    """
    found = [one.factor for one in sizes.values() if one.rms > 0 and isfinite(one.rms)]
    return median(found) if len(found) >= FEWEST else 0.0


def _contradict_embeddings(subject: Subject) -> bool:
    """Return whether decoded weights are far larger or smaller than the embeddings, which are not quantised."""
    sizes = _sizes_of(subject, subject.embeddings).values()
    weights = [one.rms for one in subject.decoded.values() if one.rms > 0]
    return bool(sizes and weights) and not 1 / BESIDE < median(weights) / max(sizes) < BESIDE


def _against(subject: Subject) -> str:
    sizes = max(len(subject.decoded), len(_plain(subject)))
    return "" if sizes >= FEWEST or any(noted(subject, ID)) else f"fewer than {FEWEST} weight matrices can be read"


def _looks_at(subject: Subject) -> str:
    return count(len(subject.decoded) + len(_plain(subject)), "matrix", "matrices")


CHECK = Check(ID, "weights are neither too large nor too small", _run, _against, _looks_at)
