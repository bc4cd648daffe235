"""``merge`` of a recipe that mergekit would read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ...errors import ConfigError, SourceError
from ...methods.merge._method import Method
from ...planning.mergekit.configuration import read_configuration
from ...planning.plan.plan import Plan
from ...storage.small_files import read_text
from ...storage.yaml_text import read_yaml
from ...util.did_you_mean import did_you_mean
from ...util.text import brief_repr, escape
from ..inputs.held_files import with_beside_held
from ..model_folder.config_differences import with_config_said
from ..model_folder.rows_by_place import RECIPE, checked_rows
from ..model_folder.source_checks import with_sources_said
from .mergekit_models import RecipeModels, found
from .request import Request
from .vocabulary import merge_vocabulary

__all__ = ["check_alone", "is_recipe", "plan_configuration", "read_recipe"]


def is_recipe(path: str) -> bool:
    """Whether a path is that of a recipe."""
    return path.lower().endswith((".yaml", ".yml"))


def read_recipe(path: str) -> dict[str, Any]:
    """Return the document in a file; raises SourceError or ConfigError."""
    try:
        document = read_yaml(read_text(path), os.path.basename(path))
    except OSError as error:
        said = f"the recipe {escape(path)} cannot be read: {error.strerror}."
        raise SourceError(said, hint=did_you_mean(path)) from error
    except UnicodeDecodeError:
        raise ConfigError(f"{escape(path)} is no recipe: it is not UTF-8.") from None
    if isinstance(document, dict) and "verb" in document:
        raise ConfigError(f"{escape(path)} is a recipe of ours.", hint=f"Run ckpt apply {escape(path)}.")
    if not isinstance(document, dict) or "merge_method" not in document:
        raise ConfigError(
            f"{escape(path)} names no merge_method.", hint="Write one as mergekit reads it: merge_method, models, …"
        )
    if not isinstance(document["merge_method"], str):
        raise ConfigError(
            f"{escape(path)}: merge_method is {brief_repr(document['merge_method'])}, not the name of a method.",
            hint="ckpt merge --list shows them.",
        )
    return document


def check_alone(recipe: str, **given: Any) -> None:
    """Raise ConfigError for what is no recipe, or is said beside one that says it itself."""
    if not is_recipe(recipe):
        raise ConfigError(f"{escape(recipe)} is no recipe.", hint="Name several models, in a list.")
    doubled = next((name for name, value in given.items() if value not in (None, (), [], {})), "")
    if doubled:
        raise ConfigError(f"{escape(doubled)} is given beside a recipe.", hint="Write it into the recipe.")


def plan_configuration(path: str, document: Mapping[str, Any], method: Method, asked: Request) -> Plan:
    """Plan what the document of a recipe at ``path`` asks for; its paths are seen from here, else from there.

    Raises ConfigError with the field that is wrong, PlanError for what the models cannot give.
    """
    folder = os.path.dirname(path)
    try:
        configuration = read_configuration(document)
        options = asked.options.or_dtype(configuration.dtype)
        references = configuration.references
        paths = [found(one, folder) for one in references]
        with ExitStack() as stack:
            opened = asked.opened(paths, stack)
            merged = RecipeModels(
                configuration, folder, dict(zip(references, paths, strict=True)), opened, unwrap=asked.unwrap
            )
            chosen = merge_vocabulary(merged.vocabulary(asked.vocabulary, method), merged.models, first=merged.donor)
            options = replace(options, vocabulary=chosen[0] if chosen is not None else None)
            tokens = chosen[1] if chosen is not None else None
            arguments = {**asked.arguments, "recipe": merged.said(document)}
            plan = merged.plan(method, options, tokens, asked.seed, arguments)
            plan = with_config_said(plan, merged.folders, merged.donor)
            plan = with_sources_said(plan, opened, merged.folders, merged.donor)
            plan = checked_rows(plan, merged.folders, remedy=RECIPE, said=asked.vocabulary.is_by_place)
            plan = with_beside_held(plan, merged.folders)
            plan = asked.carried(plan, opened, path, donor=merged.donor)
            stack.pop_all()
    except ConfigError as error:
        raise type(error)(f"{escape(os.path.basename(path))}: {error.message}", hint=error.hint) from error
    return plan
