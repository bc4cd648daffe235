"""``--drop-last``: which layers of a destination start anew, in the order that it declares; never by parts of names."""

from __future__ import annotations

from ...errors import ConfigError
from ...util.text import count, escape
from ..target import TargetSpec

__all__ = ["dropped_layers"]


def dropped_layers(target: TargetSpec, number: int) -> tuple[str, ...]:
    """Return the last ``number`` layers of a destination; raises ConfigError where it has not as many.

    The first layer can never go: nothing would be left to transplant.
    """
    if not number:
        return ()
    layers = target.layers
    if not layers:
        raise ConfigError(
            f"--drop-last {number}: {escape(target.name)} does not say in which order its layers come.",
            hint="Name what is to start anew: --reinit GLOB, once for each layer.",
        )
    if number >= len(layers):
        raise ConfigError(
            f"--drop-last {number}: {escape(target.name)} has {count(len(layers), 'layer')}, "
            f"{', '.join(map(escape, layers))}, and {escape(layers[0])} can never go.",
            hint=f"Use 1 to {len(layers) - 1}.",
        )
    return layers[-number:]
