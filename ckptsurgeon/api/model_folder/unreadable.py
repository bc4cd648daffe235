"""Finds files in a model's folder that do not have the format that their names promise, and says why."""

from __future__ import annotations

import json
import os
from contextlib import closing, suppress

from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import ConfigError, SourceError
from ...storage.read.base import File
from ...storage.read.uri import open_source, scheme_of
from ...storage.small_files import HEAD_BYTES, error_message, stand_in
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape
from ...vocabulary.beside_model import BY_LANGUAGE
from ...vocabulary.huggingface import of_language
from .documents import GENERATION, TOKENIZER
from .folder import LARGEST, ModelFolder

__all__ = ["is_elsewhere", "unreadable_file_notes", "unreadable_files", "unreadable_notes", "vocabulary_fault"]

OBJECTS = (
    "added_tokens.json", "chat_template.json", "normalizer.json", "special_tokens_map.json", "target_vocab.json",
    "vocab-src.json", "vocab-tgt.json",
)  # fmt: skip
"""Files that must contain a JSON object, in addition to files named ``*_config.json``."""
INCOMPLETE = "it is not a complete sentencepiece model"
PAGES = range(100, 1 << 20)
"""The sizes, in bytes, that a Git LFS pointer or an HTML page may have."""


def unreadable_file_notes(folder: ModelFolder, read: ModelFolder) -> list[Note]:
    """Return a note on each file of a checkpoint's folder whose content does not have the format of its name.

    The vocabulary is taken from ``read``, as in ``unreadable_files``.
    """
    return [Note(_kind_of(name, why), f"{name}: {why}") for name, why in unreadable_files(folder, read)]


def _kind_of(name: str, why: str) -> NoteKind:
    """Return UNREADABLE_FILE if programs need a file of this name, which is not readable; else OTHER.

    A file is needed if its name ends in .json, .model or .txt. ``why`` is the reason why it is unreadable; if it is a
    Note, the file is needed, too.
    """
    is_needed = isinstance(why, Note) or name.endswith((".json", ".model", ".txt"))
    return NoteKind.UNREADABLE_FILE if is_needed else NoteKind.OTHER


def unreadable_notes(folder: ModelFolder, read: ModelFolder | None = None) -> list[Note]:
    """Return a note on each file of a folder whose content does not have the format that its name promises.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself (also if it is None), or a folder with
    the same tokeniser whose vocabulary is already in memory.
    """
    found = unreadable_files(folder, read or folder)
    notes = ((why, f"{name} is copied unchanged: {why}") for name, why in found)
    return [Note(why.kind if isinstance(why, Note) else NoteKind.OTHER, said) for why, said in notes]


def unreadable_files(folder: ModelFolder, read: ModelFolder) -> list[tuple[str, str]]:
    """Return (name, reason) for each file in a folder whose content does not have the format that its name promises.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser
    whose vocabulary is already in memory.
    """
    found = {name: json_fault(folder, name) for name in _documents(folder)}
    found |= {name: INCOMPLETE for name, pieces in read.pieces.items() if pieces is None}
    found |= {**_stand_ins(folder), **({folder.vocabulary: why} if (why := vocabulary_fault(read)) else {})}
    return [(name, why) for name, why in found.items() if why]


def _documents(folder: ModelFolder) -> list[str]:
    """Return the names of small JSON files, without files that would have to be downloaded.

    config.json and adapter_config.json are left out. A generation_config.json is included even if it is remote.
    """
    return [
        one.name
        for one in folder.files
        if one.name not in (CONFIG, ADAPTER)
        and (one.name.endswith("_config.json") or one.name in OBJECTS)
        and (one.name == GENERATION or not scheme_of(one.path))
    ]


def vocabulary_fault(folder: ModelFolder) -> str:
    """Return why the vocabulary file of a folder cannot be read; '' if it can be read, or is at a remote address.

    A vocabulary in a format other than JSON is refused only if the file is a Git LFS pointer or an HTML page.
    """
    if not folder.vocabulary or is_elsewhere(folder) or folder.tokens is not None:
        return ""
    if not folder.vocabulary.endswith(".json"):
        return stand_in(folder.read(folder.vocabulary, LARGEST))
    return json_fault(folder, folder.vocabulary) or _list_fault(folder)


def _list_fault(folder: ModelFolder) -> str:
    """Return the reason why a vocab.json is not a token list, or lacks the tokeniser's language; '' if it is valid.

    The result is '' for all other files, too.
    """
    if folder.vocabulary != BY_LANGUAGE or json_fault(folder, TOKENIZER):
        return ""
    settings = folder.document(TOKENIZER) if any(one.name == TOKENIZER for one in folder.files) else {}
    try:
        found = json.loads(of_language("it", folder.read(folder.vocabulary, LARGEST), settings.get("target_lang")))
    except ConfigError as error:
        return error.message.removesuffix(".")
    is_list = "model" in found or all(type(number) is int for number in found.values())
    return "" if is_list else "it does not map each token to an integer"


def _stand_ins(folder: ModelFolder) -> dict[str, str]:
    """Return {file name: what the file really is} for local tokeniser files that are Git LFS pointers or web pages.

    The vocabulary file is left out.
    """
    others = [one for one in folder.tokenizer if one.name != folder.vocabulary and one.path and not scheme_of(one.path)]
    return {one.name: why for one in others if (why := stand_in(_head(one.path)))}


def _head(path: str) -> bytes:
    """Return the first bytes of a file whose size is that of a Git LFS pointer or a web page; b"" for other sizes.

    The file gets no fingerprint in a plan, because no plan depends on these bytes.
    """
    with suppress(OSError, SourceError):  # an unreadable file is reported when it is copied
        if os.path.getsize(path) in PAGES and isinstance(source := open_source(path), File):
            with closing(source):
                return source.read(0, min(HEAD_BYTES, source.size))
    return b""


def json_fault(folder: ModelFolder, name: str) -> str:
    """Return why a file of a folder is not a JSON object; '' if it is one, is missing, or is too large to read."""
    if all(one.name != name for one in folder.files):
        return ""
    try:
        data = folder.read(name, LARGEST)
        if why := stand_in(data):
            return why
        # decoded here, because json.loads would also accept bytes in UTF-16 or with a byte-order mark
        document = json.loads(data.decode())
    except UnicodeDecodeError:
        return Note(NoteKind.UNREADABLE_FILE, "it is not UTF-8")
    except RecursionError:
        return Note(NoteKind.UNREADABLE_FILE, "it is nested too deeply")
    except ValueError as error:
        return Note(NoteKind.UNREADABLE_FILE, f"it is not valid JSON: {escape(str(error))}")
    except (SourceError, ConfigError):  # an unreadable file is reported when it is copied
        return ""
    if isinstance(document, dict):
        return error_message(document)
    return Note(NoteKind.UNREADABLE_FILE, "it is not a JSON object")


def is_elsewhere(folder: ModelFolder) -> bool:
    """Return whether the tokeniser files of a folder are remote."""
    return any(scheme_of(one.path) for one in folder.tokenizer)
