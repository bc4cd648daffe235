"""Runs a network with weights that are in memory only while their module runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from .blocks import CONTAINERS

__all__ = ["ReadWeights", "put_parameters", "streamed", "units_of"]

ReadWeights = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""A function that takes keys of parameters and returns {key: values}."""


def units_of(model: nn.Module, limit: int) -> dict[str, list[str]]:
    """Return {name of a module: keys of the parameters that are read together, before this module runs}.

    If the parameters of a module have at most ``limit`` bytes in float32, all of them are read before it runs. For a
    larger module, only its direct parameters are read before it runs; its children are treated in the same way.
    """
    found: dict[str, list[str]] = {}
    _divide(model, "", limit, found, into="")
    return {name: keys for name, keys in found.items() if keys}


def _divide(module: nn.Module, name: str, limit: int, found: dict[str, list[str]], *, into: str) -> None:
    """Add ``{name: keys of parameters}`` to ``found`` for the module ``name`` and the modules in it.

    ``found`` becomes the result of ``units_of``. A container (such as ModuleList) never runs, so its direct parameters
    are read with those of the module ``into``, which contains the container.
    """
    every = [f"{name}.{key}".strip(".") for key, _ in module.named_parameters(remove_duplicate=False)]
    nbytes = sum(4 * one.numel() for one in module.parameters())
    if isinstance(module, CONTAINERS):
        name_of_own = into
    else:
        name_of_own = name
        if nbytes <= limit or not any(True for _ in module.children()):
            found.setdefault(name, []).extend(every)
            return
    own = [f"{name}.{key}".strip(".") for key, _ in module.named_parameters(recurse=False)]
    found.setdefault(name_of_own, []).extend(own)
    for child_name, child in module.named_children():
        _divide(child, f"{name}.{child_name}".strip("."), limit, found, into=name_of_own)


@contextmanager
def streamed(model: nn.Module, read: ReadWeights, limit: int) -> Iterator[None]:
    """Give the modules of a network on the meta device their weights while they run, during the ``with`` block.

    ``read`` is called for the parameters of a unit (see ``units_of``) before its module runs; afterwards they are
    freed.
    """
    modules, empty = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    with ExitStack() as hooks:
        for name, keys in units_of(model, limit).items():
            load = partial(_load, model, read, keys)
            free = partial(put_parameters, model, {key: empty[key] for key in keys})
            hooks.callback(modules[name].register_forward_pre_hook(lambda *_, load=load: load()).remove)
            hooks.callback(modules[name].register_forward_hook(partial(_after, free), always_call=True).remove)
        yield


def _load(model: nn.Module, read: ReadWeights, keys: Sequence[str]) -> None:
    put_parameters(model, {key: nn.Parameter(value, requires_grad=False) for key, value in read(keys).items()})


def _after(free: Callable[[], None], *_: Any) -> None:
    free()


def put_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set parameters by their keys, with ``setattr``, so that recurrent layers update their list of parameters."""
    for key, parameter in parameters.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, parameter)
