"""Collects the mean magnitude of each input of linear layers, which activation-informed merging uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...util.text import escape
from .gram_matrices import is_transposed, linear_layers, stacked_keys, weights_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..prove.network import Network

__all__ = ["MAGNITUDES", "MagnitudeSums"]

MAGNITUDES = "magnitudes"
"""The last part of the keys of magnitudes."""


@dataclass
class _Sum:
    sum: Any = None
    count: int = 0


@dataclass
class MagnitudeSums:
    """The mean magnitude of each input of linear layers, over all positions (https://arxiv.org/abs/2502.02421).

    ``chosen`` has the keys of the weights whose inputs are collected. ``lacking`` gets the keys of the weights of other
    linear layers, and of layers that got no input.
    """

    network: Network
    chosen: frozenset[str]
    sums: dict[str, _Sum] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    stacked: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self, positions: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Collect magnitudes during the ``with`` block; ``positions`` is as in ``GramSums.collecting``."""
        with ExitStack() as hooks:
            for layer in linear_layers(self.network, self.chosen, self.lacking):
                self.turned += [layer.key] if is_transposed(layer.module) else []
                found = self.sums.setdefault(layer.key, _Sum())
                take = partial(_take, found, layer.name, positions)
                hooks.callback(layer.module.register_forward_hook(take, with_kwargs=True).remove)
            self.stacked += stacked_keys(self.network.module, weights_of(self.network))
            yield

    def values(self) -> dict[str, Tensor]:
        """Return {key: mean magnitudes}, one for each input of the layer."""
        self.lacking += [key for key, one in self.sums.items() if not one.count]
        return {f"{key}.{MAGNITUDES}": (one.sum / one.count).float() for key, one in self.sums.items() if one.count}

    @property
    def said(self) -> dict[str, Any]:
        """Return the facts that the file of statistics records about the magnitudes.

        They are the number of inputs for each key, the keys of weights of shape (in, out), and the keys without inputs.
        ``stacked`` are the weights of experts that one module stacks, whose inputs are never collected.
        """
        rows = {key: one.count for key, one in self.sums.items() if one.count}
        lacking = sorted({*self.lacking, *self.stacked})
        return {"rows": rows, "turned": self.turned, "lacking": lacking, "stacked": sorted(set(self.stacked))}


def _take(
    found: _Sum, name: str, positions: Callable[[Tensor], Tensor], module: nn.Module, args: Any, kwargs: Any, out: Any
) -> None:
    flat = positions(args[0] if args else next(iter(kwargs.values()))).double().abs()
    sums = flat.sum(0)
    if not bool(sums.isfinite().all()):
        raise ConfigError(
            f"the inputs of the module {escape(name)} have values that are NaN or infinite.",
            hint="Look for damaged weights with ckpt check, or give other inputs.",
        )
    found.sum = sums if found.sum is None else found.sum + sums
    found.count += len(flat)
