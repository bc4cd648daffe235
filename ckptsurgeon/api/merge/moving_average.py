"""``average_windows``: the moving average of a run, which is the mean of each window of consecutive checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ...errors import ConfigError, OutputError
from ...formats.base.format_table import writers
from ...planning.plan.plan import Plan
from ...planning.plan.receipt import Receipt
from ...storage.read.uri import scheme_of
from ...storage.write.output_paths import check_is_path, output_error
from ...util.text import count, escape
from ..apply import apply
from ..average import average
from ..inputs.argument_types import Path, Progress, checked
from ..inputs.inputs import close_plan
from .lockstep import in_lockstep

__all__ = ["average_windows", "window_names"]

CONFIG = "config.json"
TOGETHER = 16
"""At most this many means are written at once: each has files open and buffers in memory."""


@checked
def average_windows(
    sources: Sequence[Path],
    output: Path,
    *,
    window: int,
    ema: float | None = None,
    decay: str | None = None,
    int_buffers: str = "last",
    vocab: str | None = None,
    encoding: str = "keep",
    unwrap: bool = False,
    root: str | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    wait: float | None = None,
    key: Path | None = None,
    progress: Progress | None = None,
) -> list[Receipt]:
    """Write the mean of every ``window`` consecutive checkpoints, each to its own file in the folder ``output``.

    With ten checkpoints and a window of four, seven means are written: of the first to the fourth, the second to the
    fifth, and so on. Each is named after the last checkpoint in its window; a name without the suffix of a format that
    can be written, such as that of a folder, gets ".safetensors". With ``ema`` or ``decay``, each is the weighted mean
    that ``average`` gives of its checkpoints (WSM, https://arxiv.org/abs/2507.17634). Each mean has its own recipe, so
    ``verify`` can check it. Each mean is computed from its checkpoints, not from the previous mean, so rounding errors
    do not add up. Up to ``TOGETHER`` means are written at once and at one pace, so that they share what is read from
    the disk. If one of them fails, the others that are not finished are stopped. The other arguments are those of
    ``average`` and ``apply``. Returns the receipts in the order of the means.

    Raises ConfigError for a window that is not between 2 and the number of checkpoints, OutputError if a file exists
    (without ``force``), and the errors of ``average`` and ``apply``.
    """

    def planned(paths: list[str]) -> Plan:
        return average(
            paths,
            ema=ema,
            decay=decay,
            int_buffers=int_buffers,
            vocab=vocab,
            encoding=encoding,
            unwrap=unwrap,
            root=root,
            metadata=metadata,
        )

    paths = [os.fspath(one) for one in sources]
    if not 2 <= window <= len(paths):
        raise ConfigError(
            f"--window {window} is not possible with {count(len(paths), 'checkpoint')}.",
            hint="Give a number from 2 to the number of checkpoints.",
        )
    folder = os.fspath(output)
    names = window_names(paths)[window - 1 :]
    close_plan(planned(paths))  # checkpoints that do not fit each other are an error before anything is written
    _make(folder, names, force=force)

    def run_of(place: int) -> Callable[[Progress], Receipt]:
        def run(advance: Progress) -> Receipt:
            plan, path = planned(paths[place : place + window]), os.path.join(folder, names[place])
            return apply(plan, path, force=force, key=key, wait=wait, progress=advance)

        return run

    # Each run fetches remote files for itself, so one run at a time keeps the fewest of them on this machine.
    together = 1 if any(map(scheme_of, paths)) else TOGETHER
    receipts: list[Receipt] = []
    for begin in range(0, len(names), together):
        runs = [run_of(place) for place in range(begin, min(begin + together, len(names)))]
        receipts += in_lockstep(runs, progress)
    notes = _left_files(paths)
    return [replace(one, notes=(*one.notes, *notes)) for one in receipts]


def _left_files(paths: Sequence[str]) -> list[str]:
    """Return a note that configuration and tokeniser are not copied if the checkpoints are folders of models."""
    folder = next((one for one in reversed(paths) if os.path.isfile(os.path.join(one, CONFIG))), "")
    if not folder:
        return []
    return [
        f"{CONFIG} and the other files of {escape(folder)} are not copied, because each mean is one file: to use a "
        "mean as a model, put it into a folder with copies of them"
    ]


def window_names(paths: Sequence[str]) -> list[str]:
    """Return an output name for each checkpoint: its own name or, if these are not unique, the name of its folder.

    Raises ConfigError if the names of the folders are not unique either.
    """
    for level in (1, 2):
        names = [_file_name(os.path.normpath(path).split(os.sep)[-level:][0]) for path in paths]
        if len({*names}) == len(names):
            return names
    raise ConfigError(
        "the outputs cannot be named after the checkpoints, nor after their folders: several checkpoints have the same "
        "name, and several are in folders of the same name.",
        hint="Give each checkpoint once, or rename the files.",
    )


def _file_name(name: str) -> str:
    suffixes = tuple(suffix for each in writers().suffixes.values() for suffix in each)
    return name if name.lower().endswith(suffixes) else f"{name}.safetensors"


def _make(folder: str, names: Sequence[str], *, force: bool) -> None:
    """Create the folder of the outputs; raises OutputError if this fails, or if one of the outputs exists already.

    A new folder with the name of a file, such as mean.safetensors, is an error, too.
    """
    check_is_path(folder)
    name = os.path.basename(folder)  # '' if the path ends in a slash
    if name and name == _file_name(name) and not os.path.lexists(folder):
        raise OutputError(
            f"{escape(folder)} is the name of a file, but a moving average writes a folder (here of "
            f"{count(len(names), 'file')}).",
            hint=f"Name a folder for these files: {escape(os.path.splitext(folder)[0])}/.",
        )
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    there = [name for name in names if os.path.lexists(os.path.join(folder, name))]
    if there and not force:
        raise OutputError(
            f"{escape(os.path.join(folder, there[0]))} exists already.", hint="Use --force to replace it."
        )
