"""Guesses whether a file is a pickle, from its name and its content."""

from __future__ import annotations

import re
from enum import Enum

from .state import PickleState
from .texts import text_at

__all__ = ["BEGINS", "MAGICS", "SHORTEST", "KindByName", "imports_something", "inner_bytes", "must_be_pickle", "named"]

# The kind of a file by its name. It decides about content that could be a pickle but has no marker.

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
    """What readers would take a file for by its name: a pickle, a text, or anything."""

    PICKLE = "a pickle"
    TEXT = "a text"
    OTHER = "anything"


def named(path: str) -> KindByName:
    """Return what readers would take a file for by its path.

    The path of unpacked data is that of the compressed file, without the suffix of the compression.
    """
    path = path.lower().removesuffix(" > unpacked")
    packed = next((end for end in _PACKED if path.endswith(end)), "")
    path = path.removesuffix(packed)
    return (
        KindByName.PICKLE if path.endswith(_PICKLES) else KindByName.TEXT if path.endswith(_TEXTS) else KindByName.OTHER
    )


def must_be_pickle(name: str) -> bool:
    """Return whether readers such as torch take a file of this name for a pickle, whatever its content."""
    return name in ("data.pkl", "constants.pkl", ".metadata")


BEGINS = frozenset(b"()]}NIJKLMFGSTUVXBCcPi\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\xc2\x1f\x93\xfd")
"""First bytes of archives, and of pickles that readers do not refuse at once; as bytes or in UTF-8."""
MAGICS = re.compile(rb"PK\x03\x04|\x1f\x8b\x08|BZh[1-9]1AY|\xfd7zXZ\0|\x93NUMPY")
SHORTEST = 6
"""Length in bytes of the shortest pickle that imports something."""

_WORD = re.compile(r"[^\W\d][\w.]*")
_FILE = re.compile(r"[^/\0\\]{1,500}")
"""The name of a module that Python could find as a file: any without a slash or (if not UTF-8) a backslash."""
_TEXT = b"STUVX\x8c\x8d"


def imports_something(tried: PickleState, *, marked: bool = False, kind: KindByName = KindByName.TEXT) -> bool:
    """Return whether decoded data is a pickle that imports something, and not other data that decodes as one.

    A text whose first word begins with a ``c`` decodes as an import too. So unless the file has the name of a pickle
    (``kind``), the import must look like a name in programs. In a file with the name of a text, the pickle must also be
    ``marked`` with its protocol, reach its end, or call something. A pickle that is ``marked`` and ends without a fault
    needs none of this.
    """
    if marked and tried.stopped and not tried.fault:
        return bool(tried.names)
    names = tried.names.values()
    if kind is KindByName.PICKLE:
        return any(one.imported and _FILE.fullmatch(one.module) for one in names)
    words = [one for one in names if _WORD.fullmatch(one.module) and _WORD.fullmatch(one.name)]
    return bool(words) if tried.stopped or marked or kind is KindByName.OTHER else any(one.called for one in words)


def inner_bytes(data: bytes, at: int, begin: int, end: int) -> bytes:
    """Return the bytes that a text or byte string in a pickle stands for.

    ``at`` is the offset of its instruction; ``begin`` and ``end`` are those of its operand. A text is encoded as
    Latin-1 if possible, because protocols 0 to 2 write bytes as such texts; if not, as UTF-8.
    """
    if data[at] not in _TEXT:
        return data[begin:end]
    text = text_at(data, at, end - begin) or ""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
