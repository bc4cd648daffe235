"""Finds the blocks of a network, and records their outputs in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn

__all__ = ["OUTPUT", "Outputs", "Place", "Recording", "block_names", "recorded", "tensors_in"]

OUTPUT = ""
"""The name that stands for the whole network in a list of block names."""
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that only contain other modules or parameters: their ``forward`` is never called."""
Place = tuple[str, int, int]
"""The key of a recorded tensor: (name of a block, index of the block's call, index of the tensor in the output)."""
Outputs = dict[Place, Tensor]
"""Tensors by their ``Place``, in the order in which the blocks finished their forward pass."""
MOST = 64
"""The largest number of tensors that are recorded from one output of a block."""


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the modules whose outputs are compared.

    These are the repeated layers of a network, and the modules outside of the layers, such as embeddings, norms and
    heads. No block contains another block.
    """
    return list(_names(model, OUTPUT)) or [OUTPUT]


def _names(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}".strip(".")
        if _is_stack(child) or isinstance(child, CONTAINERS):
            yield from (f"{path}.{one}" for one, _ in child.named_children())
        elif any(map(_is_stack, child.modules())):
            yield from _names(child, path)
        else:
            yield path


def _is_stack(module: nn.Module) -> bool:
    """Return whether a module is a list of layers: at least two modules, all of the same class."""
    children = list(module.children())
    alike = len({type(one) for one in children}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1 and alike


@dataclass
class Recording:
    """The ``outputs`` of a network's blocks in a run, and the names of the modules that were ``called``."""

    outputs: Outputs = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)
    """The names of the modules whose calls are recorded: the blocks and all modules that contain them."""

    def reaches(self, key: str) -> bool:
        """Return whether the run used the parameter ``key``: whether the module that contains it was called.

        If calls of this module are not recorded, the result is that of the innermost module in ``watched`` that
        contains it.
        """
        path = key.rpartition(".")[0]
        parts = path.split(".")
        above = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
        watched = next((one for one in above if one in self.watched), OUTPUT)
        return watched in self.called


@contextmanager
def recorded(model: nn.Module, names: list[str]) -> Iterator[Recording]:
    """Record the outputs of the blocks ``names`` and of the whole model while the ``with`` block runs."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    around = (name.rpartition(".")[0] for name in names)
    found = Recording(watched={*names, *(above for path in around for above in _and_above(path)), OUTPUT})
    with ExitStack() as hooks:
        for name in sorted(found.watched):
            hooks.callback(modules[name].register_forward_pre_hook(partial(_note, found, name)).remove)
        for name in dict.fromkeys((*names, OUTPUT)):
            hooks.callback(modules[name].register_forward_hook(partial(_record, found.outputs, name)).remove)
        yield found


def _and_above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _note(found: Recording, name: str, module: nn.Module, args: Any) -> None:
    found.called.add(name)


def _record(found: Outputs, name: str, module: nn.Module, args: Any, output: Any) -> None:
    call = len({place[1] for place in found if place[0] == name})
    for part, tensor in enumerate(islice(tensors_in(output), MOST)):
        found[name, call, part] = tensor.detach().to("cpu", copy=True)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output; logits come first."""
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        yield logits
    if isinstance(output, Tensor):
        yield from (output,) if output.is_floating_point() else ()
        return
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    for value in values:
        yield from (one for one in tensors_in(value) if one is not logits)
