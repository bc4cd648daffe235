"""Reads all fields of a configuration of transformers, as its class understands them, with the help of a cache.

An entry of the cache has numbers in place of the strings of the user's file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .._document import Document
from .cached_answers import cached_answer
from .cached_build import FORMAT
from .config_text import with_texts, without_texts
from .given_fields import GivenFields, given_fields
from .stock_code import LIBRARIES, only_installed

__all__ = ["Names", "TypeFields", "asked_of", "described_fields", "fields_as_type", "fields_of_type"]

Names = Mapping[str, Mapping[str, str]]
"""Maps the dotted path of each nested configuration ("" for the whole) to {other name of a field: its main name}."""
_UNDECLARED = ("head_dim",)
"""Fields that some networks, such as Qwen3-MoE's, read although their configuration class does not declare them."""
_OF_THE_FILE = ("model_type", "architectures", "transformers_version", "torch_dtype", "_name_or_path")
"""Fields that give the type, the version and the origin of a config.json."""


class DescribedFields(NamedTuple):
    """All fields of a configuration, including fields with default values, and the main names of fields.

    Some fields have several names, one of which is the main name. ``names`` maps the path of each nested configuration
    ("" for the whole) to a map from other names to main names. ``is_alone`` is true if fields and names depend only on
    the file and the installed packages.
    """

    fields: dict[str, Any]
    names: Names
    is_alone: bool = False


class TypeFields(NamedTuple):
    """The fields of a model type with their default values; ``names`` maps other names of fields to the main names."""

    fields: dict[str, Any]
    names: Mapping[str, str]


def asked_of(document: Document, **said: Any) -> dict[str, Any]:
    """Return all data on which a fact about a configuration depends: ``said`` and the versions of packages.

    Returns {} if the fact also depends on other data, so that it must not be cached.
    """
    if not document.versions or document.vocabulary is not None:
        return {}
    return {"format": FORMAT, "versions": dict(document.versions), **said}


def described_fields(document: Document) -> DescribedFields:
    """Return the fields of a configuration with its overrides; raises ConfigError if they are wrong."""
    given = given_fields(document)
    texts = [given.fields, given.overrides]

    def plain(found: DescribedFields) -> Any:
        return without_texts([found.fields, dict(found.names)], texts) if found.is_alone else None

    def read(kept: Any) -> DescribedFields:
        fields, names = with_texts(kept, texts)
        return DescribedFields(dict(fields), {path: dict(own) for path, own in names.items()}, is_alone=True)

    asked = asked_of(document, of="fields", fields=given.fields, overrides=given.overrides)
    return cached_answer(asked, lambda: _described(document, given), plain, read)


def _described(document: Document, given: GivenFields) -> DescribedFields:
    from ..torch_module.opened import watched
    from .config import describe, library

    with watched() as seen:
        described = describe(document, library(document), given)
    config = described.config
    fields, is_alone = _as_json(config.to_dict()), described.is_plain and _is_stock(config)
    is_alone = is_alone and not seen.hosts and only_installed(seen.files)
    return DescribedFields(fields or dict(config.to_dict()), dict(_names(config)), is_alone and fields is not None)


def _as_json(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``fields`` as they would be read from a written config.json; None if they cannot be written as JSON."""
    try:
        return dict(json.loads(json.dumps(fields)))
    except (TypeError, ValueError):
        return None


def _is_stock(config: Any) -> bool:
    return type(config).__module__.partition(".")[0] in LIBRARIES


def _names(config: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield (path, names) for a configuration and each nested configuration, if it has fields with several names.

    The path of the whole configuration is "". ``names`` maps the other names of these fields to their main names.
    """
    own = getattr(config, "attribute_map", {})
    if own:
        yield path, dict(own)
    for name, part in vars(config).items():
        if hasattr(part, "attribute_map"):
            yield from _names(part, f"{path}.{name}" if path else name)


# Other model types.


def fields_of_type(document: Document, model_type: str) -> TypeFields:
    """Return the fields of a model type with their default values; raises ConfigError if the type is not known."""

    def find() -> TypeFields:
        config_class = _class_of(document, model_type)
        fields = config_class().to_dict()
        return TypeFields(_as_json(fields) or dict(fields), dict(config_class.attribute_map))

    def read(kept: Any) -> TypeFields:
        return TypeFields(dict(kept["fields"]), {str(name): str(main) for name, main in kept["names"].items()})

    asked = asked_of(document, of="type", type=model_type)
    return cached_answer(asked, find, lambda found: found._asdict(), read)


def fields_as_type(
    document: Document, before: DescribedFields, model_type: str, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a configuration converted to another model type, and the names of fields left out.

    ``before`` are all fields of the document. Each field that both types have is carried over; ``changes`` are fields
    of the new type with their values. Fields that the file does not set, so that they had default values, are not
    listed as left out. Raises ConfigError for a type or field that is not known.
    """
    content: Mapping[str, Any] = document.content
    asked = asked_of(document, of="another type", type=model_type, fields=dict(content), changes=dict(changes))
    return cached_answer(
        asked if before.is_alone else {},
        lambda: _as_type(document, before, model_type, changes),
        lambda found: without_texts(list(found), [content, changes]),
        lambda kept: _fields_and_names(*with_texts(kept, [content, changes])),
    )


def _fields_and_names(fields: Any, names: Any) -> tuple[dict[str, Any], list[str]]:
    return dict(fields), list(names)


def _as_type(
    document: Document, before: DescribedFields, model_type: str, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    from .config import describe, library
    from .overrides import check_overrides, own_fields

    config_class, content = _class_of(document, model_type), document.content
    main_names = set(config_class.attribute_map.values())
    known = (own_fields(config_class) | main_names | set(_UNDECLARED)) - {*_OF_THE_FILE, "auto_map"}
    of_all = own_fields(library(document).PreTrainedConfig) - content.keys()  # with their defaults
    carried = {name: value for name, value in before.fields.items() if name in known - of_all}
    check_overrides(document, config_class, dict.fromkeys(main_names), changes)
    fields = {**carried, **changes, "model_type": model_type, "architectures": content.get("architectures")}
    changed: Document = replace(document, overrides=fields)
    fields["architectures"] = [describe(changed, library(document), given_fields(changed)).name]
    main = before.names.get("", {})
    return fields, sorted({main.get(name, name) for name in content} - known - set(_OF_THE_FILE))


def _class_of(document: Document, model_type: str) -> Any:
    from .config import class_of_config, library

    return class_of_config(document, library(document), {"model_type": model_type})
