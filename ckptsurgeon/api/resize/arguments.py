"""Reads the arguments of resize: fields with their new values, and lists of indices to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...planning.operations.operation import indices_of
from ...storage.yaml_text import read_yaml
from ...util.text import brief_repr, escape

__all__ = ["at_path", "fields_of", "kept_of", "nested"]


def fields_of(given: Mapping[str, Any] | Sequence[str] | str, *, is_needed: bool = True) -> dict[str, Any]:
    """Return {dotted path of a field: new value}; ``given`` is such a dict, or strings ``FIELD=VALUE`` (VALUE is YAML).

    Raises ConfigError if no field is given although ``is_needed`` is true, or if a string has another form.
    """
    if isinstance(given, Mapping):
        found = {str(name): value for name, value in given.items()}
    else:
        found = {}
        for text in [given] if isinstance(given, str) else given:
            name, equals, value = text.partition("=")
            if not (name.strip() and equals and value.strip()):
                raise ConfigError(
                    f"--set {escape(text)} does not have the form FIELD=VALUE.",
                    hint="Write, for example, --set num_hidden_layers=12.",
                )
            if name.strip() in found:
                raise ConfigError(f"--set {escape(name)} is given twice.", hint="Leave one of the two out.")
            found[name.strip()] = read_yaml(value, "--set")
    if not found and is_needed:
        raise ConfigError("no field is given.", hint="Write, for example, --set num_hidden_layers=12.")
    return found


def kept_of(given: Mapping[str, Any] | Sequence[str] | None) -> dict[str, list[int]]:
    """Return {field: indices to keep} from ``FIELD=0..3,8``; raises ConfigError if a list is not valid."""
    rows = given.items() if isinstance(given, Mapping) else (text.partition("=")[::2] for text in given or ())
    found = {}
    for name, value in rows:
        text = value if isinstance(value, str) else ",".join(map(str, value))
        runs = indices_of(text) if text else []
        kept = [index for begin, end in runs for index in range(begin, min(end, begin + 1_000_000))]
        if not kept or sorted(set(kept)) != kept:
            raise ConfigError(
                f"--keep {escape(str(name))}={escape(text)}: {brief_repr(text, 60)} is not a list of different numbers "
                "in ascending order.",
                hint="Write, for example, --keep num_local_experts=0..3,6.",
            )
        found[str(name).strip()] = kept
    return found


def nested(fields: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted path: value} as nested dicts: ``{"text_config": {"hidden_size": 64}}``.

    ``before`` has all fields of the configuration. Objects such as ``rope_parameters`` will be replaced as a whole, so
    their other entries are added from ``before``. Nested configurations, which have a model type, will be updated entry
    by entry, so nothing is added to them.
    """
    found: dict[str, Any] = {}
    for path, value in fields.items():
        *parts, name = path.split(".")
        inner, known = found, before
        for part in parts:
            own = known.get(part)
            known = own if isinstance(own, Mapping) else {}
            inner = inner.setdefault(part, {} if "model_type" in known else dict(known))
        inner[name] = value
    return found


def at_path(fields: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path; None if there is none."""
    value: Any = fields
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
