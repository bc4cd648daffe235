"""Finds the starting point of a new run: a configuration, initial weights, and a folder that is free."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...destinations._document import read_document
from ...destinations._load import code_named
from ...errors import CheckpointError, ConfigError, OutputError
from ...storage.small_files import read_file
from ...util.text import escape, listing
from ..config.imports import user_code_in
from ..config.section import resolve_paths
from ..config.settings import DATASET
from ..folder.run_folder import ADAPTER, BEST, RunFolder
from ..job.assembly import train_section
from ..job.init_checkpoint import InitCheckpoint, read_init
from ..job.job import Job
from ..tasks._task import task_file
from .records import LINEAGE, read_lineage
from .run_loggers import LOGGER_IDS

__all__ = [
    "RunStart",
    "check_free",
    "check_inputs_are_safe",
    "find_start",
    "other_files_note",
]

WRITTEN = (
    "config.yaml", LINEAGE, "log.jsonl", "checks.json", "result.json", "curves.png", BEST, ADAPTER, "events", "steps",
    "last", "dev.hypotheses.jsonl", "test.hypotheses.jsonl", LOGGER_IDS,
)  # fmt: skip
"""The names of the files and folders that a run writes into its folder."""
BY_LOGGERS = ("wandb", "mlruns")
"""The folders that loggers write into the folder of a run; they may contain files of other runs or of the user."""


def check_free(folder: RunFolder) -> None:
    """Raise OutputError if a run would overwrite files of the user, and ConfigError if the folder contains a run."""
    if os.path.lexists(folder.path) and not os.path.isdir(folder.path):
        raise OutputError(f"{escape(folder.path)} is not a folder.", hint="Give a folder for the run: --run DIR.")
    found = [name for name in WRITTEN if os.path.lexists(folder.of(name)) and not _is_empty_folder(folder.of(name))]
    if not found:
        return
    try:
        read_lineage(folder)
    except CheckpointError as error:
        raise _in_the_way(folder, found[0]) from error
    if folder.holds_a_run:
        raise ConfigError(
            f"{escape(folder.path)} contains a run, at step {folder.last_step()}.",
            hint="Continue that run with --resume, or start another run with --run DIR.",
        )


def _in_the_way(folder: RunFolder, name: str) -> OutputError:
    return OutputError(
        f"{escape(folder.of(name))} is in the way: a run writes a file with this name, and there is no readable "
        f"{LINEAGE} of a run.",
        hint="Give the run another folder: --run DIR.",
    )


def _is_empty_folder(path: str) -> bool:
    """Return whether a path is an empty folder; a run that could not write leaves such folders behind."""
    try:
        return not os.listdir(path)
    except OSError:
        return False


def other_files_note(folder: RunFolder) -> tuple[str, ...]:
    """Return a note if the folder contains files that no run writes: ``--run`` may be a mistake. Else return ()."""
    names = sorted(os.listdir(folder.path)) if os.path.isdir(folder.path) else []
    others = [name for name in names if name not in (*WRITTEN, *BY_LOGGERS) and not name.startswith((".", "__"))]
    if not others:
        return ()
    shown = listing(others, 3, where="")
    return (f"{escape(folder.path)} also contains files that no run writes: {shown}",)


def check_inputs_are_safe(folder: RunFolder, job: Job) -> None:
    """Raise OutputError if the run would overwrite one of its input files, or a config.json that no run wrote."""
    beside = [one.name for one in job.target.companions]
    if not os.path.lexists(folder.of(LINEAGE)):
        for name in beside:
            if os.path.lexists(folder.of(name)):
                raise _in_the_way(folder, name)
    outputs = [os.path.realpath(folder.of(name)) for name in (*WRITTEN, *beside)]
    for path in filter(None, _inputs(job)):
        real = os.path.realpath(path)
        if any(real == output or real.startswith(output + os.sep) for output in outputs):
            raise OutputError(
                f"{escape(path)} is an input, and the run would overwrite it.",
                hint="Give the run another folder: --run DIR.",
            )


def _inputs(job: Job) -> Iterator[str]:
    """Yield the paths of the files that a run reads."""
    home = job.document.folder
    settings = resolve_paths(job.settings, home)
    data = settings.data
    yield job.document.path
    yield task_file(job.settings.task, home)
    others = (data.tokens, data.segmenter, settings.lm, *settings.augment.noise)
    for one in (*data.train, *data.dev, *data.test, *others):
        path = one.get(DATASET) if isinstance(one, Mapping) else one
        if isinstance(path, str):
            yield path
    if job.init is not None:
        yield job.init.path


PATTERN = "*.init.safetensors"
MAKES_ONE = "Make initial weights with ckpt transplant SRC dst.yaml, or give a configuration: ckpt train dst.yaml."


@dataclass(frozen=True)
class RunStart:
    """What a run starts from: a configuration, the initial weights, and notes for the user.

    ``from_`` is the path of the initial weights with which the run starts (or, if it is resumed, was started). ``init``
    is the checkpoint at this path, or None if it is not needed, as for most resumed runs. ``known`` is the lineage of a
    resumed run, None for a new run.
    """

    config: str
    init: InitCheckpoint | None = None
    notes: tuple[str, ...] = ()
    from_: str | None = None
    known: Mapping[str, Any] | None = None


def find_start(config: str | None, init: str | None) -> RunStart:
    """Return the starting point of a run: the configuration ``config`` and the initial weights ``init``.

    Without ``config`` and ``init``, ``init`` is the only ``*.init.safetensors`` in the working directory. Without
    ``config``, the recipe of ``init`` refers to the configuration. Raises ConfigError if there is no such file, or if
    several files match. Also raises ConfigError if the recipe's configuration has changed, runs code, or is outside the
    folder of ``init``.
    """
    if config is not None:
        if init is not None:
            return RunStart(config, read_init(init), from_=init)
        return RunStart(config, notes=("no --init: all weights are newly initialised",))
    path = init or _the_one_init()
    found = read_init(path)
    return RunStart(_config_of(found), found, () if init else (f"the init is {escape(path)}",), path)


def _the_one_init() -> str:
    found = sorted(glob.glob(PATTERN))
    if not found:
        raise ConfigError(f"no configuration is given, and the working directory has no {PATTERN}.", hint=MAKES_ONE)
    if len(found) > 1:
        raise ConfigError(
            f"the working directory has {len(found)} initial checkpoints ({PATTERN}): {listing(found, where='')}.",
            hint="Choose one of them with --init.", details=found,
        )  # fmt: skip
    return found[0]


def _config_of(init: InitCheckpoint) -> str:
    """Return the path of the configuration to which the recipe of the checkpoint ``init`` refers.

    Raises ConfigError unless the configuration is in the checkpoint's folder, is unchanged, and refers to no code.
    Somebody else may have written the recipe, so it must not lead to files outside this folder. And a user who gives a
    checkpoint has not agreed to run code from its folder.
    """
    name = escape(init.path)
    hint = "Give the configuration: ckpt train dst.yaml --init " + name
    made = init.recipe
    if made is None or not made.target.config or not made.target.files:
        raise ConfigError(f"{name} does not say which configuration it was made for.", hint=hint)
    folder = os.path.dirname(os.path.abspath(init.path))
    path = os.path.normpath(os.path.join(folder, made.target.config))
    real, here = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, here]) != here:
        raise ConfigError(f"the configuration of {name} is outside its folder ({escape(path)}).", hint=hint)
    wanted = made.target.files[0]
    try:
        data = read_file(path)
    except OSError as error:
        raise ConfigError(f"the configuration of {name} cannot be read: {escape(path)}.", hint=hint) from error
    if (len(data), hashlib.sha256(data).hexdigest()) != (wanted.size, wanted.sha256):
        raise ConfigError(
            f"{escape(os.path.relpath(path))} has changed since {name} was made.",
            hint="Transplant again, or give the changed file: "
            f"ckpt train {escape(os.path.relpath(path))} --init {name}.",
        )
    near = os.path.relpath(path)
    code = code_named(near) or tuple(user_code_in(train_section(read_document(near))))
    if code:
        raise ConfigError(
            f"{escape(near)} runs code ({listing(code, where='')}). You did not give this file: {name} refers to it.",
            hint=f"Read the code. If you trust it, name the file: ckpt train {escape(near)} --init {name}.",
            details=code,
        )  # fmt: skip
    return near
