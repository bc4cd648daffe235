"""Compares the files of models that are merged, and gives the output the files of one of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.plan import Plan
from ..inputs.reopening import with_model_files_pinned
from ..model_folder.checks import with_sources_said, without_repeats
from ..model_folder.config_differences import with_config_said
from ..model_folder.folder import ModelFolder
from ..model_folder.merged import merged_folder
from ..model_folder.rows_by_place import MERGED, checked_rows
from .vocabulary import ModelTokens

__all__ = ["with_files"]


def with_files(
    plan: Plan,
    opened: Sequence[Checkpoint],
    folders: Sequence[ModelFolder],
    donor: int,
    tokens: ModelTokens | None,
    *,
    by_place: bool,
) -> Plan:
    """Return a plan whose output gets the files of the model at index ``donor``, with notes on all files.

    ``opened`` are the models, and ``folders`` their folders. ``tokens`` is the vocabulary of the output if rows are
    merged by token. Raises PlanError if rows are copied by position, although the models have different tokens, unless
    the user asked for this (``by_place``).
    """
    plan = with_config_said(plan, folders, donor)
    plan = with_sources_said(plan, opened, folders)
    plan = without_repeats(merged_folder(plan, folders[donor], folders, tokens=tokens), opened[donor])
    plan = checked_rows(plan, folders, remedy=MERGED, donor=donor, allowed=by_place)
    return with_model_files_pinned(plan, folders)
