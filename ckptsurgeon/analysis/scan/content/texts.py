"""Scans configurations and programs in a model's folder: reports what toolkits would import or run because of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ....formats.base import limits
from ..context import ScanItem, shortened
from ..findings import Fault, Verdict
from .keras import why_code

__all__ = ["look_at_text", "program_note"]

_PROGRAMS = {".py": "Python source", ".pyc": "compiled Python", ".sh": "a shell script", ".ipynb": "a notebook"}
_JSON_KEYS = {
    "auto_map": "transformers runs the classes of auto_map with trust_remote_code=True",
    "trust_remote_code": "it sets trust_remote_code, but only the user should set it",
    "custom_pipelines": "transformers runs the classes of custom_pipelines with trust_remote_code=True",
    "_target_": "Hydra imports and calls the object that _target_ refers to",
}
_YAML = re.compile(
    rb"(?m)(?P<target>\b_target_[\"']?[ \t]*:[ \t]*[\"']?(?P<a>[\w.]+))|"
    rb"(?P<class>^[ \t]*target[ \t]*:[ \t]*[\"']?(?P<d>\w+(?:\.\w+)+))|"
    rb"(?P<new>!(?:new|apply|name|module):(?P<b>[\w.]+))|"
    rb"(?P<python>(?:!!|tag:yaml\.org,2002:)python/[\w/]+:?(?P<c>[\w.]*))"
)
_SHOWN = 5


def program_note(names: Iterable[str]) -> tuple[str, ...]:
    """Return a note if ``names``, the members of an archive, include Python files; else ()."""
    code = [name for name in names if name.endswith((".py", ".pyc"))]
    more = f" and {len(code) - 3} more" if len(code) > 3 else ""
    return (f"contains Python code: {', '.join(code[:3])}{more}",) if code else ()


def look_at_text(place: ScanItem, head: bytes) -> bool:
    """Report a program, or search a configuration for class names; return whether a finding was added.

    The file's name decides whether it is a program or a configuration. Reading it as text runs nothing.
    """
    suffix = next((end for end in _PROGRAMS if place.name.endswith(end)), "")
    if suffix:
        place.add(
            _PROGRAMS[suffix], notes=("a program in the model's files: toolkits run it only if the user allows it",)
        )
        return True
    if place.name.endswith((".json", ".yaml", ".yml")):
        return _look_at_configuration(place, is_json=place.name.endswith(".json"))
    return False


def _look_at_configuration(place: ScanItem, *, is_json: bool) -> bool:
    form = "JSON" if is_json else "YAML"
    if place.file.size > limits.SCAN_TEXT_BYTES:
        why = f"{form} files of over {limits.SCAN_TEXT_BYTES} bytes are not searched for class names"
        place.add(form, fault=Fault("unreadable", why))
        return True
    raw = place.file.read(0, place.file.size)
    code, notes_of_names = _of_json(raw) if is_json else ([], dict.fromkeys(_of_yaml(raw)))
    if code:
        place.add("Keras configuration", Verdict.CODE, notes=shortened((*code, *notes_of_names), _SHOWN))
    elif notes_of_names:
        place.add(form, notes=shortened(notes_of_names, _SHOWN))
    return bool(code or notes_of_names)


def _of_json(raw: bytes) -> tuple[dict[str, None], dict[str, None]]:
    """Return two dictionaries whose keys are notes on a JSON document: on unknown code, and on keys in ``_JSON_KEYS``.

    The values are None. If the document is invalid, the notes concern only its valid beginning.
    """
    code: dict[str, None] = {}
    notes: dict[str, None] = {}

    def see(pairs: list[tuple[str, object]]) -> None:
        code.update(dict.fromkeys(why_code(pairs)))
        notes.update((_JSON_KEYS[key], None) for key, _ in pairs if key in _JSON_KEYS)

    with suppress(ValueError):
        json.loads(raw, object_pairs_hook=see, parse_int=len, parse_float=len)
    return code, notes


def _of_yaml(raw: bytes) -> Iterator[str]:
    for found in _YAML.finditer(raw):
        name = (found["a"] or found["b"] or found["c"] or found["d"] or b"").decode("utf-8", "backslashreplace")[:100]
        if found["target"]:
            yield f"Hydra imports and calls {name}"
        elif found["class"]:
            yield f"NeMo imports and creates {name}"
        elif found["new"]:
            yield f"HyperPyYAML imports and calls {name}"
        else:
            yield f"an unsafe YAML reader imports {name or 'the name in a tag'}"
