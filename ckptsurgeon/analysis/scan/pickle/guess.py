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
    """The kind of a file by its name, as readers would open it."""

    PICKLE = "a pickle"
    TEXT = "a text"
    OTHER = "anything"


def named(path: str) -> KindByName:
    """Return the kind of a file by its path; for unpacked data, the name of the compressed file counts."""
    path = path.lower().removesuffix(" > unpacked")
    packed = next((end for end in _PACKED if path.endswith(end)), "")
    path = path.removesuffix(packed)
    return (
        KindByName.PICKLE if path.endswith(_PICKLES) else KindByName.TEXT if path.endswith(_TEXTS) else KindByName.OTHER
    )


def must_be_pickle(name: str) -> bool:
    """Return whether readers take a file of this name for a pickle whatever it holds, as torch does."""
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
    """Return whether decoded data is a pickle with an import, which would run a module.

    A text whose first word begins with a ``c`` decodes as an import too. So for a file named as a text, or without a
    known name, the import must look like a name in programs; and for a text the pickle must end, or call something,
    before it fails. Neither is required if it is ``marked`` with its protocol and ends without fault.
    """
    if marked and tried.stopped and not tried.fault:
        return bool(tried.names)
    names = tried.names.values()
    if kind is KindByName.PICKLE:
        return any(one.imported and _FILE.fullmatch(one.module) for one in names)
    words = [one for one in names if _WORD.fullmatch(one.module) and _WORD.fullmatch(one.name)]
    return bool(words) if tried.stopped or marked or kind is KindByName.OTHER else any(one.called for one in words)


def inner_bytes(data: bytes, at: int, begin: int, end: int) -> bytes:
    """Return the bytes of a text or byte string; text as Latin-1 if possible, since protocols 0 to 2 write bytes so."""
    if data[at] not in _TEXT:
        return data[begin:end]
    text = text_at(data, at, end - begin) or ""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
