"""Recognises a network whose keys begin with prefixes that training added, such as ``module.``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...checkpoint.wrappers import INSIDE, unwrap
from ...planning.keys.spelling import quoted
from ...planning.layouts.recognise import recognised
from ...util.text import escape
from ..inputs.operations import OperatedCheckpoint

__all__ = ["Unwrapped", "without_wrappers"]

_MOST_MODULES = 64
"""The largest number of modules at the top of a network; the networks of all known layouts have fewer."""


@dataclass(frozen=True)
class Unwrapped:
    """A checkpoint whose keys have no prefixes of wrappers, the operations that remove them, and notes."""

    operated: OperatedCheckpoint
    rows: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def without_wrappers(operated: OperatedCheckpoint) -> Unwrapped:
    """Remove the prefix of wrappers, such as ``module.``, if all keys have it and the rest is a recognised network.

    Otherwise, the checkpoint is returned unchanged. A checkpoint with a tensor outside the network, such as the counter
    of an averaged model, is also returned unchanged: the prefix is removed by operations, and no operation leaves out a
    tensor.
    """
    checkpoint = operated.checkpoint
    plain = unwrap(checkpoint)
    if not plain.stripped or plain.aside or INSIDE in plain.stripped or recognised(checkpoint):
        return Unwrapped(operated)
    prefix = "".join(f"{wrapper}." for wrapper in plain.stripped)
    modules = dict.fromkeys(key.partition(".")[0] for key in plain.stored)
    inside = {key: checkpoint[stored] for key, stored in plain.stored.items()}
    if len(modules) > _MOST_MODULES or not recognised(inside):
        return Unwrapped(operated)
    rows = tuple({"copy": quoted(f"{prefix}{module}"), "into": [quoted(module)]} for module in modules)
    note = f"the prefix {escape(prefix)} of all keys, which training added, is removed"
    return Unwrapped(operated.further(rows), rows, (note,))
