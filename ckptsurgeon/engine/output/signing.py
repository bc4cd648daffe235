"""Signs an output before it is published, so that the output and its signature appear together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...errors import OutputError
from ...storage.read.uri import scheme_of
from ...storage.signing import MODEL_SIGNATURE, SINGLE, load_signer, sign, signature_of
from ...storage.small_files import open_file
from ...storage.write.folders import StagedFolder
from ...storage.write.journal import JOURNAL
from ...storage.write.output_paths import check_output, output_error, output_lock
from ...storage.write.staged_file import StagedFile, staged_file
from ...util.text import escape, listing
from .layout import OutputOptions

__all__ = ["OutputSigner", "check_signable", "earlier_signature_notes", "earlier_signatures", "signing"]


class OutputSigner:
    """Signs the files of an output with the key of ``options``."""

    def __init__(self, options: OutputOptions, path: str, place: StagedFile | None = None) -> None:
        self._signer = load_signer(options.key)
        self._name = os.path.basename(os.path.abspath(path))
        self.place = place

    def finish(self, files: Iterable[StagedFile], folder: StagedFolder | None) -> None:
        """Read the temporary files, and write their signature into the folder, or next to the single file."""
        if folder is not None:
            names = sorted(name for name in os.listdir(folder.path) if name != JOURNAL)
            digests = {name: _digest(os.path.join(folder.path, name), folder.shown) for name in names}
            folder.write(MODEL_SIGNATURE, sign(self._name, digests, self._signer))
        for file in files if self.place is not None else ():
            assert self.place is not None
            self.place.write(0, sign(self._name, {SINGLE: _digest(file.path, file.shown)}, self._signer))


@contextmanager
def signing(
    options: OutputOptions, path: str, protected: set[tuple[int, int]], *, folder: bool
) -> Iterator[OutputSigner]:
    """Yield the signer of an output with the key of ``options``.

    If the output is a single file, its signature is published after the block.

    ``protected`` are the device and inode numbers of files that must not be overwritten.
    """
    if folder:
        yield OutputSigner(options, path)
        return
    place = signature_of(path, folder=False)
    made = OutputSigner(options, path)
    check_output(place, protected, force=options.force, folder=False)
    written = False
    try:
        with output_lock(place, options.wait), staged_file(place, None, force=options.force) as file:
            made.place = file
            yield made
            written = True  # the file is published, the signature not yet
    except OutputError as error:
        hint = f"{escape(path)} is written, but not signed: write it again with --force."
        raise OutputError(error.message, hint=hint) if written else error from error


def check_signable(path: str, options: OutputOptions, replaced: Iterable[str]) -> None:
    """Raise OutputError if the folder of a signed output contains files that the signature would not cover.

    ``replaced`` are the files that the output replaces.
    """
    left = sorted(set(os.listdir(path)) - set(replaced)) if os.path.isdir(path) else []
    if left:
        raise OutputError(
            f"{escape(path)} contains files that are not replaced and that the signature would not cover: "
            f"{listing(left)}.",
            hint="Write to a new folder.",
        )


def earlier_signatures(path: str, *, folder: bool, signed: bool = False) -> list[str]:
    """Return the signatures at the output ``path`` that were made before it is written, and will not fit it.

    If the output itself is ``signed``, its own signature is not one of them. An output at an address has none.
    """
    if scheme_of(path):
        return []
    own = signature_of(path, folder=folder)
    around = [] if folder else [os.path.join(os.path.dirname(path), MODEL_SIGNATURE)]
    return [one for one in dict.fromkeys([own, *around]) if os.path.lexists(one) and not (signed and one == own)]


def earlier_signature_notes(places: Iterable[str]) -> tuple[str, ...]:
    """Return notes on the ``earlier_signatures`` of an output, after it was written: some have been removed."""
    return tuple(
        f"the signature {escape(place)} was made before this output was written, so ckpt verify --key will fail if the "
        "output differs from what was signed"
        if os.path.lexists(place)
        else f"the signature {escape(place)} is removed: it was made for the earlier output, and this one is not signed"
        for place in places
    )


def _digest(path: str, shown: str) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise output_error(shown, error) from error
