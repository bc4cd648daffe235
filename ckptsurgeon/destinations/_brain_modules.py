"""The modules of a ``hyperparams.yaml`` as one module, as SpeechBrain's ``Brain`` holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["BrainModules"]

MODULES = "modules"


class BrainModules(nn.ModuleDict):
    """The modules by name. ``make_entries`` makes other entries of the same file, with these modules in them.

    ``names`` are those of all entries; ``make`` makes some of them, and ``modules`` with them, as new objects.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        names: Sequence[str],
        make: Callable[[Sequence[str]], Mapping[str, Any]],
    ) -> None:
        super().__init__(dict(modules))
        self.entry_names = tuple(names)
        self._make = make

    def make_entries(self, names: Sequence[str]) -> dict[str, Any]:
        """Return entries by name. What they have of the modules, such as the embedding of a decoder, is this one's.

        hyperpyyaml makes the modules anew for them. Each of these gets all attributes of the one here: parameters,
        buffers, inner modules, training mode. So both are one module, whichever of them is called or changed.
        """
        made = dict(self._make(names))
        for name, own in self.items():
            others = dict(made[MODULES][name].named_modules(remove_duplicate=False))
            for path, inner in own.named_modules(remove_duplicate=False):
                if path in others:
                    others[path].__dict__ = inner.__dict__
        return {name: made[name] for name in names}
