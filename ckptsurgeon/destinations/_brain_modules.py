"""Joins the modules of a SpeechBrain ``hyperparams.yaml`` into one module, as SpeechBrain's ``Brain`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["BrainModules", "has_statistics", "keep_statistics"]

MODULES = "modules"
COUNT, MEAN, DEVIATION = "count", "glob_mean", "glob_std"
"""The attributes in which SpeechBrain's ``InputNormalization`` collects statistics.

``count`` is a number of frames. The mean and the deviation are tensors with one value for each feature.
"""


class BrainModules(nn.ModuleDict):
    """The modules of a SpeechBrain ``hyperparams.yaml``, by name. ``make_entries`` makes other entries of that file.

    ``names`` are the names of all entries of the file. ``make`` is a function that gets a list of entry names, and
    returns these entries and the entry ``modules`` as new objects.
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
        """Return the named entries of the file as new objects that use the modules of this ``BrainModules``.

        hyperpyyaml makes a new copy of each module that an entry uses, such as the embedding of a decoder. Here, each
        copy gets the attributes of the original module in this ``BrainModules``: parameters, buffers, inner modules,
        training mode. So calling or changing the copy calls or changes the original module.
        """
        made = dict(self._make(names))
        for name, own in self.items():
            others = dict(made[MODULES][name].named_modules(remove_duplicate=False))
            for path, inner in own.named_modules(remove_duplicate=False):
                if path in others:
                    others[path].__dict__ = inner.__dict__
        return {name: made[name] for name in names}


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module normalises with statistics that it collects in training but does not save.

    Such statistics are plain attributes, so the module's state dict does not contain them.
    """
    return getattr(module, "norm_type", "") == "global" and {COUNT, MEAN, DEVIATION} <= vars(module).keys()


def keep_statistics(module: nn.Module, features: int) -> None:
    """Turn the statistics of a module into buffers, which are saved, loaded and transplanted with its weights.

    The statistics are the mean and the standard deviation, each of length ``features``, and a count of frames.
    SpeechBrain saves them in a separate file (``normalizer.ckpt``). During the forward pass the count is a plain int,
    because SpeechBrain's code expects an int. If the mean or the deviation was loaded but the count was not, the module
    stops updating both.
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
