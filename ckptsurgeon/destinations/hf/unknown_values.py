"""Names the field of a configuration whose value a class of transformers does not know, such as an activation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from traceback import walk_tb
from typing import Any

from ...errors import ConfigError
from ...util.did_you_mean import close_names
from ...util.text import brief_repr, escape, listing

__all__ = ["unknown_value_error"]

_IDENTIFIERS = ("model_type", "name_or_path", "_name_or_path", "transformers_version")
"""Fields whose values the constructor of a model looks up in no table."""
_LISTED = 30
"""An error lists at most this many known values."""


def unknown_value_error(error: KeyError, fields: Mapping[str, Any], name: str) -> ConfigError | None:
    """Return the ConfigError for a KeyError of a model's constructor; None if no field has the missing key.

    For example, for the KeyError 'gleu', the message names the field ``hidden_act`` if its value is 'gleu'. ``fields``
    are the fields of the configuration. ``name`` is the class of the model.
    """
    value = error.args[0] if error.args else None
    found = [path for path, one in _texts(fields, "") if one == value and path not in _IDENTIFIERS]
    if not isinstance(value, str) or not found:
        return None
    known = _known(error)
    near = close_names(value, known, len(known) + 1)
    hint = f"Known values: {listing(known, _LISTED, where='')}." if known else "Give a value that it knows."
    return ConfigError(
        f"{escape(name)} cannot be built: it does not know the value {brief_repr(value, 80)} of {listing(found)}.",
        hint=f"Did you mean {' or '.join(near)}?" if near else hint,
    )


def _texts(fields: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield (path of a field, its value) for each field whose value is a string."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{path}{name}.")
        elif isinstance(value, str):
            yield f"{path}{name}", value


def _known(error: KeyError) -> list[str]:
    """Return the valid keys of the table in transformers that raised ``error``: activations or kinds of RoPE.

    Returns [] if another table raised it.
    """
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    *_, (last, _) = walk_tb(error.__traceback__)
    if last.f_locals.get("self") is ACT2FN:
        return sorted(ACT2FN)
    return ["default", *sorted(ROPE_INIT_FUNCTIONS)] if "ROPE_INIT_FUNCTIONS" in last.f_code.co_names else []
