"""Compares the files of the models of a transplant, and gives the output the destination's files."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ...destinations.hf.files import CONFIG
from ...formats.base.format_table import INDEX, is_weights
from ...planning.plan.plan import Plan
from ..inputs.reopening import with_model_files_pinned
from ..model_folder.config_differences import with_config_said
from ..model_folder.config_fields import with_dtype_said
from ..model_folder.folder import model_folder_at
from ..model_folder.licences import with_left_files_said, with_licences
from ..model_folder.output import kept_folder
from ..model_folder.rows_by_place import COPIED, checked_lists, checked_rows, with_new_list_checked
from ..model_folder.unmoved_ids import with_unmoved_ids_noted
from ..model_folder.weights.tied_heads import with_heads_said
from .models import TransplantModels

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = ["with_files_compared", "with_output_files"]


def with_output_files(plan: Plan, models: TransplantModels, change: NewVocabulary | None) -> Plan:
    """Return a plan whose output gets the files of the destination, adapted to the new weights and tokens.

    ``change`` is the vocabulary that replaces the destination's. Raises ConfigError if the configuration has the id of
    a token that the new vocabulary lacks, PlanError if the source's token list was given as the destination's.
    """
    plan = checked_lists(with_dtype_said(plan, models.target), models.folders, change, models.kept_folder)
    if models.kept is not None:
        plan = kept_folder(plan, models.destination, models.target, change)
    number = len(models.opened)
    plan = with_licences(plan, [*models.folders[number:], *models.folders[:number]])
    return plan if models.kept is not None else _with_files_of_config_said(plan, models)


def _with_files_of_config_said(plan: Plan, models: TransplantModels) -> Plan:
    """Return a plan with a note on files next to the destination's config.json that are not copied to the output.

    Weights in this folder are not noted, because only the configuration is used.
    """
    config = next(
        (path for path in (models.target.config, *models.target.files) if os.path.basename(path) == CONFIG), ""
    )
    if not config or not models.target.companions:
        return plan
    place = os.path.dirname(config) or os.curdir
    own = next((one for one in models.folders if one.files and _is_same(one.path, place)), None)
    if own is not None:
        return with_left_files_said(plan, replace(own, files=()))  # another note names the files of the tokeniser
    folder = model_folder_at(place)
    left = tuple(name for name in folder.left if not is_weights(name) and not name.endswith(INDEX))
    return with_left_files_said(plan, replace(folder, files=(), left=left))


def _is_same(path: str, folder: str) -> bool:
    """Return whether ``path`` is ``folder``, or a file in it."""
    path = path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
    return os.path.realpath(path) == os.path.realpath(folder)


def with_files_compared(plan: Plan, models: TransplantModels, change: NewVocabulary | None, *, by_place: bool) -> Plan:
    """Return a plan with notes on contradictions between the files of sources and output: settings, tokens, labels.

    If models have different tokens, rows of embeddings are copied by position only if ``by_place`` is set; else
    PlanError is raised.
    """
    folders, kept, number = models.folders, models.kept, len(models.opened)
    if folders[-1].adapter:
        from ..lora.scales import with_scales_checked

        plan = with_scales_checked(plan, folders, number)
    if models.stated or kept is not None:
        plan = with_config_said(plan, folders, number, (models.stated, models.target.name, models.destination))
    noted = plan.notes
    if number == 1 and kept is None:
        plan = with_unmoved_ids_noted(plan, folders[0], models.destination, models.stated, change)
    if change is not None and plan.notes == noted:
        plan = with_new_list_checked(plan, change)
    tied = kept is not None and models.destination.is_tied
    plan = with_heads_said(plan, folders[:number], models.keys, tied=tied)
    rows = models.target.vocabulary
    plan = checked_rows(plan, folders, remedy=COPIED, donor=number, allowed=by_place, declared=rows)
    return with_model_files_pinned(plan, folders)
