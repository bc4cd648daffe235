"""Files from before torch 1.6, and the tar archives from before 0.1.10."""

from __future__ import annotations

from typing import Any

from tests.formats.test_torch_legacy import BROKEN
from tests.formats.test_torch_tar import BROKEN as BROKEN_TARS
from tests.helpers.tar_files import archive, parts

from ..promises.clauses import LEGACY
from .case import Case, all_named, broken, by_refusal, each, unsafe, written
from .holding import held

RULES = {
    broken("legacy"): ("cut in a storage", "bytes behind", "a storage nobody lists", "a storage nobody uses", "keys that are no list", "twice the same key", "a storage declared in two ways"),
    broken("pickle"): ("cut before the keys", "only the magic number"),
    broken("storage size"): ("another count",),
    broken("legacy view"): ("a view beyond", "a view that is no view"),
    broken("persistent id"): ("a negative count", "an unknown persistent id"),
    broken("tensor beyond storage"): ("a tensor beyond",),
    broken("legacy protocol"): ("an unknown protocol",),
}  # fmt: skip

CASES = by_refusal(LEGACY, RULES, lambda name: written("x.pt", BROKEN[name]))


@each(CASES)
def test_a_broken_file_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_file_has_a_case() -> None:
    assert all_named(CASES, BROKEN)


TARS = [
    Case(
        f"a tar archive: {name}",
        LEGACY,
        (unsafe if rule in ("tensors", "tar name") else broken)(rule),
        lambda make=make: written("x.pt", make())(),
    )
    for name, (rule, make) in BROKEN_TARS.items()
]


@each(TARS)
def test_a_broken_tar_archive_is_refused_and_never_unpacked(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


@each(
    [Case("a compressed tar archive", LEGACY, broken("unknown format"), written("x.pt", archive(parts(), mode="w:gz")))]
)
def test_a_compressed_archive_is_named(case: Any, ckpt: Any) -> None:
    held(case, ckpt)
