"""Gradient checkpointing: blocks keep only their inputs, and compute the rest again in the backward pass.

https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError

__all__ = ["blocks_of", "enable_gradient_checkpointing"]


def enable_gradient_checkpointing(model: nn.Module) -> list[str]:
    """Make the backward pass compute the blocks of a model once more, to save memory; return the names of the blocks.

    The results do not change. Raises ConfigError if the model has no blocks.
    """
    blocks = blocks_of(model)
    for owner, method in blocks.values():
        setattr(owner, method, _checkpointed(owner, getattr(owner, method)))
    if not blocks:
        raise ConfigError(
            "train.gradient_checkpointing: no blocks were found in the model.",
            hint="Put the layers of the model into an nn.ModuleList or an nn.Sequential, give the model an attribute "
            "`stages` that lists the modules or methods to compute again, or leave train.gradient_checkpointing out.",
        )
    return list(blocks)


def blocks_of(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return {name of a block: (module, name of the module's method that computes the block)} for a model.

    Blocks are the items of the outermost nn.ModuleList and nn.Sequential; an nn.Sequential of modules without children
    is one block. If the model has an attribute ``stages``, a list of names of modules or methods, these are the blocks.
    """
    stages = {name: getattr(model, name) for name in getattr(model, "stages", ())}
    if stages:
        return {
            name: (stage, "forward") if isinstance(stage, nn.Module) else (model, name)
            for name, stage in stages.items()
        }
    return {name: (block, "forward") for name, block in _blocks_in(model, "")}


def _blocks_in(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        held = isinstance(module, (nn.ModuleList, nn.Sequential)) and not isinstance(child, nn.ModuleList)
        if held or (isinstance(child, nn.Sequential) and not any(list(one.children()) for one in child)):
            yield where, child
        else:
            yield from _blocks_in(child, where)


def _checkpointed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def computed(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # a compiled graph updates statistics once, even if it recomputes the block
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _temporary_buffers(block)), **kwargs
        )

    return computed


@contextmanager
def _temporary_buffers(block: nn.Module) -> Iterator[None]:
    """Let a module use copies of its buffers inside the ``with`` block, for the second run of its forward pass.

    The first run of the forward pass has already updated the module's own buffers, such as batch statistics.
    """
    own = [(module, name, buffer) for module in block.modules() for name, buffer in module._buffers.items()]
    for module, name, buffer in own:
        module._buffers[name] = None if buffer is None else buffer.detach().clone()
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer
