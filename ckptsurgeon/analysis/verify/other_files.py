"""Checks the files of an output other than its weights: companions such as config.json, unknown files, a signature."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext

from ...checkpoint.checkpoint import Checkpoint
from ...errors import SourceError, VerifyError
from ...formats.base.sharded_writer import RECIPE_FILE
from ...planning.plan.files import PlanCompanion
from ...planning.plan.receipt import OutputNote
from ...planning.recipe import Recipe
from ...storage.folder_files import contents
from ...storage.read.base import File, Folder
from ...storage.read.uri import leads_out, open_source, read_small
from ...storage.signing import MODEL_SIGNATURE, SINGLE, load_verifier, read_signature, signature_of
from ...util.text import escape

__all__ = ["companion_faults", "digest_of", "folder_of", "other_files", "signature_faults"]

# The small files of an output folder, compared with its recipe.

BLOCK = 1 << 20


def companion_faults(path: str, companions: Sequence[PlanCompanion]) -> Iterator[str]:
    """Yield a message for each small file next to an output's weights, such as ``config.json``, that has changed.

    ``companions`` are the names, sizes and checksums of these files from the recipe. Only regular files are read.
    """
    if not companions:
        return
    source = open_source(path)
    with closing(source) if isinstance(source, File) else nullcontext():
        folder = source.folder() if isinstance(source, File) else source
    for one in companions:
        places = filter(None, (one.subfolder, one.name))
        if any(leads_out(os.path.join(folder.uri, place)) for place in places):
            where = "next to the weights is a link to a file outside the folder"
            yield f"{escape(one.name)} {where}; such links are not followed"
            continue
        try:
            with closing(folder.file(one.name)) as file:
                same = file.size == one.size and digest_of(file) == one.sha256
        except SourceError as error:
            yield f"{escape(one.name)} next to the weights cannot be read: {error.message}"
            continue
        if not same:
            yield f"{escape(one.name)} next to the weights has changed since it was written"


def digest_of(file: File) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    for begin in range(0, file.size, BLOCK):
        digest.update(file.read(begin, min(BLOCK, file.size - begin)))
    return digest.hexdigest()


def folder_of(output: Checkpoint) -> Folder | None:
    """Return the folder of an output that was written as a folder; None if the output is a single file.

    Raises SourceError if the output cannot be opened.
    """
    source = open_source(output.path)
    if isinstance(source, File):  # the output is an index of shards, or a single file in a folder with other files
        source.close()
        if len(output.files) == 1:
            return None
    folder = source.folder() if isinstance(source, File) else source
    return folder if RECIPE_FILE in folder.names() else None


def other_files(output: Checkpoint, said: Recipe | None) -> Iterator[OutputNote]:
    """Yield a note for each file in an output's folder that is not in the recipe; a subfolder counts as one file."""
    folder = folder_of(output) if said is not None and not output.in_memory else None
    if folder is None or said is None:
        return
    known = {
        RECIPE_FILE,
        MODEL_SIGNATURE,
        *(file.name for file in output.files),
        *(f"{file.name.partition('/')[0]}/" for file in output.files if "/" in file.name),  # a component's folder
        *(one.name for one in said.target.companions),
        *(f"{one.subfolder}/" for one in said.target.companions if one.subfolder),
    }
    for name in contents(folder):
        if name not in known:
            yield OutputNote(name, "in the folder, but not in the recipe")


# The signature of an output.


def signature_faults(output: Checkpoint, key: str) -> Iterator[str]:
    """Yield the reasons why the signature of an output is missing or invalid; nothing if it is valid.

    ``key`` is the path of the file with the key. Raises ConfigError if the key is invalid, SourceError if its file
    cannot be read.
    """
    verifier = load_verifier(key)
    folder = folder_of(output)
    place = signature_of(output.path if folder is None else folder.uri, folder=folder is not None)
    name = escape(os.path.basename(place))
    try:
        signed = read_signature(read_small(place), verifier)
    except VerifyError as error:
        yield f"the signature {name} {error.message}"
    except SourceError as error:
        what = f"the signature {name} cannot be read" if os.path.lexists(place) else "it is not signed"
        yield f"{what}: {error.message.rstrip('.')}"
    else:
        yield from _other_than_signed(output, folder, signed)


def _other_than_signed(output: Checkpoint, folder: Folder | None, signed: dict[str, str]) -> Iterator[str]:
    here = {SINGLE} if folder is None else set(contents(folder)) - {MODEL_SIGNATURE}
    for name in sorted(here - signed.keys()):
        yield f"{escape(name)} is in the folder, but is not signed"
    for name, digest in signed.items():
        if name not in here:
            yield f"{escape(name)} was signed, but is not in the folder"
            continue
        path = output.path if folder is None else os.path.join(folder.uri, name)
        if folder is not None and leads_out(path):
            yield f"{escape(name)} is a link to a file outside the folder; such links are not followed"
            continue
        try:
            file = open_source(path) if folder is None else folder.file(name)
            if not isinstance(file, File):
                raise SourceError(f"{escape(path)} is a folder.")
            with closing(file):
                same = digest_of(file) == digest
        except SourceError as error:
            yield f"{escape(name)} was signed, but cannot be read: {error.message.rstrip('.')}"
            continue
        if not same:
            yield f"{escape(os.path.basename(path))} has changed since it was signed"
