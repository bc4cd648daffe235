"""Tar archives that two readers would read differently, or that reach out of themselves: said, and all in them looked at."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from .hostile import CANARY, payload

Run = Callable[..., Any]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT, **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **options) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def edited(data: bytes, at: int, **fields: bytes) -> bytes:
    """A header with some fields as they are given, and the checksum that goes with them."""
    places = {"name": (0, 100), "size": (124, 136), "checksum": (148, 156), "kind": (156, 157), "magic": (257, 265)}
    head = bytearray(data[at : at + 512])
    for name, value in fields.items():
        begin, end = places[name]
        head[begin:end] = value.ljust(end - begin, b"\0")
    if "checksum" not in fields:
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    return data[:at] + bytes(head) + data[at + 512 :]


def signed(data: bytes) -> bytes:
    """The checksum that some old programs made, of signed bytes."""
    head = data[:148] + b" " * 8 + data[156:512]
    return edited(data, 0, checksum=b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in head))


FILE = member("a", b"x" * 600)
ZEROS = bytes(512)
CALLS = payload(4)

CORRUPT = {
    "outside": tar(member("../a", b"x")),
    "outside in the middle": tar(member("a/../../b", b"x")),
    "absolute": tar(member("/etc/a", b"x")),
    "outside by a long name": tar(member("a/" * 60 + "../" * 70 + "b", b"x"), form=tarfile.GNU_FORMAT),
    "outside by pax": tar(member("b", b"x", pax_headers={"path": "../a"})),
    "twice": tar(FILE, FILE),
    "twice, spelled otherwise": tar(FILE, member("./a", b"x")),
    "in another case": tar(FILE, member("A", b"x")),
    "under a link": tar(member("d", type=tarfile.SYMTYPE, linkname="e"), member("d/a", b"x")),
    "two sizes": tar(member("a", CALLS, pax_headers={"size": "0"})),
    "a path for all": tar(FILE, pax_headers={"path": "b"}),
    "a size of a folder": edited(tar(member("d", CALLS)), 0, kind=b"5"),
    "a size of a link": edited(tar(member("d", CALLS)), 0, kind=b"2"),
    "a size of a folder by its name": edited(tar(member("d/", CALLS)), 0, kind=b"\0"),
    "behind its end": tar(FILE) + tar(member("b", CALLS)),
    "cut short": tar(FILE)[:700],
    "cut short in a header": tar(FILE, FILE)[: 1536 + 300],
    "an invalid size": edited(tar(FILE), 0, size=b"-1"),
    "a false checksum": tar(FILE, FILE)[:1536] + b"x" * 512,
}
UNREADABLE = {
    "a link out": tar(member("a", type=tarfile.SYMTYPE, linkname="../b")),
    "a link to an absolute name": tar(member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a hard link out": tar(member("a", type=tarfile.LNKTYPE, linkname="../b")),
    "a link out by a long name": tar(
        member("a", type=tarfile.SYMTYPE, linkname="b/" * 70 + "../" * 90), form=tarfile.GNU_FORMAT
    ),
    "a device": tar(member("a", type=tarfile.CHRTYPE)),
    "a block device": tar(member("a", type=tarfile.BLKTYPE)),
    "a FIFO": tar(member("a", type=tarfile.FIFOTYPE)),
    "a sparse file": edited(tar(FILE), 0, kind=b"S"),
}
FINE = {
    "a file": tar(FILE),
    "a folder": tar(member("d", type=tarfile.DIRTYPE), member("d/a", b"x")),
    "a link inside": tar(member("d/a", b"x"), member("d/b", type=tarfile.SYMTYPE, linkname="a")),
    "a link to a folder beside": tar(member("c/a", b"x"), member("d/b", type=tarfile.SYMTYPE, linkname="../c/a")),
    "a hard link inside": tar(FILE, member("b", type=tarfile.LNKTYPE, linkname="a")),
    "no names": tar(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("made", "kind"),
    [*((data, "corrupt") for data in CORRUPT.values()), *((data, "unreadable") for data in UNREADABLE.values())],
    ids=[*CORRUPT, *UNREADABLE],
)
def test_a_tar_that_deceives_is_not_judged_whole(made: bytes, kind: str, ckpt: Run) -> None:
    Path("x.tar").write_bytes(made)
    done = ckpt("scan", "x.tar")
    assert (done.code, kind.upper() in done.out) == (1, True), done
    said = json.loads(ckpt("scan", "x.tar", "--json").out)
    assert (said["ok"], said["whole"], said["found"][0]["format"]) == (False, False, "tar archive")
    assert said["found"][0]["fault"]["kind"] == kind


@pytest.mark.parametrize("name", FINE)
def test_an_honest_tar_is_plain_data(name: str, ckpt: Run) -> None:
    Path("x.tar").write_bytes(FINE[name])
    assert ckpt("scan", "x.tar").code == 0


@pytest.mark.parametrize("name", [name for name, data in CORRUPT.items() if CALLS in data])
def test_what_only_some_readers_find_is_looked_at(name: str) -> None:
    Path("x.tar").write_bytes(CORRUPT[name])
    found = cs.scan("x.tar")
    with tarfile.open("x.tar", ignore_zeros=True) as archive:
        seen = [one for one in archive if one.isreg() and one.size == len(CALLS)]
    assert (found.verdict is cs.Verdict.CODE) or not seen
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["a", "a" * 150, "a/" * 80 + "b", "\u00e9" * 60])
def test_names_of_every_form_are_read(name: str, form: str) -> None:
    if form == "ustar" and len(name.encode()) > 100:
        return
    Path("x.tar").write_bytes(tar(member(name, CALLS), form=FORMATS[form]))
    found = cs.scan("x.tar")
    assert found.verdict is cs.Verdict.CODE
    assert [one.within for one in found.found if one.uses] == [name]


@pytest.mark.parametrize(
    "made",
    [
        edited(tar(member("a", CALLS)), 0, name=b"", magic=b"ustar\x0000"),
        edited(tar(member("a", CALLS)), 0, magic=b""),
        edited(tar(member("a", CALLS)), 0, kind=b"\0"),
        edited(tar(member("a", CALLS)), 0, kind=b"7"),
        edited(tar(member("a", CALLS)), 0, kind=b"Z"),
        edited(tar(member("a", CALLS)), 0, size=b"\x80" + len(CALLS).to_bytes(11, "big")),
        edited(tar(member("a", CALLS)), 0, size=b"  %o " % len(CALLS)),
        signed(edited(tar(member("a", CALLS)), 0, name=b"\xc3\xa9")),
    ],
    ids=["no name", "no mark", "old", "contiguous", "unknown kind", "binary size", "spaced size", "signed checksum"],
)
def test_a_tar_is_known_and_read_as_python_does(made: bytes) -> None:
    Path("x.tar").write_bytes(made)
    with tarfile.open("x.tar") as archive:
        member = archive.next()
        assert member is not None
        assert member.size == len(CALLS)
    assert cs.scan("x.tar").verdict is cs.Verdict.CODE


def test_a_tar_with_the_source_of_a_program_is_unknown_code_as_a_zip_is(ckpt: Run) -> None:
    Path("x.mar").write_bytes(tar(member("MAR-INF/MANIFEST.json", b"{}"), member("handler.py", b"import os\n")))
    done = ckpt("scan", "x.mar")
    assert (done.code, "contains Python code: handler.py" in done.out) == (1, True), done


def test_notes_that_are_not_shown_are_counted() -> None:
    Path("x.tar").write_bytes(tar(*(member(f"l{i}", type=tarfile.SYMTYPE, linkname="a") for i in range(13))))
    (found,) = cs.scan("x.tar").found
    assert (len(found.notes), found.notes[-1]) == (11, "and 3 more notes")
    Path("x.tar").write_bytes(tar(*(member(f"p{i}.py", b"x") for i in range(5))))
    assert cs.scan("x.tar").found[0].notes == ("contains Python code: p0.py, p1.py, p2.py and 2 more",)


def test_an_invalid_size_is_not_called_a_wrong_checksum() -> None:
    Path("x.tar").write_bytes(edited(tar(FILE), 0, size=b"-1"))
    fault = cs.scan("x.tar").found[0].fault
    assert fault is not None
    assert fault.why == "a member's header has an invalid size (at byte 0)"
