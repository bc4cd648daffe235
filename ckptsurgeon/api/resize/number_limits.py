"""Limits the numbers of layers, heads and the like, so that a mistyped number does not take all memory."""

from __future__ import annotations

from typing import Any

from ...destinations.hf.module_counts import MOST_EXPERTS, MOST_LAYERS
from ...errors import ConfigError
from ...planning.resizing.fields import role_of
from ...util.text import escape

__all__ = ["MOST", "check_size"]

MOST = {
    "depth": MOST_LAYERS, "experts": MOST_EXPERTS, "heads": 1 << 14, "kv_heads": 1 << 14, "width": 1 << 20,
    "channels": 1 << 22, "vocabulary": 1 << 26,
}  # fmt: skip
"""{role of a field: its largest number}: each is over ten times as large as in networks of today."""


def check_size(name: str, value: Any) -> None:
    """Raise ConfigError if the new value of the field ``name`` is above the limit for fields of its kind.

    The kinds are numbers of layers, of heads and the like.
    """
    most = MOST.get(role_of(name))
    if most is not None and type(value) is int and value > most:
        raise ConfigError(
            f"--set {escape(name)}={value if value < 1 << 60 else 'a larger number'} is too large: ckpt makes at most "
            f"{most:,}.",
            hint="Use a smaller number.",
        )
