"""safetensors files that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.test_safetensors import HOSTILE

from ..promises.clauses import SAFETENSORS
from .case import all_named, broken, by_refusal, each, written
from .holding import held

RULES = {
    broken("unknown format"): ("HeaderTooSmall", "HeaderTooLarge"),
    broken("InvalidHeaderLength"): ("InvalidHeaderLength",),
    broken("InvalidHeaderDeserialization"): ("InvalidHeader", "not json", "not an object in an object", "deep", "duplicate key", "missing field", "huge number", "half a character in a key", "half a character in the metadata", "metadata no text", "metadata no map"),
    broken("InvalidDtype"): ("unknown dtype", "dtype no text"),
    broken("InvalidShape"): ("negative size", "float size", "bool size", "too many dimensions"),
    broken("ValidationOverflow"): ("overflow", "overflow in front of a 0", "overflow behind a 0"),
    broken("TensorInvalidInfo"): ("too few bytes", "backwards"),
    broken("InvalidOffset"): ("beyond the end", "offsets beyond the file", "hole", "overlap", "twice the same bytes"),
    broken("MisalignedSlice"): ("half a row", "half a byte"),
    broken("MetadataIncompleteBuffer"): ("bytes left over",),
}  # fmt: skip

CASES = by_refusal(SAFETENSORS, RULES, lambda name: written("x.safetensors", HOSTILE[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
