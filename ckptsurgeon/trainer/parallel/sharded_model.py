"""A model in shards, one on each process: FSDP2.

No process ever has all weights, not even while the model is built.
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ...destinations.torch_module.tensors import own_part
from ...errors import ConfigError
from ...util.text import escape
from .ranks import ForwardProxy, ParallelModel, Ranks

__all__ = ["ShardedModel"]

T = TypeVar("T")

CHECKED_PASSES = 3
"""In this many first forward passes, the ranks check before each layer that all ranks use the same layer.

These checks take time. So in later passes, the ranks compare the used layers only once, after the backward pass. A
model that drops layers at random most likely drops one in these first passes.
"""

SAME_LAYERS = (
    "All processes gather the same layer at the same time, so no process can drop or choose layers on its own: set "
    "layerdrop to 0, or use --strategy ddp."
)


class ShardedModel(ParallelModel):
    """A sharded model: each rank holds a shard of every parameter, gradient and optimizer moment.

    The parameters of a layer are gathered only while the layer is used. ``module`` must be on the meta device
    (``build_on_meta``); it gets memory for the shards of this rank, but no values. Each layer in the outermost module
    lists is gathered separately, all other parameters are gathered together.

    With ``bf16``, the layers in module lists are gathered, and get their inputs, in bfloat16. Gradients are summed in
    float32. The shards themselves are float32: the optimizer updates them, and checkpoints contain them. Autocast still
    decides which operations compute in float32. Recurrent layers, and layers with batch statistics, stay float32.
    """

    def __init__(self, module: nn.Module, ranks: Ranks, device: torch.device, *, bf16: bool = False) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(module, ranks)
        if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ConfigError(
                f"--strategy fsdp on CPUs needs torch 2.7 or newer, and this is torch {torch.__version__}.",
                hint="Use --strategy ddp.",
            )
        if getattr(getattr(module, "config", None), "layerdrop", 0):
            raise ConfigError("--strategy fsdp cannot train a model with LayerDrop.", hint=SAME_LAYERS)
        mesh = init_device_mesh(device.type, (ranks.size,))
        self._used: list[int] = []
        self._passes = 0
        self._root: Any = ForwardProxy(module)
        exact = MixedPrecisionPolicy()
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else exact
        try:
            for number, block in enumerate(_blocks(module)):
                policy = exact if _needs_float32(block) else mixed
                fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
                # Prepended, to run before torch's own hook, which begins to gather the layer.
                block.register_forward_pre_hook(partial(self._record_layer, number), prepend=True)
            fully_shard(self._root, mesh=mesh, reshard_after_forward=True)
        except ValueError as error:
            raise ConfigError(
                f"--strategy fsdp cannot shard this model: {escape(str(error), 300)}.", hint="Use --strategy ddp."
            ) from error
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._root.to_empty(device=device)  # also discards the values of buffers
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        self._shards: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the model."""
        return True

    def wrap(self) -> None:
        """Do nothing: FSDP itself looks in each step which parameters require gradients."""

    def __call__(self, function: Callable[[nn.Module], T]) -> T:
        """Return ``function(module)``; every rank must call this with the same function."""
        self.ranks.begin_device_work()
        with warnings.catch_warnings():
            # torch warns about each recurrent layer and each view: views must not be changed in place, and none is.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            found = cast(T, self._root(function))
        if torch.is_grad_enabled():
            self._compare_layer("end")
            self._passes += 1
        return found

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside the block, do not sum gradients over the ranks; the first backward pass after the block sums them."""
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)

    def _record_layer(self, number: int, *_: object) -> None:
        if torch.is_grad_enabled():
            self._used.append(number)
            self._compare_layer(str(number))

    def _compare_layer(self, layer: str) -> None:
        """Raise ConfigError if the ranks are about to gather different layers: their shards would be mixed."""
        if self._passes >= CHECKED_PASSES:
            return
        if any(other != layer for other in self.ranks.all_gather(layer)):
            raise _different_layers()

    def optimizer_parameters(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return this rank's shard of each parameter, as a separate parameter, for the optimizer to update."""
        shards = {key: nn.Parameter(own_part(parameter)) for key, parameter in parameters.items()}
        self._shards |= {id(parameter): (parameter, shards[key]) for key, parameter in parameters.items()}
        return shards

    def finish_backward(self) -> None:
        """Give the optimizer's shards their gradients, and copy the buffers of rank 0 to all ranks.

        Buffers, such as batch statistics, differ between ranks, because each rank has seen different clips. Raises
        ConfigError if the ranks have used different layers.
        """
        used, self._used = tuple(self._used), []
        if any(others != used for others in self.ranks.all_gather(used)):
            raise _different_layers()
        self.ranks.broadcast_tensors([buffer for buffer in self.module.buffers() if not buffer.is_meta])
        for parameter, shard in self._shards.values():
            gradient, parameter.grad = parameter.grad, None
            shard.grad = None if gradient is None else own_part(gradient)


def _different_layers() -> ConfigError:
    return ConfigError("the processes use different layers in the same step.", hint=SAME_LAYERS)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of a model's outermost module lists, without members that have no parameters."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(child)


def _needs_float32(block: nn.Module) -> bool:
    """Return whether a block has recurrent layers or batch norms, whose states (and so parameters) must be float32."""
    has_statistics = any(buffer.is_floating_point() for buffer in block.buffers())
    return has_statistics or any(isinstance(one, nn.RNNBase) for one in block.modules())
