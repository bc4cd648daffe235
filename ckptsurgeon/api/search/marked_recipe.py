"""A recipe with marks in place of parameters: reads it, replaces the marks by values, and plans the result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...planning.mergekit.configuration import read_configuration
from ...planning.mergekit.fields import ModelReference
from ...planning.plan.plan import Plan
from ...planning.search.space import SearchSpace, Value, search_space
from ...storage.yaml_text import dump_yaml
from ...util.text import escape
from ..inputs.recipe_files import is_recipe, read_recipe_file
from ..merge.merge import merge
from ..merge.recipe_models import found
from ..recipes import plan_recipe, with_absolute_paths

__all__ = ["MarkedRecipe", "plan_of_recipe", "read_marked_recipe"]

_OF_MODELS = ("model", "base_model", "path", "tokenizer_source", "source")
"""The fields of a mergekit recipe that can be the path of a model."""
_WRITING = ("output", "to", "max_shard_size", "ranks", "axis", "mesh", "assert")
"""The fields of a recipe of ckptsurgeon that describe its output; a search has many outputs."""


@dataclass(frozen=True)
class MarkedRecipe:
    """A recipe with a search ``space``, for mergekit or for ckptsurgeon (``verb: merge`` and others)."""

    path: str
    space: SearchSpace
    is_mergekit: bool

    @property
    def name(self) -> str:
        """The name of the file."""
        return os.path.basename(self.path)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the content of the recipe; comments and layout do not change it."""
        text = json.dumps(self.space.document, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def filled(self, values: Mapping[str, Value]) -> str:
        """Return the recipe as YAML, with values in place of the marks, and with absolute paths.

        Raises ConfigError if the recipe is not valid with these values, SourceError if a model does not exist.
        """
        document = self.space.filled(values)
        if not self.is_mergekit:
            return dump_yaml(with_absolute_paths(document, self.path))
        return dump_yaml(_with_models(document, self._models(document)))

    def plugin(self, values: Mapping[str, Value]) -> str | None:
        """Return the path of the plugin that the recipe names with these values; None if it names none."""
        document = {} if self.is_mergekit else with_absolute_paths(self.space.filled(values), self.path)
        found = document.get("plugin")
        return found if isinstance(found, str) else None

    def _models(self, document: Any) -> dict[str, str]:
        """Return {model as it is written in the recipe ``document``: its absolute path}."""
        configuration = read_configuration(document)
        references = list(configuration.references)
        tokenizer = configuration.tokenizer
        if tokenizer is not None and isinstance(tokenizer.source, ModelReference):
            references.append(tokenizer.source)
        folder = os.path.dirname(self.path)
        return {one.written: os.path.abspath(found(one, folder)) for one in references}


def _with_models(value: Any, models: Mapping[str, str], field: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _with_models(one, models, str(key)) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_models(one, models) for one in value]
    return models.get(value, value) if field in _OF_MODELS and isinstance(value, str) else value


def read_marked_recipe(path: str) -> MarkedRecipe:
    """Return a recipe and its search space; raises ConfigError if it is not a recipe, or no parameter is marked."""
    if not is_recipe(path):
        raise ConfigError(
            f"{escape(path)} is not a recipe: its name does not end in .yaml or .yml.",
            hint="Give a YAML file with parameters to search, such as weight: {search: [0, 1]}.",
        )
    document = read_recipe_file(path)
    if not isinstance(document, dict) or not ("merge_method" in document or "verb" in document):
        raise ConfigError(
            f"{escape(path)} is not a recipe: it has neither merge_method nor verb.",
            hint="Give a recipe of mergekit, or one of ckptsurgeon, such as verb: merge.",
        )
    is_mergekit = "verb" not in document
    if not is_mergekit:
        document = {key: value for key, value in document.items() if key not in _WRITING}
    return MarkedRecipe(path, search_space(document, os.path.basename(path)), is_mergekit)


def plan_of_recipe(path: str, *, is_mergekit: bool, run_code: bool = True) -> Plan:
    """Return the plan of a recipe whose marks have been replaced by values.

    If ``run_code`` is false, a recipe of ckptsurgeon that refers to code, such as a plugin, raises ConfigError.
    """
    return merge(path) if is_mergekit else plan_recipe(path, run_code=run_code).plan
