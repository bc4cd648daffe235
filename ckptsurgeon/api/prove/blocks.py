"""Which modules of a network are its blocks, and what they returned in a run."""

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
"""The name of the whole network."""
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that are never called themselves."""
Place = tuple[str, int, int]
"""The name of a block, the number of its call, and that of a tensor in its output."""
Outputs = dict[Place, Tensor]
"""Outputs by their place, in the order in which the calls ended."""
MOST = 64
"""The most tensors of an output that are kept."""


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the modules whose outputs are compared.

    They are the repeated layers of a network, and the modules beside and around these: its embeddings, norms and heads.
    No block is in another one.
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
    """Return whether a module is a list of layers: of at least two modules, of one class."""
    children = list(module.children())
    alike = len({type(one) for one in children}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1 and alike


@dataclass
class Recording:
    """The ``outputs`` of the blocks of a network in a run, and which modules were ``called``."""

    outputs: Outputs = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)
    """The names of the modules whose calls are noted: blocks, and all modules around them."""

    def reaches(self, key: str) -> bool:
        """Return whether the run used a parameter: whether the block that has it ran, or else its own module."""
        path = key.rpartition(".")[0]
        parts = path.split(".")
        above = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
        watched = next((one for one in above if one in self.watched), OUTPUT)
        return watched in self.called


@contextmanager
def recorded(model: nn.Module, names: list[str]) -> Iterator[Recording]:
    """Record what blocks, and the model, compute in the ``with`` block."""
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
    """Yield the floating tensors in a module's output; the logits first, if it has any."""
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        yield logits
    if isinstance(output, Tensor):
        yield from (output,) if output.is_floating_point() else ()
        return
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    for value in values:
        yield from (one for one in tensors_in(value) if one is not logits)
