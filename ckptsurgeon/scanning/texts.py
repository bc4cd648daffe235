"""Configurations and programs beside a model: named as what a toolkit would import or run if it is told to."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..formats import limits, parse_json
from .findings import Verdict
from .look import Place

__all__ = ["look_at_text"]

_PROGRAMS = {".py": "Python source", ".pyc": "compiled Python", ".sh": "a shell script", ".ipynb": "a notebook"}
_JSON_KEYS = {
    "auto_map": "transformers runs the classes of auto_map with trust_remote_code=True",
    "trust_remote_code": "it says trust_remote_code, which only its user can",
    "custom_pipelines": "transformers runs the classes of custom_pipelines with trust_remote_code=True",
    "_target_": "Hydra imports and calls what _target_ names",
}
_YAML = re.compile(
    rb"(?m)(?P<target>\b_target_[\"']?[ \t]*:[ \t]*[\"']?(?P<a>[\w.]+))|"
    rb"(?P<new>!(?:new|apply|name|module):(?P<b>[\w.]+))|(?P<python>!!python/[\w/]+:?(?P<c>[\w.]*))"
)
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(?:[\w>]*[>.])?(?:Lambda|TFOpLambda|SlicingOpLambda)"')
_SHOWN = 5
_DEEP = 10_000


def look_at_text(place: Place, head: bytes) -> bool:
    """Look at a text by what it names; returns whether there is anything to say. It is data, whatever it says."""
    name = place.file.name if not place.depth else place.within
    suffix = next((end for end in _PROGRAMS if name.endswith(end)), "")
    if suffix:
        place.add(_PROGRAMS[suffix], notes=("a program beside the model: run only by a toolkit that is told to",))
        return True
    if name.endswith((".json", ".yaml", ".yml")) and place.file.size <= limits.SCAN_TEXT_BYTES:
        return _look_at_configuration(place, is_json=name.endswith(".json"))
    return False


def _look_at_configuration(place: Place, *, is_json: bool) -> bool:
    raw = place.file.read(0, place.file.size)
    if _LAMBDA.search(raw):
        place.add("Keras configuration", Verdict.CODE, notes=("a Lambda layer, which holds compiled Python",))
        return True
    notes = tuple(dict.fromkeys(_of_json(raw) if is_json else _of_yaml(raw)))
    if notes:
        place.add("JSON" if is_json else "YAML", notes=notes[:_SHOWN])
    return bool(notes)


def _of_json(raw: bytes) -> Iterator[str]:
    try:
        waiting = [parse_json(raw)]
    except ValueError:
        return
    for _ in range(_DEEP):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, dict):
            yield from (_JSON_KEYS[key] for key in node if key in _JSON_KEYS)
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _of_yaml(raw: bytes) -> Iterator[str]:
    for found in _YAML.finditer(raw):
        said = (found["a"] or found["b"] or found["c"] or b"").decode("utf-8", "backslashreplace")[:100]
        if found["target"]:
            yield f"Hydra imports and calls {said}"
        elif found["new"]:
            yield f"HyperPyYAML imports and calls {said}"
        else:
            yield f"an unsafe YAML reader imports {said or 'what a tag names'}"
