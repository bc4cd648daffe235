"""The parts of a model that ``modules`` name, and which keys belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...util.text import escape
from ..keys.hints import nearest
from ..keys.pattern import KeyPattern
from ..transplant.select import SourceView
from .configuration import Module
from .fields import fault

__all__ = ["Part", "parts_of"]

WHOLE = ("", "default")
"""What a part that is the whole model is called; mergekit calls it default."""


@dataclass(frozen=True)
class Part:
    """A part and where it hangs; what hangs deeper in another part is that one's."""

    module: Module
    homes: tuple[str, ...]
    others: tuple[str, ...] = field(default=(), repr=False)

    def owns(self, key: str) -> bool:
        """Whether a key belongs to it."""
        return _depth(self.homes, key) > _depth(self.others, key)


def _depth(homes: Sequence[str], key: str) -> int:
    """Return how much of a key the nearest of several modules names: 0 for the whole model, -1 for none."""
    fits = [len(home) for home in homes if not home or key == home or key.startswith(f"{home}.")]
    return max(fits, default=-1)


def parts_of(modules: Sequence[Module], views: Sequence[SourceView]) -> list[Part]:
    """Return each part with its place: that of its ``layers``, or every module of its name.

    What is nobody's belongs to the last. Raises ConfigError for a part that is nowhere in the models.
    """
    if len(modules) == 1 and modules[0].name in WHOLE:
        return [Part(modules[0], ("",))]
    keys = dict.fromkeys(key for view in views for key in view.tensors)
    homes = {one.name: _homes(one, list(keys)) for one in modules}
    homes[modules[-1].name] += ("",)
    return [
        Part(one, homes[one.name], tuple(home for name, other in homes.items() if name != one.name for home in other))
        for one in modules
    ]


def _homes(module: Module, keys: Sequence[str]) -> tuple[str, ...]:
    """Return where a part hangs, outermost: ``model.encoder`` for encoder, or for layers: model.encoder.layers."""
    found: dict[str, None] = {}
    pattern = KeyPattern.given(module.layers, "layers: ") if module.layers else None
    for key in keys:
        segments = key.split(".")
        for place in range(1, len(segments)):
            path = ".".join(segments[:place])
            if pattern.matches(path) if pattern is not None else segments[place - 1] == module.name:
                found[path.rpartition(".")[0] if pattern is not None else path] = None
                break
    if not found:
        near = nearest(module.name, keys)
        hint = f"Did you mean {escape(near[0][0])}? " if near else ""
        raise fault(module.where, "is the name of no module of the models", f"{hint}Say layers: GLOB in it.")
    return tuple(found)
