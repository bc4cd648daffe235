"""ONNX models that break a rule of the format, or point to other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.formats.exported.test_onnx import BESIDE, HOSTILE, ONES

from ..promises.clauses import ONNX
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("onnx graph"): ("magic alone", "no graph"),
    broken("cut short"): ("cut in a tensor", "cut behind the graph's length", "a length of 2^63", "an offset beyond a file", "an offset that is no number"),
    broken("protobuf"): ("a number of eleven bytes", "a field of type 3", "field 0", "numbers that are cut"),
    broken("onnx name"): ("no name",),
    broken("message text"): ("a name that is not text", "a name of 100,000 bytes"),
    broken("duplicate key"): ("a tensor twice",),
    broken("onnx type"): ("an unknown type", "type 0"),
    broken("tensor shape"): ("a negative size", "100 dimensions"),
    broken("tensor size"): ("2^60 elements", "sizes whose product overflows", "too few bytes", "too many bytes", "no bytes", "bytes in two pieces", "too few numbers", "another length"),
    broken("onnx values"): ("values in two fields", "floats for int64", "int64 for floats", "values here and there"),
    unsafe("outside"): ("a file outside", "a file with an absolute path", "a file with a backslash", "the model itself"),
    broken("missing shard"): ("a file that is missing",),
    broken("onnx external"): ("a file without a name",),
}  # fmt: skip


def beside(name: str) -> str:
    """The model, with the file that some of its tensors are in."""
    Path(BESIDE).write_bytes(ONES)
    return written("x.onnx", HOSTILE[name])()


CASES = by_refusal(ONNX, RULES, lambda name: lambda: beside(name))


@each(CASES)
def test_a_broken_model_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_model_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
