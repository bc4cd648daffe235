"""The modules of a ``hyperparams.yaml`` as one module, as SpeechBrain's ``Brain`` holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["BrainModules", "has_statistics", "keep_statistics"]

MODULES = "modules"
COUNT, MEAN, DEVIATION = "count", "glob_mean", "glob_std"
"""What SpeechBrain's ``InputNormalization`` collects: a number of frames, and two tensors of one value per feature."""


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


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module normalises by statistics that it collects in training and that no state dict has."""
    return getattr(module, "norm_type", "") == "global" and {COUNT, MEAN, DEVIATION} <= vars(module).keys()


def keep_statistics(module: nn.Module, features: int) -> None:
    """Make the statistics of a module buffers, so that they are saved, loaded and transplanted with its weights.

    SpeechBrain saves them in a file of their own (``normalizer.ckpt``). The count is a plain number while the module
    runs, as its code expects. If a source gave statistics and no count, they stay as they are.
    """
    for name, value in ((COUNT, 0.0), (MEAN, 0.0), (DEVIATION, 1.0)):
        delattr(module, name)
        module.register_buffer(name, torch.full((() if name == COUNT else (features,)), value, dtype=_DTYPES[name]))
    module.register_forward_pre_hook(_number_out)
    module.register_forward_hook(_number_in, always_call=True)


_DTYPES = {COUNT: torch.int64, MEAN: torch.float32, DEVIATION: torch.float32}


def _number_out(module: nn.Module, _: Any) -> None:
    count = int(module.get_buffer(COUNT))
    del module._buffers[COUNT]
    module.__dict__[COUNT] = count
    mean, deviation = module.get_buffer(MEAN), module.get_buffer(DEVIATION)
    if module.training and not count and (bool(mean.any()) or bool((deviation != 1).any())):
        module.training = False


def _number_in(module: nn.Module, _: Any, __: Any) -> None:
    count = module.__dict__.pop(COUNT)
    module._buffers[COUNT] = torch.tensor(count, dtype=torch.int64, device=module.get_buffer(MEAN).device)
