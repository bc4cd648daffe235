"""Holds the files of an output against a signature."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

from ...checkpoint.checkpoint import Checkpoint
from ...errors import SourceError, VerifyError
from ...storage.read._links import leads_out
from ...storage.read.base import File, Folder
from ...storage.read.local import contents
from ...storage.read.small import read_small
from ...storage.read.uri import open_source
from ...storage.signing.bundle import MODEL_SIGNATURE, SINGLE, read_signature, signature_of
from ...storage.signing.keys import load_verifier
from ...util.text import escape
from .companions import digest_of
from .other_files import folder_of

__all__ = ["signature_faults"]


def signature_faults(output: Checkpoint, key: str) -> Iterator[str]:
    """Yield why an output is not one that the holder of a key signed; raises ConfigError where the key is none."""
    verifier = load_verifier(key)
    folder = folder_of(output)
    place = signature_of(output.path if folder is None else folder.uri, folder=folder is not None)
    name = escape(os.path.basename(place))
    try:
        signed = read_signature(read_small(place), verifier)
    except VerifyError as error:
        yield f"the signature {name} {error.message}"
    except SourceError as error:
        yield f"it is not signed: {error.message.rstrip('.')}"
    else:
        yield from _other_than_signed(output, folder, signed)


def _other_than_signed(output: Checkpoint, folder: Folder | None, signed: dict[str, str]) -> Iterator[str]:
    here = {SINGLE} if folder is None else set(contents(folder)) - {MODEL_SIGNATURE}
    for name in sorted(here - signed.keys()):
        yield f"{escape(name)} is there and is not signed"
    for name, digest in signed.items():
        if name not in here:
            yield f"{escape(name)} was signed and is not there"
            continue
        path = output.path if folder is None else os.path.join(folder.uri, name)
        if folder is not None and leads_out(path):
            yield f"{escape(name)} is a link out of the folder, which is not followed"
            continue
        try:
            file = open_source(path) if folder is None else folder.file(name)
            if not isinstance(file, File):
                raise SourceError(f"{escape(path)} is a folder.")
            with closing(file):
                same = digest_of(file) == digest
        except SourceError as error:
            yield f"{escape(name)} was signed and cannot be read: {error.message.rstrip('.')}"
            continue
        if not same:
            yield f"{escape(os.path.basename(path))} is not as it was signed"
