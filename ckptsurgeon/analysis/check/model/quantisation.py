"""Checks that the quantisation settings describe the tensors, and that no part of a quantised tensor is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ....checkpoint.quantised_values import ORDERS, OUTSIDE, UNSET
from ..check import Check, of_keys
from ..note_kinds import CODES, noted
from ..report import Found, Status
from ..subject import Subject
from ._noted import damaged, unless_noted

__all__ = ["CHECK"]

ID = "quantisation"
UNSETTLED = "config.json has no quantization_config for"
ADVICE = (
    "Add the quantization_config of the model to config.json: without it, loaders use the codes as if they were "
    "weights."
)


def _run(subject: Subject) -> Iterator[Found]:
    for found in noted(subject, ID):
        yield _failed(found) if UNSETTLED in found.what and _has_float_codes(subject) else found
    if not any(OUTSIDE in note for note in subject.notes) and (keys := [*_orders_outside(subject)]):
        has = "has" if len(keys) == 1 else "have"
        yield of_keys(Status.FAIL, keys, f"{has} {OUTSIDE}", CODES)


def _orders_outside(subject: Subject) -> Iterator[str]:
    """Yield the keys of column orders (``g_idx`` of GPTQ) that contain the index of a group without scales.

    A ``weight_g_idx`` in which all indices are -1 is not used.
    """
    for parts in subject.by_weight.values():
        for end, scales, place in ORDERS.values():
            key, shape = parts.get(end, ""), subject.tensors[parts[scales]].shape if scales in parts else ()
            figures = subject.measured[key].figures if key in subject.measured and len(shape) == 2 else None
            is_unset = figures is not None and place == 1 and figures.low == figures.high == UNSET
            if figures is not None and not is_unset and (figures.low < 0 or figures.high >= shape[place]):
                yield key


def _failed(found: Found) -> Found:
    return replace(found, status=Status.FAIL, todo=ADVICE)


def _has_float_codes(subject: Subject) -> bool:
    """Return whether any codes are 8-bit floats.

    A loader may take such codes for weights, because they have the shape of the weights.
    """
    return any(subject.tensors[key].dtype.startswith("float8_") for key in subject.codes if key in subject.tensors)


CHECK = Check(ID, "quantised tensors are complete and as described", _run, unless_noted(ID, damaged))
