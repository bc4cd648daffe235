"""Finds the plain files in a tar archive by their headers, so that they can be read without extracting them.

POSIX.1-2001, "pax interchange format": https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...util.text import escape, number_in
from ..base import limits

__all__ = ["TarMember", "is_tar", "members", "names_in", "pax_records", "plain_members"]

_BLOCK = 512
_PADDING = 20 * _BLOCK
"""Archives are padded with zeros to a multiple of this many bytes."""
_PLAIN, _EXTENDED, _LONG_NAME = (b"0", b"\0"), b"x", b"L"
_PASSED = (b"g", b"K")
"""Type flags of headers that are skipped: global headers, and long targets of links (GNU). Plain files need neither."""
_LINKS = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Type flags of members without data, even if their header has a size: links, devices, folders, FIFOs."""
_NAMED = (*_PLAIN, b"5")
_LISTED = 32
"""The most member names that are read from an archive of another program, since each may cost a network request."""
_HARMLESS = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a FIFO",
}  # fmt: skip


@dataclass(frozen=True)
class TarMember:
    """One member: its name, and the offsets in the file at which its bytes begin and end."""

    name: str
    begin: int
    end: int


def is_tar(head: bytes) -> bool:
    """Return whether ``head`` is the beginning of a tar archive of POSIX or GNU; older ones have no magic bytes."""
    return head[257:262] == b"ustar"


def members(file: File, known: Collection[str]) -> dict[str, TarMember]:
    """Return the members of an archive of torch by their names.

    Raises FormatError if a member is not in ``known``, occurs twice or is not a plain file, or if the archive is
    malformed or has data after its end.
    """
    found: dict[str, TarMember] = {}
    at, said = 0, dict[str, str]()
    for _ in range(2 * len(known) + 1):
        header = file.read(at, min(_BLOCK, file.size - at))
        if not header.strip(b"\0"):
            _check_end(file, at)
            return found
        _check_sum(header)
        begin = at + _BLOCK
        end = begin + (_number(said["size"].encode(), 10) if "size" in said else _number(header[124:136], 8))
        at = begin + -(-(end - begin) // _BLOCK) * _BLOCK
        if at > file.size:
            raise FormatError("the tar archive is truncated.", rule="tar size")
        if header[156:157] == _EXTENDED and not said:
            said = _records(file, begin, end)
            continue
        name = said.get("path", header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"))
        _check_member(name, header, known, found)
        found[name], said = TarMember(name, begin, end), {}
    raise FormatError("the tar archive has more members than torch writes.", rule="tar members")


def names_in(file: File) -> list[str]:
    """Return the names of the first files and folders in any tar archive, up to the first invalid header."""
    found: list[str] = []
    at = 0
    with suppress(FormatError):
        while len(found) < _LISTED and at < file.size:
            header = file.read(at, min(_BLOCK, file.size - at))
            _check_sum(header)
            if header[156:157] in _NAMED:
                found.append(header[:100].partition(b"\0")[0].decode("utf-8", "replace"))
            at += _BLOCK + -(-_number(header[124:136], 8) // _BLOCK) * _BLOCK
    return found


def plain_members(file: File) -> Iterator[TarMember]:
    """Yield the plain files of any tar archive, with their paths in the archive; other members are skipped.

    Raises FormatError if the archive is malformed, UnsafeError if a path leads out of the archive or occurs twice, or
    if there are too many members.
    """
    at, seen = 0, set[str]()
    said: dict[str, str] = {}
    for _ in range(limits.TAR_MEMBERS):
        header = file.read(at, min(_BLOCK, file.size - at))
        if not header.strip(b"\0"):
            return
        _check_sum(header)
        begin, kind = at + _BLOCK, header[156:157]
        size = number_in(said["size"]) if "size" in said else _number(header[124:136], 8)
        if size is None:
            raise FormatError("an extended header of the tar archive has a malformed size.", rule="tar header")
        end = begin + (0 if kind in _LINKS else size)
        at = begin + -(-(end - begin) // _BLOCK) * _BLOCK
        if max(end, at) > file.size:
            raise FormatError("the tar archive is truncated.", rule="tar size")
        if kind in (_EXTENDED, _LONG_NAME):
            said |= _said_of_next(file, begin, end, kind)
        elif kind not in _PASSED:
            name = _plain_name(said.get("path") or _name(header))
            said = {}
            if kind in _PLAIN:
                if name in seen:
                    raise UnsafeError(f"{escape(name)} occurs twice in the tar archive.", rule="tar members")
                seen.add(name)
                yield TarMember(name, begin, end)
    raise UnsafeError(f"the tar archive has over {limits.TAR_MEMBERS} members.", rule="tar members")


def _said_of_next(file: File, begin: int, end: int, kind: bytes) -> dict[str, str]:
    """Return the fields, such as ``path``, that an extended header (pax or GNU) sets for the next member.

    The content of the header is the bytes ``begin`` to ``end`` of the file; ``kind`` is its type. A GNU long-name
    header sets only ``path``. Raises FormatError if the header is not valid.
    """
    if end - begin > limits.TAR_RECORDS_BYTES:
        raise FormatError("an extended header of the tar archive is too long.", rule="tar header")
    raw = file.read(begin, end - begin)
    if kind == _LONG_NAME:
        return {"path": raw.partition(b"\0")[0].decode("utf-8", "replace")}
    try:
        return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in pax_records(raw)}
    except ValueError:
        raise FormatError("an extended header of the tar archive is malformed.", rule="tar header") from None


def _name(header: bytes) -> str:
    """Return the name of a member from its header; the leading folders of a long name are in the field ``prefix``."""
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    is_posix = header[257:263] == b"ustar\0"
    return (prefix + b"/" + name if prefix and is_posix else name).decode("utf-8", "replace")


def _plain_name(name: str) -> str:
    """Return a member's path without "." and empty parts; raises UnsafeError if it leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UnsafeError(f"the path of the member {escape(name)} leads out of the tar archive.", rule="tar name")
    return "/".join(parts)


def _check_end(file: File, at: int) -> None:
    rest = file.size - at
    if rest > 2 * _PADDING or file.read(at, max(rest, 0)).strip(b"\0"):
        raise FormatError("the tar archive has data after its end.", rule="tar end")


def _check_sum(header: bytes) -> None:
    """Raise FormatError if a header does not match its checksum.

    The checksum is the sum of all bytes of the header, with eight spaces in place of the checksum itself.
    """
    if len(header) < _BLOCK:
        raise FormatError("the tar archive is truncated.", rule="tar size")
    if sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") != _number(header[148:156], 8):
        raise FormatError("a header of the tar archive does not match its checksum.", rule="tar header")


def _number(raw: bytes, base: int) -> int:
    """Return the number in a header field: digits in ``base``, or big-endian bytes (GNU, for members over 8 GiB).

    Raises FormatError if it is not a number.
    """
    if raw[:1] == b"\x80" and base == 8:
        return int.from_bytes(raw[1:], "big")
    text = raw.strip(b" \0")
    if not text.isdigit() or len(text) > 20:
        raise FormatError("a header of the tar archive has a field that is not a number.", rule="tar header")
    try:
        return int(text, base)
    except ValueError:
        raise FormatError("a header of the tar archive has a malformed number.", rule="tar header") from None


def _records(file: File, begin: int, end: int) -> dict[str, str]:
    """Return {key: value} of an extended header for the next member; raises FormatError if torch would not write it."""
    if end - begin > limits.TAR_RECORDS_BYTES:
        raise FormatError("an extended header of the tar archive is too long.", rule="tar header")
    try:
        read = list(pax_records(file.read(begin, end - begin)))
    except ValueError:
        raise FormatError("an extended header of the tar archive is malformed.", rule="tar header") from None
    found = {key.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape") for key, value in read}
    if len(found) < len(read) or not found.keys() <= _HARMLESS | {"size", "path"}:
        raise FormatError("the tar archive has an extended header that torch does not write.", rule="tar header")
    return found


def pax_records(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of the records ``length key=value`` in an extended header; raises ValueError if malformed."""
    while raw:
        digits = raw.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = raw[len(digits) + 1 : length].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ValueError("a record of an extended header is malformed")
        yield key, value[:-1]
        raw = raw[length:]


def _check_member(name: str, header: bytes, known: Collection[str], found: Mapping[str, TarMember]) -> None:
    kind = header[156:157]
    if name not in known:
        hint = "If it contains a checkpoint, unpack the archive, and use that checkpoint."
        raise FormatError(
            f"the file is a tar archive that contains {escape(name)}, not a checkpoint of torch.",
            hint=hint,
            rule="tar members",
        )
    if kind not in _PLAIN:
        what = _KINDS.get(kind, "of an unknown kind")
        raise FormatError(f"the member {escape(name)} of the tar archive is {what}.", rule="tar members")
    if name in found:
        raise FormatError(f"{escape(name)} occurs twice in the tar archive.", rule="tar members")
