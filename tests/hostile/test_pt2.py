"""Archives of torch.export that break a rule of the format."""

from __future__ import annotations

from typing import Any

from tests.formats.exported.test_pt2 import HOSTILE

from ..promises.clauses import EXPORT
from .case import all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("pt2 version"): ("another format", "another version"),
    unsafe("several roots"): ("two roots",),
    broken("no state dict"): ("no program", "compiled alone", "weights that are a list", "old weights that are a tensor"),
    broken("missing record"): ("a program without weights", "a record that is missing", "a path that leads out", "old weights that are missing"),
    broken("pt2 config"): ("a configuration that is a list", "a configuration without tensors", "a configuration that is cut", "a configuration nested too deeply", "a tensor twice", "a description that is a number", "no use_pickle", "a path that is a number", "two dtypes of one record", "compiled weights that are a list", "a compiled weight that is a text", "a compiled weight that is a dict"),
    broken("tensor dtype"): ("no metadata", "an unknown dtype", "a dtype that is a text", "a dtype that is true"),
    broken("tensor size"): ("sizes that are a number", "a size that is a name", "a negative size", "a size that is true", "sizes whose product overflows", "100,000 dimensions", "a compiled weight with a shape that is a number"),
    broken("tensor stride"): ("a negative stride", "too few strides"),
    broken("tensor beyond storage"): ("2^62 elements", "beyond the record", "an offset beyond the record", "a compiled weight beyond its tensor"),
    broken("tensor offset"): ("a negative offset", "an offset that is a name"),
    unsafe("tensor expansion"): ("terabytes of strides of 0",),
    broken("storage size"): ("half an element",),
    broken("compressed record"): ("compressed",),
    broken("byteorder"): ("another byte order",),
    broken("zip end"): ("a pickled tensor that is no archive", "weights that are cut", "old weights that are cut"),
}  # fmt: skip

CASES = by_refusal(EXPORT, RULES, lambda name: written("x.pt2", HOSTILE[name]))


@each(CASES, costly=["100,000 dimensions"])
def test_a_broken_archive_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_archive_has_a_case() -> None:
    assert all_named(CASES, HOSTILE)
