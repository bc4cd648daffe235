"""Collects means over positions while a network runs: of inputs of layers, use of experts, and influence of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .experts import ExpertSums, are_experts
from .gram_matrices import is_linear, positions, real_positions
from .stored import INFLUENCE, INPUTS, LOAD

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["collected"]


@dataclass
class _Mean:
    """A running mean: the sum of the values, and the number of positions that were added."""

    sum: Any = None
    count: int = 0

    def add(self, values: Tensor, count: int) -> None:
        self.sum = values if self.sum is None else self.sum + values
        self.count += count

    def by_key(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the key ``name`` and the mean, if anything was added."""
        if self.count:
            yield name, (self.sum / self.count).float()


class _OfExperts(ExpertSums):
    def by_key(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (key, statistics) for a module with the weights of all experts."""
        yield from ((f"{name}.{last}", value) for last, value in self.results().items())


@contextmanager
def collected(model: nn.Module, mask: Tensor | None) -> Iterator[Mapping[str, _Mean | _OfExperts]]:
    """Yield {key: statistics}, which is filled when the network runs in the ``with`` block.

    These are the mean squares of the inputs of linear layers, how often routers choose each expert, statistics of the
    experts, and how much each layer changes its input. Positions where ``mask`` is 0 are padding, and do not count.
    """
    from ..prove.blocks import block_names

    found: dict[str, _Mean | _OfExperts] = {}
    real = real_positions(mask)
    layers = {name for name in block_names(model) if name.rpartition(".")[2].isdigit()}
    with ExitStack() as hooks:

        def watch(module: nn.Module, key: str, take: Callable[..., None], of: type[_Mean | _OfExperts] = _Mean) -> None:
            mean = found.setdefault(key, of())
            hooks.callback(module.register_forward_hook(partial(take, mean, real), with_kwargs=True).remove)

        for name, module in model.named_modules():
            kind = type(module).__name__
            if is_linear(module):
                watch(module, f"{name}.{INPUTS}", _take_inputs)
            if "Router" in kind:
                watch(module, f"{name}.{LOAD}", _take_load)
            if are_experts(module):
                watch(module, name, _take_experts, _OfExperts)
            if name in layers:
                watch(module, f"{name}.{INFLUENCE}", _take_influence)
        yield found


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _take_inputs(mean: _Mean, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    flat = positions(_first(args, kwargs), real).double()
    mean.add(flat.square().sum(0), flat.shape[0])


def _take_load(mean: _Mean, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    import torch

    parts = [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, torch.Tensor)]
    chosen = next((one for one in parts if not one.is_floating_point()), None)
    weight = getattr(module, "weight", None)
    if chosen is not None and weight is not None:
        flat = positions(chosen, real)
        mean.add(torch.bincount(flat.reshape(-1), minlength=weight.shape[0]).double(), flat.shape[0])


def _take_experts(
    sums: _OfExperts, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    sums.add(module, [*args, *kwargs.values()], output, real)


def _take_influence(mean: _Mean, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    import torch

    before = _first(args, kwargs)
    after = output[0] if isinstance(output, tuple) else output
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.shape == after.shape:
        first, last = (positions(one, real).double() for one in (before, after))
        cosines = torch.cosine_similarity(first, last, dim=-1)
        mean.add((1 - cosines).sum(), cosines.numel())
