"""Scans a file in every format that a reader could take it for, by its content, not by its name.

A file can be several formats at once: a pickle by its beginning, a zip archive by its end, and safetensors as well. It
is scanned in each of these formats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import CheckpointError, FormatError
from ...formats._open import read_header
from ...formats.base import limits
from ...formats.base.format_table import is_weights
from ...formats.base.slice import FileSlice
from ...storage.read.base import File
from .archives.packed import look_at_packed, packing_of
from .archives.tars import is_tar, look_at_tar
from .archives.zips import FORMS, look_at_zip
from .content.arrays import MAGIC, look_at_array
from .content.keras import look_at_hdf5
from .content.texts import look_at_text
from .context import ScanItem, ScanState, SpentError
from .findings import Fault, Finding, Verdict
from .pickle.guess import must_be_pickle
from .pickle.pickles import look_at_pickles

__all__ = ["look_at"]

_TAIL = 22 + 0xFFFF
_ONNX = re.compile(
    rb"\x08[\x01-\x20](?:\x12[\x01-\x40][ -~]+\x1a[\x01-\x40][ -~]+[\x22\x2a\x3a\x42]|\x12[\x01-\x40][ -~]+\x3a)"
)
"""The first fields of ModelProto (onnx.proto): the format's version, the writer's name and version."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NAMED = {
    "GGUF": re.compile(b"GGUF"),
    "GGML": re.compile(b"lmgg|fmgg|tjgg"),
    "Git LFS pointer": re.compile(b"version https://git-lfs"),
    "ONNX": _ONNX,
}
"""Formats whose readers run no code; files of these formats are recognised, but not scanned."""
_HDF5_NAMES = (".h5", ".hdf5", ".hdf", ".keras")
_FIRST_USER_BLOCK = 512
_PROGRAMS = (
    b"\x7fELF", b"MZqFpD='", b"jartsr='", b"APEDBG='", b"\0asm", b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf",
    b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xfe\xed\xfa\xce",
)  # fmt: skip
"""The first bytes of programs: ELF, Actually Portable Executables (llamafile), WebAssembly, Mach-O and Java."""
_TENSORFLOW = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
"""The model files that TensorFlow looks for in a folder (saved_model/loader_impl.py); the last is a chunked format."""


def look_at(path: str, file: File) -> ScanState:
    """Scan one file; returns a state with at least one finding."""
    state = ScanState(path, _judge)
    if not _judge(ScanItem(state, file)):
        is_empty = not file.size and is_weights(path)
        fault = Fault("corrupt", "the file has no content: it was probably truncated") if is_empty else None
        state.add(Finding(path, "", _other(file), fault=fault))
    return state


def _other(file: File) -> str:
    head = file.read(0, min(4096, file.size))
    if head.startswith(MAGIC):
        return "numpy array"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return "other data"
    return "other data" if b"\0" in head else "text" if head else "empty"


def _judge(place: ScanItem) -> bool:
    """Scan a file, or a part of it, in every format that it could have; return whether a finding was added."""
    before = len(place.state.found)
    for way in (_as_archive, _as_safetensors, _as_named, _as_pickles, _as_text):
        try:
            way(place)
        except SpentError as error:
            place.add("too much", fault=Fault("unreadable", str(error)))
            break
        except (RecursionError, MemoryError) as error:
            place.add(
                "too much",
                fault=Fault(
                    "unreadable", f"scanning it needs more memory or stack than there is: {type(error).__name__}"
                ),
            )
            break
        except FormatError as error:
            place.add("damaged", fault=Fault("corrupt", error.said))
        except CheckpointError as error:
            place.add("unreadable", fault=Fault("unreadable", error.said))
    return len(place.state.found) > before


def _as_archive(place: ScanItem) -> None:
    head = place.head()
    packing = packing_of(head)
    if head[:4] in (b"PK\3\4", b"PK\5\6", b"PK\7\x08") or _ends_as_zip(place.file):
        look_at_zip(place)
    elif is_tar(head):
        look_at_tar(place)
    elif packing:
        look_at_packed(place, packing)
    elif head.startswith(MAGIC):
        look_at_array(place)


def _ends_as_zip(file: File) -> bool:
    """Return whether a file ends with the end record of a zip archive; it may begin with anything."""
    size = min(file.size, _TAIL)
    tail = file.read(file.size - size, size)
    at = tail.rfind(b"PK\5\6")
    return at >= 0 and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)


def _as_safetensors(place: ScanItem) -> None:
    head = place.head(10)
    length = int.from_bytes(head[:8], "little")
    is_cut = head[8:10] == b'{"' and place.file.size - 8 < length <= limits.JSON_HEADER_BYTES
    if not is_cut and (head[8:9] != b"{" or not 2 <= length <= place.file.size - 8):
        return
    read_header(FileSlice(place.file, 0, place.file.size))
    place.add("safetensors")


def _as_named(place: ScanItem) -> None:
    head = place.head()
    kind = next((name for name, magic in _NAMED.items() if magic.match(head)), "")
    if head.startswith(_HDF5) or _has_user_block(place):
        look_at_hdf5(place)
    elif kind:
        place.add(kind, notes=("recognised, but its contents are not decoded",))
    elif head.startswith(_PROGRAMS) or _is_windows_program(place, head):
        place.add("machine code", Verdict.CODE, notes=("a program or a library",))
    elif place.name in _TENSORFLOW:
        place.add(
            "TensorFlow program", Verdict.CODE, notes=("recognised, but not decoded: a graph that TensorFlow runs",)
        )


def _has_user_block(place: ScanItem) -> bool:
    """Return whether an HDF5 file begins at offset 512, 1024, 2048, …: readers of HDF5 accept other data before it.

    A remote file is searched only if its name is typical of HDF5.
    """
    at = _FIRST_USER_BLOCK
    if (place.file.remote and not place.name.endswith(_HDF5_NAMES)) or _is_sound(place, ("safetensors",)):
        return False
    while at + len(_HDF5) <= place.file.size:
        if place.file.read(at, len(_HDF5)) == _HDF5:
            return True
        at *= 2
    return False


def _is_windows_program(place: ScanItem, head: bytes) -> bool:
    at = int.from_bytes(head[60:64], "little")
    return head.startswith(b"MZ") and 4 <= at <= place.file.size - 4 and place.file.read(at, 4) == b"PE\0\0"


def _as_pickles(place: ScanItem) -> None:
    if (place.file.size or must_be_pickle(place.name)) and not _is_sound_archive(place):
        sure = not place.depth or place.within.endswith(".pkl")
        look_at_pickles(place, sure=sure and not _is_sound(place, ("safetensors",)))


def _is_sound_archive(place: ScanItem) -> bool:
    """Return whether an item is a valid zip archive from its first byte on, so that it need not be scanned as a pickle.

    A pickle reader would read the archive's first bytes ``PK`` as a persistent id: ``K`` and the bytes up to a newline.
    Readers without support for persistent ids refuse this. Readers that support them, such as torch.load, first test
    whether the file is a zip archive.
    """
    return place.head(4) == b"PK\3\4" and _is_sound(place, FORMS)


def _is_sound(place: ScanItem, forms: Sequence[str]) -> bool:
    """Return whether the scan found that an item has one of the formats ``forms``, without a fault."""
    return any(one.within == place.within and one.format in forms and one.fault is None for one in place.state.found)


def _as_text(place: ScanItem) -> None:
    look_at_text(place, place.head())
