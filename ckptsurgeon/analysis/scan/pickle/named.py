"""What the name of a thing says of it: what else begins as a pickle without saying so is judged by that."""

from __future__ import annotations

from enum import Enum

__all__ = ["Named", "must_be_pickle", "named"]

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


class Named(Enum):
    """What readers would take a file for, going by its name."""

    PICKLE = "a pickle"
    TEXT = "a text"
    OTHER = "anything"


def named(path: str) -> Named:
    """Return what a name says; of what was unpacked, the name it had."""
    path = path.lower().removesuffix(" > unpacked")
    packed = next((end for end in _PACKED if path.endswith(end)), "")
    path = path.removesuffix(packed)
    return Named.PICKLE if path.endswith(_PICKLES) else Named.TEXT if path.endswith(_TEXTS) else Named.OTHER


def must_be_pickle(name: str) -> bool:
    """Return whether a file of this name is read as a pickle, or not at all: those of torch."""
    return name in ("data.pkl", "constants.pkl", ".metadata")
