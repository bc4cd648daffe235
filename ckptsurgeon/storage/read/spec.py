"""Parses source specs in ESPnet's form, ``file.pth:src_key:dst_key:exclude_keys``.

They are parsed as in ESPnet's ``load_pretrained_model`` (espnet2/torch_utils/load_pretrained_model.py), with three
exceptions. The path of an existing file may contain colons. ``src_key`` matches only whole segments of keys, up to a
dot. An empty exclude, with which ESPnet would load nothing, is ignored, with a note.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ...errors import ConfigError
from ...util.text import without_secrets
from .uri import scheme_of

__all__ = ["SourceSpec", "parse_spec"]


@dataclass(frozen=True)
class SourceSpec:
    """One source as the user gave it.

    Only keys with the prefix ``src`` are used, and this prefix is replaced by ``dst``; keys that start with a string in
    ``exclude`` are left out. ``given`` is an open checkpoint or tensors, if the user passed these instead of a path.
    """

    uri: str
    src: str = ""
    dst: str = ""
    exclude: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    given: object = field(default=None, repr=False, compare=False)


def parse_spec(text: str) -> SourceSpec:
    """Return the parts of a spec ``file:src_key:dst_key:exclude_keys``; a path or URI alone is a spec, too.

    Raises ConfigError if there are more fields.
    """
    uri, fields = _split(text)
    if not fields:
        return SourceSpec(uri)
    if len(fields) > 3:
        raise ConfigError(
            f"source {text!r} has more than three fields after the file.",
            hint="Write file:src_key:dst_key:exclude_keys.",
        )
    src, dst, raw = (*fields, "", "", "")[:3]
    said = without_secrets(text)
    notes: list[str] = []
    exclude = []
    for part in raw.split(",") if raw else []:
        word = part.strip()
        if word != part:
            notes.append(f"in the excludes of {said!r}, the spaces around {word!r} are ignored")
        if word:
            exclude.append(word)
        else:
            notes.append(f"an empty exclude in {said!r} is ignored (ESPnet would load nothing)")
    if len(fields) == 3 and not raw:
        notes.append(f"the empty exclude of {said!r} is ignored (ESPnet would load nothing)")
    for name, prefix in (("src_key", src), ("dst_key", dst)):
        if prefix.endswith("."):
            notes.append(f"{name} {prefix!r} of {said!r} is read as {prefix.rstrip('.')!r}")
    return SourceSpec(uri, src.rstrip("."), dst.rstrip("."), tuple(exclude), tuple(notes))


def _split(text: str) -> tuple[str, list[str]]:
    """Return the file of a spec and the list of its fields.

    The file is the longest prefix of the text that exists as a path. If there is none, the file ends at the first
    colon. A colon in the host of an address belongs to a port or a password (RFC 3986, 3.2). In a chain of addresses
    for fsspec (``zip://a::http://b``), the fields follow the last address.
    """
    scheme = scheme_of(text)
    start = text.find("/", text.rfind("://") + 3) % (len(text) + 1) if scheme else 0
    colons = [i for i in range(start, len(text)) if text[i] == ":"]
    if not colons or (not scheme and os.path.exists(text)):
        return text, []
    if not scheme:
        for at in reversed(colons):
            if os.path.exists(text[:at]):
                return text[:at], text[at + 1 :].split(":")
    return text[: colons[0]], text[colons[0] + 1 :].split(":")
