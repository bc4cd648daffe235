"""The config.json beside weights for transformers: the given one, with the fields that a destination changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from ..planning.target import Companion
from ..vocabulary.token_ids import MovedIds
from .hf.files import CONFIG
from .hf.overrides import FETCHING, merged_fields

__all__ = ["WrittenConfig"]

Fields = dict[str, Any]
_OF_THE_LIBRARY = "transformers_version"


class WrittenConfig:
    """The configuration of a destination, and the fields of the given file as they are to be written.

    ``to_json_string`` would lose what its class leaves out, as the fields of generation: ``suppress_tokens``.
    """

    def __init__(self, config: Any, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        self.config = config
        fields = merged_fields(type(config), given, overrides) if overrides else given
        self._fields: Fields = copy.deepcopy(dict(fields))
        if self._fields.get("model_type") is None:
            self._fields["model_type"] = config.model_type
        if "num_labels" in overrides:  # of which transformers writes the labels
            self._fields.pop("num_labels")
            self._fields.update({name: getattr(config, name) for name in ("id2label", "label2id")})
        self._fields["architectures"] = config.architectures

    @property
    def everything(self) -> Fields:
        """What the class says, by default too, and what only the file does."""
        return _with_others(self.config.to_dict(), self._fields)

    def apply(self, moved: MovedIds) -> None:
        """Set ids that have moved."""
        for path, value in moved.changed.items():
            inner, written = self.config, self._fields
            for name in path[:-1]:
                inner = inner[name] if isinstance(inner, dict) else getattr(inner, name)
                if not isinstance(written.get(name), dict):
                    written[name] = {}
                written = written[name]
            if isinstance(inner, dict):
                inner[path[-1]] = value
            else:
                setattr(inner, path[-1], value)
            written[path[-1]] = value

    def companion(self) -> Companion:
        """Return the file: the given fields as they are now, or all of them if its class takes those otherwise."""
        text = _text(self._fields)
        if not self._is_taken(text):
            text = _text(_with_others(json.loads(self.config.to_json_string()), self._fields))
        return Companion(CONFIG, text=text)

    def _is_taken(self, text: str) -> bool:
        """Whether the class makes the same configuration of a text."""
        fields = {name: value for name, value in json.loads(text).items() if name not in FETCHING}
        try:
            taken = type(self.config).from_dict(fields).to_dict()
        except Exception:  # whatever a class of transformers raises
            return False
        return {**taken, _OF_THE_LIBRARY: ""} == {**self.config.to_dict(), _OF_THE_LIBRARY: ""}


def _text(fields: Fields) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _with_others(fields: Fields, others: Mapping[str, Any]) -> Fields:
    """Return fields and those of ``others`` that are not among them, in parts too."""
    made = {**others, **fields}
    for name, value in fields.items():
        inner = others.get(name)
        if isinstance(value, dict) and isinstance(inner, dict) and name.endswith("_config"):
            made[name] = _with_others(value, inner)
    return made
