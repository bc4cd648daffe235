"""Guesses whether a file is a pickle, from its name and its content."""

from __future__ import annotations

import re
from enum import Enum

from .state import PickleState
from .texts import text_at

__all__ = ["BEGINS", "MAGICS", "SHORTEST", "KindByName", "imports_something", "inner_bytes", "must_be_pickle", "named"]

# The kind of a file by its name, which decides whether content without a protocol marker is taken for a pickle.

_PICKLES = (
    ".bin", ".ckpt", ".cloudpickle", ".dill", ".distcp", ".joblib", ".metadata", ".npy", ".p", ".pickle", ".pk", ".pkl",
    ".pt", ".pth", ".sav", ".tar", ".th",
)  # fmt: skip
_TEXTS = (
    ".bpe", ".c", ".cfg", ".conf", ".cpp", ".css", ".csv", ".ctm", ".dict", ".gitattributes", ".gitignore", ".go", ".h",
    ".htm", ".html", ".ini", ".ipynb", ".java", ".js", ".json", ".jsonl", ".lab", ".lexicon", ".list", ".log", ".lst",
    ".lua", ".map", ".md", ".merges", ".ndjson", ".phn", ".proto", ".py", ".pyi", ".rs", ".rst", ".scp", ".sh", ".srt",
    ".stm", ".svg", ".tex", ".tok", ".tokens", ".toml", ".trn", ".tsv", ".txt", ".vocab", ".vtt", ".xml", ".yaml",
    ".yml",
)  # fmt: skip
_PACKED = (".gz", ".bz2", ".xz", ".lzma", ".zlib", ".z")


class KindByName(Enum):
    """The kind of a file that its name suggests to readers: a pickle, a text, or anything."""

    PICKLE = "a pickle"
    TEXT = "a text"
    OTHER = "anything"


def named(path: str) -> KindByName:
    """Return the kind of a file that its path suggests to readers.

    For data that was unpacked, the path of the compressed file is used, without the suffix of the compression.
    """
    path = path.lower().removesuffix(" > unpacked")
    packed = next((end for end in _PACKED if path.endswith(end)), "")
    path = path.removesuffix(packed)
    return (
        KindByName.PICKLE if path.endswith(_PICKLES) else KindByName.TEXT if path.endswith(_TEXTS) else KindByName.OTHER
    )


def must_be_pickle(name: str) -> bool:
    """Return whether readers such as torch read a file of this name as a pickle, whatever its content."""
    return name in ("data.pkl", "constants.pkl", ".metadata")


BEGINS = frozenset(b"()]}NIJKLMFGSTUVXBCcPi\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\xc2\x1f\x93\xfd")
"""The possible first bytes of pickles and archives inside a string, including their encoding in UTF-8."""
MAGICS = re.compile(rb"PK\x03\x04|\x1f\x8b\x08|BZh[1-9]1AY|\xfd7zXZ\0|\x93NUMPY")
SHORTEST = 6
"""Length in bytes of the shortest pickle that imports something."""

_WORD = re.compile(r"[^\W\d][\w.]*")
_FILE = re.compile(r"[^/\0\\]{1,500}")
"""Matches a module name that Python could find as a file: no slash, and no backslash (which invalid UTF-8 becomes)."""
_TEXT = b"STUVX\x8c\x8d"


def imports_something(tried: PickleState, *, marked: bool = False, kind: KindByName = KindByName.TEXT) -> bool:
    """Return whether decoded data is a pickle that imports something, and not other data that looks like a pickle.

    ``tried`` is the state after decoding. ``marked`` is true if the data begins with a protocol. A pickle that is
    marked and ends without a fault needs no further evidence. In other data, an import may be accidental: a text line
    that begins with ``c`` is decoded as an import. If the file's name does not suggest a pickle (``kind``), the import
    must be a valid name in Python. If the name suggests a text, the pickle must also be marked, reach its end, or call
    the imported name.
    """
    if marked and tried.stopped and not tried.fault:
        return bool(tried.names)
    names = tried.names.values()
    if kind is KindByName.PICKLE:
        return any(one.imported and _FILE.fullmatch(one.module) for one in names)
    words = [one for one in names if _WORD.fullmatch(one.module) and _WORD.fullmatch(one.name)]
    return bool(words) if tried.stopped or marked or kind is KindByName.OTHER else any(one.called for one in words)


def inner_bytes(data: bytes, at: int, begin: int, end: int) -> bytes:
    """Return the content of a string or byte string in a pickle, as bytes.

    ``at`` is the offset of the instruction, ``begin`` and ``end`` are the bounds of its operand. A string is encoded as
    Latin-1 if possible, because protocols 0 to 2 write bytes as such strings; else as UTF-8.
    """
    if data[at] not in _TEXT:
        return data[begin:end]
    text = text_at(data, at, end - begin) or ""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
