"""Files from before torch 1.6, and the tar archives from before those, which are not read."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from tests.formats.test_torch_legacy import BROKEN

from ..promises.clauses import LEGACY
from .case import Case, all_named, broken, by_refusal, each, written
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


def tar(*members: tarfile.TarInfo, mode: Any = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    made.size = 8 if kind == tarfile.REGTYPE else 0
    return made


TARS = {
    "a tar archive as torch wrote": tar(member("sys_info"), member("pickle"), member("storages"), member("tensors")),
    "a tar archive with dots": tar(member("../evil")),
    "a tar archive with an absolute name": tar(member("/tmp/evil")),
    "a tar archive with a link outside": tar(member("storages", tarfile.SYMTYPE, "/etc"), member("storages/evil")),
    "a tar archive with a hard link outside": tar(member("pickle", tarfile.LNKTYPE, "../secret")),
    "a tar archive with a device": tar(member("pickle", tarfile.CHRTYPE)),
    "a compressed tar archive": tar(member("pickle"), mode="w:gz"),
}


@each([Case(name, LEGACY, broken("unknown format"), written("x.pt", data)) for name, data in TARS.items()])
def test_a_tar_archive_is_named_and_never_unpacked(case: Any, ckpt: Any) -> None:
    held(case, ckpt)
