"""Archives that contradict themselves, and tensors in them that claim what they do not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ckptsurgeon as cs
from tests.formats import test_torch_zip as torch_zip
from tests.formats.zip import test_directory as by_hand
from tests.helpers.torch_files import rezipped

from ..helpers.pace import in_time
from ..promises.clauses import CHECKSUM, CLAIMS, ZIP_NAMES, ZIP_PACKED, ZIP_PLACES, clause
from .case import COPY, Case, all_named, broken, by_refusal, each, unsafe, written
from .holding import held, nothing_executed

RULES = {
    broken("zip end"): ("cut in the middle", "cut at the end", "bytes behind"),
    broken("unknown format"): ("bytes in front",),
    broken("zip64"): ("a prefix that only the directory knows",),
    unsafe("zip local header"): ("another local name", "another local size", "another local checksum", "another central name", "another central size", "no descriptor where one is announced"),
    unsafe("zip method"): ("unknown method",),
    unsafe("zip descriptor"): ("another central checksum", "a broken descriptor"),
    unsafe("zip overlap"): ("another central offset",),
    broken("zip encryption"): ("encrypted",),
    unsafe("zip duplicate"): ("twice the same name", "names that differ in case"),
    unsafe("several roots"): ("two roots",),
    unsafe("zip name"): ("dots", "absolute", "backslash"),
    broken("no data.pkl"): ("no data.pkl",),
    broken("missing record"): ("a missing storage",),
    broken("storage size"): ("a short storage", "a long storage"),
    broken("crc"): ("wrong pickle checksum",),
}  # fmt: skip

TENSORS = {
    broken("tensor beyond storage"): ("beyond its storage", "offset beyond", "huge offset", "overflowing stride"),
    broken("tensor offset"): ("negative offset", "offset beyond int64 of nothing"),
    broken("tensor size"): ("overflowing size beside a 0", "negative size", "overflowing size", "65 dimensions", "a size that is no number", "a nested tuple as size", "a list as size"),
    broken("tensor stride"): ("negative stride", "sizes and strides of other lengths"),
    unsafe("tensor expansion"): ("four terabytes by stride 0",),
    broken("missing record"): ("no such storage",),
}  # fmt: skip

PROMISES = {
    "zip duplicate": ZIP_NAMES, "zip name": ZIP_NAMES, "several roots": ZIP_NAMES, "no data.pkl": ZIP_NAMES,
    "zip local header": ZIP_PLACES, "zip descriptor": ZIP_PLACES, "zip overlap": ZIP_PLACES, "zip64": ZIP_PLACES,
    "missing record": CLAIMS, "storage size": CLAIMS, "crc": CHECKSUM,
}  # fmt: skip
"""The promise that a rule is of; the rest are about how archives are packed."""


UNSAFE = {
    "a record that runs into the next",
    "other zip64 sizes where it lies",
    "another method where it lies",
    "two equal names of one letter",
    "a bomb",
}
"""Of the archives built by hand, those that are whole and would be read differently."""


def claiming(name: str) -> Callable[[], str]:
    claim = torch_zip.CLAIMS[name]
    data = rezipped(torch_zip.plain(), lambda n, raw: claim if n.endswith("data.pkl") else raw)
    return written("x.pth", data)


def sorted_out(cases: list[Case]) -> list[Case]:
    return [Case(c.name, PROMISES.get(c.refusal.rule, ZIP_PACKED), c.refusal, c.make) for c in cases]


SAVED = sorted_out(by_refusal("", RULES, lambda name: written("x.pth", torch_zip.HOSTILE[name])))
BUILT = sorted_out(
    [
        Case(name, "", unsafe(rule) if name in UNSAFE else broken(rule), written("x.pth", data))
        for name, (rule, data) in by_hand.BROKEN.items()
    ]
)
CLAIMING = by_refusal(CLAIMS, TENSORS, claiming)


@each([*SAVED, *BUILT])
def test_an_archive_that_contradicts_itself_is_refused(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


@each(CLAIMING)
def test_a_tensor_that_claims_too_much_is_refused(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


def test_every_archive_has_a_case() -> None:
    assert all_named(SAVED, torch_zip.HOSTILE)
    assert all_named(CLAIMING, torch_zip.CLAIMS)


def flipped() -> str:
    """A file whose header is sound, and one bit of a tensor is another."""
    data = bytearray(torch_zip.plain())
    data[data.find(torch.arange(6.0)[3:].numpy().tobytes())] ^= 1
    return written("x.pth", bytes(data))()


COPIES: dict[str, tuple[str, ...]] = {
    "converted": COPY,
    "renamed": ("rename", "{}", "--map", "a=c", "-o", "out.pth"),
    "filtered": ("filter", "{}", "--include", "a", "-o", "out.safetensors"),
    "averaged": ("average", "{}", "{}", "-o", "out.safetensors"),
    "merged": ("merge", "{}", "{}", "--method", "linear", "--weights", "0.5,0.5", "-o", "out.safetensors"),
    "transplanted": ("transplant", "{}", "{}", "-o", "out.safetensors"),
    "cast": ("convert", "{}", "--dtype", "float16", "-o", "out.safetensors"),
    "written as a folder": ("convert", "{}", "-o", "out", "--to", "dcp"),
    "looked into": ("inspect", "{}", "--stats"),
}


@each([Case(name, CHECKSUM, broken("crc"), flipped, (command,)) for name, command in COPIES.items()])
def test_a_record_with_a_wrong_checksum_is_never_used(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


@clause(CHECKSUM)
def test_a_file_without_checksums_is_read(ckpt: Any) -> None:
    data = rezipped(torch_zip.plain(), lambda name, raw: raw)
    Path("x.pth").write_bytes(without_checksums(data))
    with nothing_executed(), in_time():
        assert ckpt(*(argument.replace("{}", "x.pth") for argument in COPY)).code == 0
    assert cs.open_checkpoint("out.safetensors").tensor("a").tolist() == [0, 1, 2, 3, 4, 5]


def without_checksums(data: bytes) -> bytes:
    """The same archive with a checksum of 0 in both places, as torch writes it when it is told to make none."""
    changed = bytearray(data)
    for magic, at in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        found = changed.find(magic)
        while found >= 0:
            changed[found + at : found + at + 4] = bytes(4)
            found = changed.find(magic, found + 4)
    return bytes(changed)
