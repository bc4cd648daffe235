"""What a run that goes on starts from: what its folder says, held against what there is now."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...errors import ConfigError
from ...util.text import escape
from ..folder.locking import RunLock
from ..folder.run_folder import RunFolder
from ..job.init import InitCheckpoint, read_init
from .lineage import OVERFITTING, edited_config_note, read_lineage
from .start import RunStart

__all__ = ["check_overfitting", "resume_start"]


def resume_start(
    lock: RunLock, folder: RunFolder, config: str | None, *, sets: Sequence[str], controls: bool
) -> tuple[RunStart, tuple[str, ...]]:
    """Return what the run in a folder was started from, and its settings with ``sets`` over them; lock it.

    The init is opened where ``controls`` need it: the run itself goes on without. Raises ConfigError where there is no
    run, or that init is another now.
    """
    folder.last_step()
    known = read_lineage(folder)
    lock.take()
    notes = tuple(filter(None, (folder.relinked(), edited_config_note(folder, known))))
    if config is None:
        config = os.path.relpath(os.path.join(folder.path, known["config"]))
    begun = known["init"]["path"] if known["init"] is not None else None
    from_ = os.path.relpath(os.path.join(folder.path, begun)) if begun is not None else None
    init = _same_init(from_, known["init"]["files"]) if controls and from_ is not None else None
    return RunStart(config, init, notes, from_=from_, known=known), (*known["sets"], *sets)


def _same_init(path: str, files: Sequence[dict[str, object]]) -> InitCheckpoint:
    if not os.path.exists(path):
        raise ConfigError(f"--controls start from the run's init, and {escape(path)} is gone.", hint="Put it back.")
    init = read_init(path)
    if [(file["size"], file["sha256"]) for file in init.files] != [(file["size"], file["sha256"]) for file in files]:
        raise ConfigError(
            f"--controls start from the run's init, and {escape(path)} is another than the run was started from.",
            hint="Put the old one back.",
        )
    return init


def check_overfitting(start: RunStart, asked: bool, folder: RunFolder) -> bool:
    """Return whether one batch is learned by heart: a run that goes on does what it did. Raises ConfigError."""
    if start.known is None:
        return asked
    began = bool(start.known.get(OVERFITTING, False))
    if asked and not began:
        raise ConfigError(
            f"{escape(folder.path)} was started without --overfit-one-batch: it learns from all of its data.",
            hint="Leave it out, or start another run: --run.",
        )
    return began
