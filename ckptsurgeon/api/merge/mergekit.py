"""``merge`` with a recipe of mergekit: reads the recipe, opens its models, and plans the merge."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import ConfigError
from ...methods.merge._method import Method
from ...planning.mergekit.configuration import Configuration, read_configuration
from ...planning.mergekit.fields import ModelReference
from ...planning.plan.files import SourceView
from ...planning.plan.plan import Plan
from ...util.text import brief_repr, escape
from ..inputs.encoding import as_stored
from ..inputs.kept_codes import keeping_codes
from ..inputs.recipe_files import is_recipe, read_recipe_file
from ..inputs.reopening import with_model_files_pinned
from ..inputs.sampled_parts import base_notes, unrelated_notes
from ..model_folder.checks import with_sources_said, without_repeats
from ..model_folder.config_differences import with_config_said
from ..model_folder.rows_by_place import RECIPE, checked_rows
from .recipe_models import RecipeModels, found
from .request import MergeRequest
from .statistics import MergeStatistics, opened_statistics
from .vocabulary import merge_vocabulary

__all__ = ["check_alone", "plan_configuration", "read_recipe"]


def read_recipe(path: str) -> dict[str, Any]:
    """Return the parsed recipe of mergekit.

    Raises SourceError if the file cannot be read, ConfigError if it is not a recipe of mergekit.
    """
    document = read_recipe_file(path)
    if isinstance(document, dict) and "verb" in document:
        raise ConfigError(
            f"{escape(path)} is a recipe of ckptsurgeon, not of mergekit.", hint=f"Run ckpt apply {escape(path)}."
        )
    if not isinstance(document, dict) or "merge_method" not in document:
        raise ConfigError(
            f"{escape(path)} has no merge_method.",
            hint="A recipe of mergekit has the fields merge_method, models and others.",
        )
    if not isinstance(document["merge_method"], str):
        raise ConfigError(
            f"{escape(path)}: merge_method is {brief_repr(document['merge_method'])}, not the name of a method.",
            hint="Run ckpt merge --list for the names of the methods.",
        )
    return document


def check_alone(recipe: str, **given: Any) -> None:
    """Raise ConfigError if ``recipe`` is not the path of a recipe, or if an argument in ``given`` has a value.

    ``given`` are the values of those arguments of ``merge`` that a recipe itself contains, such as the method.
    """
    if not is_recipe(recipe):
        raise ConfigError(
            f"{escape(recipe)} is not a recipe.",
            hint="Give a recipe of mergekit (.yaml), or a list of models.",
        )
    doubled = next((name for name, value in given.items() if value not in (None, (), [], {})), "")
    if doubled:
        raise ConfigError(
            f"the argument {escape(doubled)} cannot be given with a recipe.",
            hint="Write its value into the recipe instead.",
        )


def plan_configuration(path: str, document: Mapping[str, Any], method: Method, asked: MergeRequest) -> Plan:
    """Return the plan of the recipe ``document``, which was read from ``path``.

    Paths in the recipe are relative to the working directory, or else to the recipe's folder. ``asked`` has the
    arguments of ``merge`` other than models, method and parameters. Raises ConfigError for an invalid field of the
    recipe, PlanError if the models cannot be merged in this way.
    """
    folder = os.path.dirname(path)
    try:
        configuration = read_configuration(document)
        options = asked.options.or_dtype(configuration.dtype)
        references = configuration.references
        paths = [found(one, folder) for one in references]
        with ExitStack() as stack:
            opened = asked.opened(paths, stack)
            base = references.index(configuration.base) if configuration.base in references else 0
            aligned = asked.aligned(opened, base)
            opened[:] = aligned.checkpoints
            merged = RecipeModels(
                configuration,
                folder,
                dict(zip(references, paths, strict=True)),
                opened,
                [*asked.notes(opened), *aligned.notes, *_base_notes(configuration, references, opened, method)],
                asked.encoding,
                aligned.operations,
            )
            stored = as_stored(opened, asked.encoding)
            chosen = merge_vocabulary(merged.vocabulary(asked.vocabulary, method), merged.models, first=merged.donor)
            options = replace(
                options,
                vocabulary=chosen[0] if chosen is not None else None,
                encoded=asked.encoded(stored[merged.donor]),
            )  # fmt: skip
            tokens = chosen[1] if chosen is not None else None
            arguments = {**asked.arguments, "recipe": merged.said(document)}
            given = merged.given_statistics(asked.statistics)

            def statistics(models: Sequence[int], views: Sequence[SourceView]) -> MergeStatistics:
                return opened_statistics(
                    given, method, {number: opened[number] for number in models}, views, stack, paths=paths
                )

            plan = merged.plan(method, options, tokens, asked.seed, arguments, statistics)
            every = [*opened, *merged.statistics.opened]
            plan, every = keeping_codes(plan, every, asked.encoding, merged.donor, dtype=options.dtype)
            plan = with_config_said(plan, merged.folders, merged.donor)
            plan = without_repeats(with_sources_said(plan, stored, merged.folders), stored[merged.donor])
            plan = checked_rows(
                plan, merged.folders, remedy=RECIPE, donor=merged.donor, allowed=asked.vocabulary.is_by_place
            )
            plan = with_model_files_pinned(plan, merged.folders)
            plan = asked.carried(plan, every, path, donor=merged.donor)
            stack.pop_all()
    except ConfigError as error:
        raise type(error)(f"{escape(os.path.basename(path))}: {error.message}", hint=error.hint) from error
    return plan


def _base_notes(
    configuration: Configuration, references: Sequence[ModelReference], opened: Sequence[Checkpoint], method: Method
) -> list[str]:
    """Return notes on models that are copies of the recipe's base, or that were not fine-tuned from it.

    The base may also be one of the models to merge; it is not compared with itself.
    """
    if configuration.base is None or method.base not in ("required", "optional"):
        return []
    at = references.index(configuration.base)
    others = [*opened[:at], *opened[at + 1 :]]
    return [*base_notes(opened[at], others), *unrelated_notes(opened[at], others)]
