"""The members of a tar archive: POSIX ustar and pax (IEEE 1003.1-2001), GNU's long names, and what came before.

Numbers are read as Python's ``tarfile`` reads them. Where readers part ways over what comes next, that is a fault, and
reading goes on in the way in which there is more to see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ....formats.torch.tar import pax_records
from ..base.context import Place
from ..base.findings import Fault

__all__ = ["BLOCK", "Member", "is_tar", "members_of"]

BLOCK = 512
_STEP = 1 << 20
_LONGEST = 64 << 10
_OCTAL_SIZES = 8**11
"""From here on a size is no longer in the header, but only in pax."""
_NAMES, _MORE, _FOR_ALL, _SPARSE, _FOLDER = b"LK", b"xX", b"g", b"S", b"5"
_WITHOUT_DATA = b"123456"
_FIELDS = {b"path", b"linkpath", b"size"}


@dataclass(frozen=True)
class Member:
    """A member by its header; ``target`` is where a link leads, ``begin`` and ``size`` are where its bytes are."""

    name: str
    kind: bytes
    begin: int
    size: int
    target: str


@dataclass
class _More:
    """What headers in front of a member say of it."""

    fields: dict[bytes, bytes] = field(default_factory=dict)

    def text(self, key: bytes, other: str) -> str:
        return _text(self.fields[key]) if key in self.fields else other


def is_tar(head: bytes) -> bool:
    """Return whether 512 bytes are the header of a member, by its checksum, of unsigned bytes or of signed ones."""
    if len(head) != BLOCK:
        return False
    rest = head[:148] + b" " * 8 + head[156:]
    said = _number(head[148:156])
    return any(head) and said in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def members_of(place: Place, faults: list[Fault]) -> Iterator[Member]:
    """Yield the members, and add to ``faults`` what is wrong with the archive."""
    file, more = place.file, _More()
    at = 0
    while (at := _behind_zeros(place, at, faults)) + BLOCK <= file.size:
        head = file.read(at, BLOCK)
        kind, size = head[156:157], _number(head[124:136])
        if not is_tar(head) or size < 0:
            faults.append(_corrupt(f"a member's header has a wrong checksum (at byte {at})"))
            return
        if kind in _SPARSE:
            faults.append(Fault("unreadable", "it has a sparse file, behind which is not read on"))
            return
        begin, size = at + BLOCK, _sized(head, more, size, faults)
        if begin + size > file.size:
            faults.append(_corrupt("it is cut short"))
            return
        at = begin + -(-size // BLOCK) * BLOCK
        if kind in _NAMES + _MORE + _FOR_ALL:
            _read_more(more, kind, file.read(begin, min(size, _LONGEST)), size, faults)
            continue
        yield Member(more.text(b"path", _name(head)), kind, begin, size, more.text(b"linkpath", _text(head[157:257])))
        more = _More()


def _behind_zeros(place: Place, at: int, faults: list[Fault]) -> int:
    """Return where the next header is. A block of zeros ends an archive for most readers, and for some it does not."""
    file, begin = place.file, at
    while at < file.size:
        data = file.read(at, min(_STEP if at > begin else BLOCK, file.size - at))
        if any(data):
            at += (len(data) - len(data.lstrip(b"\0"))) // BLOCK * BLOCK
            break
        place.look.budget.take("searched", len(data))
        at += len(data)
    if begin < at < file.size:
        faults.append(_corrupt("something stands behind its end"))
    return at


def _sized(head: bytes, more: _More, size: int, faults: list[Fault]) -> int:
    """Return how many bytes of data follow a header."""
    told = more.fields.get(b"size", b"")
    if told.isdigit() and int(told[:20]) != size:
        if int(told[:20]) < _OCTAL_SIZES:
            faults.append(_corrupt("a member has two sizes"))
        size = int(told[:20])
    kind = head[156:157]
    is_folder = kind == _FOLDER or (kind == b"\0" and _name(head).endswith("/"))
    if size and (is_folder or kind in _WITHOUT_DATA):
        faults.append(_corrupt(f"{_name(head)} has no data and a size, behind which readers go on in two places"))
        return 0
    return size


def _read_more(more: _More, kind: bytes, raw: bytes, size: int, faults: list[Fault]) -> None:
    if size > _LONGEST:
        faults.append(Fault("unreadable", f"it has a header of over {_LONGEST} bytes"))
    if kind in _NAMES:
        more.fields[b"path" if kind == b"L" else b"linkpath"] = raw
        return
    found = _pax(raw)
    if found is None:
        faults.append(_corrupt("it has a pax header that cannot be read"))
    elif kind in _MORE:
        more.fields.update(found)
    elif _FIELDS & set(found):
        faults.append(_corrupt("it says one name or size for all of its members"))
    if found and any(key.startswith(b"GNU.sparse") for key in found):
        faults.append(Fault("unreadable", "it has a sparse file, which is not put together"))


def _pax(raw: bytes) -> dict[bytes, bytes] | None:
    """Return the records of a pax header; None where they are not in order."""
    try:
        return dict(pax_records(raw.rstrip(b"\0")))
    except ValueError:
        return None


def _number(field: bytes) -> int:
    """Return a number: octal digits, or binary where the first byte says so. -1 where it is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _name(head: bytes) -> str:
    prefix = _text(head[345:500]) if head[257:262] == b"ustar" and head[263:265] == b"00" else ""
    return f"{prefix}/{_text(head[:100])}" if prefix else _text(head[:100])


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _corrupt(why: str) -> Fault:
    return Fault("corrupt", why)
