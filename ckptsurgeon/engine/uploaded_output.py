"""Manages the temporary files of an output at an address: the files appear there only after all are uploaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import CheckpointError, ConfigError, OutputError
from ..formats.base.format_table import shards_among
from ..formats.base.sharded_writer import RECIPE_FILE
from ..formats.tf.writer import TensorFlowWriter
from ..planning.plan.plan import Plan
from ..storage.read.uri import read_small, scheme_of, shown
from ..storage.signing import MODEL_SIGNATURE
from ..storage.upload.destination import Destination, open_destination
from ..storage.upload.scratch import UploadedFolder, uploaded_folder
from ..util.text import escape
from .consuming import SourceConsumer
from .inputs import PlanInputs
from .output.companion_files import INDEX_BYTES, checkpoint_files, replaced
from .output.layout import OutputOptions, OutputShape, writer_of
from .processes import Helpers
from .staged_output import StagedOutput

__all__ = ["uploaded_output"]


@contextmanager
def uploaded_output(
    path: str,
    shape: OutputShape,
    written: Plan,
    options: OutputOptions,
    *,
    plan: Plan,
    inputs: PlanInputs,
    stale: Iterable[str],
    helpers: Helpers | None = None,
    consumer: SourceConsumer | None = None,
) -> Iterator[StagedOutput]:
    """Yield the temporary files of an output at the address ``path``; when the block ends, they are uploaded to it.

    The arguments are the same as those of ``staged_output``. Raises OutputError if the address contains a checkpoint
    and ``force`` is not set, or if the address cannot be written to. Raises ConfigError for options that an output at
    an address does not support.
    """
    _check_options(options, shape, helpers)
    assert consumer is None  # refused by source_consumer
    _check_no_input(path, shape, options, plan, inputs)
    above, _, alone = ("", "", "") if shape.folder else path.rpartition("/")
    destination = open_destination(f"{above}/" if above.endswith("/") else above or path, file=alone)
    companions = [one.name for one in written.target.companions]
    parts = [name or alone for part in shape.parts for name in part.names]
    names = [*parts, *companions, RECIPE_FILE, *shape.index] if shape.folder else parts
    present = _replaced(destination, path, names, stale) if shape.folder else [alone] * destination.has(alone)
    if present and not options.force:
        has = replaced(present, written.target)[0] if shape.folder else "exists"
        raise OutputError(
            f"{escape(shown(path))} {has}.", hint="Use --force to replace the files there.", details=present
        )
    late = writer_of(options).name == TensorFlowWriter.name
    size = shape.size if late else max(part.layout.size for part in shape.parts)
    with uploaded_folder(path, destination, size, late=late) as folder:
        destination.begin(names)
        staged = _staged(shape, folder, alone)
        yield staged
        folder.publish(names, _removed(present, parts, companions))


def _removed(present: Sequence[str], parts: Sequence[str], companions: Sequence[str]) -> list[str]:
    """Return the names in ``present`` of files that are removed before the new files appear, in the order of removal.

    Old shards are removed last, as new ones may have their names, and other files, such as the index, first. If the new
    output is one file of weights, an old file of this name is not removed, but replaced in one step.
    """
    removed = [name for name in present if name not in companions and parts != [name]]
    shards = shards_among(removed)
    return sorted(removed, key=lambda name: name in shards)


def _staged(shape: OutputShape, folder: UploadedFolder, alone: str) -> StagedOutput:
    """Return the temporary files of an output, which also report uploaded bytes as progress.

    All bytes are first written, then uploaded, so the total of the progress is twice the size of the output. ``alone``
    is the name of the file if the output is a single file.
    """
    files = {} if shape.folder else {"": folder.file(alone, shape.size)}
    staged = StagedOutput(shape, files, folder if shape.folder else None)
    staged.sends = left = shape.size

    def sent(nbytes: int) -> None:
        nonlocal left
        counted = min(nbytes, left)  # the total does not include the small files, such as companions
        left -= counted
        staged.advance(counted)

    folder.advance = sent
    return staged


def _check_options(options: OutputOptions, shape: OutputShape, helpers: Helpers | None) -> None:
    """Raise ConfigError for an option that an output at an address does not support; the message gives the reason."""
    at = f"for the output at {escape(shown(options.path))}"
    if options.restart:
        raise ConfigError(
            f"--restart is not possible {at}: no finished parts are kept there after an interruption.",
            hint="Leave out --restart.",
        )
    if options.key:
        raise ConfigError(
            f"--key is not possible {at}: each file is uploaded and removed from this machine before the last file is "
            "written, but a signature is made from all files.",
            hint="Write the output to this machine, and copy it.",
        )
    if helpers is not None and shape.folder:
        raise ConfigError(
            f"several processes are not possible {at}: they need a folder that they share.",
            hint="Start one process, or write to this machine.",
        )


def _check_no_input(path: str, shape: OutputShape, options: OutputOptions, plan: Plan, inputs: PlanInputs) -> None:
    """Raise OutputError if an input of the plan is at the address of the output, or in its folder."""
    read = [file.uri for source in inputs.sources for file in source.open_files().values()]
    read += [file.name for file in plan.target.files] + [one.path for one in plan.target.companions]
    place = _place(shown(path).rstrip("/"))
    for uri in map(shown, (*read, *options.inputs)):
        if uri and (_place(uri).rpartition("/")[0] if shape.folder else _place(uri)) == place:
            raise OutputError(f"{escape(uri)} is an input, and inputs are never changed.", hint="Use another output.")


def _place(uri: str) -> str:
    """Return a form of ``uri`` that is equal for all URIs of the same file; links in a local path are resolved."""
    if scheme_of(uri) not in ("", "file", "local"):
        return uri
    return f"file://{os.path.realpath(uri.partition('://')[2] or uri)}"


def _replaced(destination: Destination, path: str, names: Iterable[str], stale: Iterable[str]) -> list[str]:
    """Return the names of the files at an address that the output replaces.

    These are all checkpoint files at the address, the files in ``names`` that exist, the files ``stale`` of an earlier
    output, and the signature of that output.
    """
    there = [*destination.names(), *(name for name in names if "/" in name and destination.has(name))]

    def read(name: str) -> bytes:
        if name not in there:
            raise FileNotFoundError(name)
        try:
            return read_small(f"{path.rstrip('/')}/{name}", INDEX_BYTES)
        except CheckpointError as error:
            raise OSError(error.message) from None

    found = [*checkpoint_files(there, read), *(name for name in names if name in there), *stale]
    signature = [MODEL_SIGNATURE] if RECIPE_FILE in there and MODEL_SIGNATURE in there else []
    return list(dict.fromkeys([*found, *signature]))
