"""Collects the Gram matrices of the inputs of linear layers and of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .experts import are_experts
from .gram_sums import ExpertGrams, MatrixSum, block_rows, slots_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...tensors.ops.regions import Array
    from ..prove.network import Network

__all__ = [
    "GRAM",
    "GramSums",
    "LayerWeights",
    "chosen_from",
    "is_linear",
    "is_transposed",
    "linear_layers",
    "positions",
    "real_positions",
    "rows_of_inputs",
    "stacked_keys",
    "weights_of",
]

GRAM = "gram"
"""The last part of the keys of Gram matrices."""


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies its input by a matrix: torch's Linear, or the Conv1D of GPT-2."""
    from torch import nn

    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Return whether the weight of a linear layer has the shape (in, out)."""
    return type(module).__name__ == "Conv1D"


@dataclass(frozen=True)
class LayerWeights:
    """The parameters of a network, and their keys in the checkpoint.

    ``keys`` maps each parameter to its key in the checkpoint. ``made`` maps each other parameter to the keys from which
    it is made, such as those of single experts that the network stacks. ``shared`` are parameters with several names.
    """

    keys: Mapping[str, str]
    made: Mapping[str, tuple[str, ...]]
    shared: frozenset[str]


def weights_of(network: Network) -> LayerWeights:
    """Return the parameters of a network, and the keys that they have in its checkpoint."""
    parameters = dict(network.module.named_parameters(remove_duplicate=False))
    uses: dict[int, int] = {}
    for one in parameters.values():
        uses[id(one)] = uses.get(id(one), 0) + 1
    keys: dict[str, str] = {}
    made: dict[str, tuple[str, ...]] = {}
    for name in parameters:
        step = network.steps.get(name)
        if step is None or step.source is None:
            continue
        if step.op == "copy" and step.shape == step.source_shape and network.stores(step):
            keys[name] = step.source_key
        else:
            made[name] = step.made_of or (step.source_key,)
    return LayerWeights(keys, made, frozenset(name for name, one in parameters.items() if uses[id(one)] > 1))


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of a network: its name, its module, and the key of its weight in the checkpoint."""

    name: str
    module: nn.Module
    key: str


def linear_layers(network: Network, chosen: frozenset[str], lacking: list[str]) -> Iterator[LinearLayer]:
    """Yield the linear layers whose weights have keys in ``chosen``; keys of others are appended to ``lacking``.

    Layers that share their weight with another module are left out.
    """
    weights = weights_of(network)
    for name, module in network.module.named_modules():
        parameter = f"{name}.weight".strip(".")
        if not is_linear(module) or parameter in weights.shared:
            continue
        key = weights.keys.get(parameter)
        if key is None:
            lacking += weights.made.get(parameter, ())
        elif key not in chosen:
            lacking.append(key)
        else:
            yield LinearLayer(name, module, key)


@dataclass
class GramSums:
    """The Gram matrices of the inputs of linear layers: the mean of x x^T over all positions, for each layer.

    If one module stacks the weights of all experts, each expert has a Gram matrix, over the positions that are routed
    to it. ``chosen`` has the keys of the weights whose inputs are collected. ``lacking`` gets the keys of the weights
    of other linear layers, and of layers that got no input.
    """

    network: Network
    chosen: frozenset[str]
    layers: list[LinearLayer] = field(default_factory=list)
    experts: list[ExpertGrams] = field(default_factory=list)
    sums: dict[str, MatrixSum] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Find the layers whose inputs are collected; add the keys of other chosen weights to ``lacking``."""
        self.layers += linear_layers(self.network, self.chosen, self.lacking)
        self.turned += [layer.key for layer in self.layers if is_transposed(layer.module)]
        self.sums.update({layer.key: MatrixSum(layer.key) for layer in self.layers})
        weights = weights_of(self.network)
        for name, module in self.network.module.named_modules():
            if are_experts(module):
                slots, lacking = slots_of(name, module, weights.keys, weights.made)
                inside = [one for one in slots if self.chosen.issuperset(one.keys)]
                self.lacking += [*lacking, *(key for one in slots if one not in inside for key in one.keys)]
                self.turned += [key for one in inside if one.is_turned for key in one.keys]
                self.experts.append(ExpertGrams(name, module, inside))

    @contextmanager
    def collecting(self, positions: Callable[[Tensor], Tensor], *, within: str = "") -> Iterator[None]:
        """Collect Gram matrices during the ``with`` block, after ``prepare``.

        ``positions`` is a function that turns the input of a layer into rows, one for each position, without padding.
        ``within`` is the name of a module: only the inputs of layers in it are collected.
        """
        takes: list[tuple[str, nn.Module, Callable[..., None]]] = [
            (layer.name, layer.module, partial(_take, self.sums[layer.key], layer.name, positions))
            for layer in self.layers
        ]
        takes += [(one.name, one.module, partial(one.take, positions)) for one in self.experts if one.slots]
        with ExitStack() as hooks:
            for name, module, take in takes:
                if not within or f"{name}.".startswith(f"{within}."):
                    hooks.callback(module.register_forward_hook(take, with_kwargs=True).remove)
            yield

    def means(self, parameter: str, key: str) -> Callable[[int], Array] | None:
        """Return a function that reads the Gram matrix of the inputs of a parameter; None if it was not collected.

        The function takes the index of an expert, or 0 if the parameter is not one of experts. ``key`` is the key of
        the parameter in the checkpoint; "" if it has none of its own.
        """
        found = self.sums.get(key)
        if found is not None:
            return None if found.sum is None else partial(_mean, found.sum, found.count)
        for one in self.experts:
            slot = next((slot for slot in one.slots if slot.parameter == parameter), None)
            if slot is not None and slot.sum is not None and one.is_known:
                return partial(_mean_of_expert, slot.sum, one.counts)
        return None

    def collects(self, parameter: str, key: str) -> bool:
        """Return whether the Gram matrix of a parameter's inputs is collected; the arguments are as in ``means``."""
        return key in self.sums or any(slot.parameter == parameter for one in self.experts for slot in one.slots)

    def values(self) -> dict[str, Tensor]:
        """Return {key: Gram matrix}, in double precision, in files that are removed when the process ends.

        Keys for which no inputs were collected are added to ``lacking``.
        """
        import torch

        found = {}
        for one in self.sums.values():
            if one.sum is None or not one.count:
                self.lacking.append(one.key)
                continue
            for rows in block_rows(len(one.sum)):
                one.sum[rows] /= one.count
            found[f"{one.key}.{GRAM}"] = torch.from_numpy(one.sum)
        for experts in self.experts:
            for slot in experts.slots:
                made = dict(slot.values(experts.counts)) if experts.is_known else {}
                found |= {f"{key}.{GRAM}": torch.from_numpy(value) for key, value in made.items()}
                self.lacking += [key for key in slot.keys if key not in made]
        return found

    @property
    def said(self) -> dict[str, Any]:
        """Return the facts that the file of statistics records about the Gram matrices.

        They are the number of inputs for each key, the keys of weights of shape (in, out), and the keys without inputs.
        ``unused`` maps the name of a module to the number of its experts to which no input was routed.
        """
        rows = {one.key: one.count for one in self.sums.values() if one.count}
        unused = {}
        for one in self.experts:
            for slot in one.slots if one.is_known and one.counts else ():
                each = one.counts if len(slot.keys) > 1 else [min(one.counts)]
                rows |= dict(zip(slot.keys, each, strict=True))
            if one.slots and one.is_known and one.counts and 0 in one.counts:
                unused[one.name] = one.counts.count(0)
        return {"rows": rows, "turned": self.turned, "lacking": sorted(set(self.lacking)), "unused": unused}


def chosen_from(network: Network) -> list[str]:
    """Return the keys of the tensors of a checkpoint for which statistics can be collected.

    These are all parameters that the checkpoint stores as the network has them (embeddings and norms, too), and the
    weights of experts that the network stacks.
    """
    weights = weights_of(network)
    return list(dict.fromkeys([*weights.keys.values(), *stacked_keys(network.module, weights)]))


def stacked_keys(model: nn.Module, weights: LayerWeights) -> Iterator[str]:
    """Yield the keys of the weights of modules that stack the weights of all experts."""
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False) if are_experts(module) else ():
            full = f"{name}.{own}"
            if parameter.dim() == 3:
                yield from (weights.keys[full],) if full in weights.keys else weights.made.get(full, ())


def rows_of_inputs(mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return a function that turns the input of a layer into rows, without the padding that ``mask`` marks with 0."""
    return partial(positions, real=real_positions(mask))


def real_positions(mask: Tensor | None) -> Tensor | None:
    """Return a mask of the positions that are not padding; None if none is padding, or if it is not known."""
    return mask.bool() if mask is not None and mask.dim() == 2 and not bool(mask.all()) else None


def positions(values: Tensor, real: Tensor | None) -> Tensor:
    """Return values with one row for each position, without padding.

    ``real`` is the mask of the positions that are not padding; None if none is.
    """
    flat = values.detach().reshape(-1, values.shape[-1])
    if real is None or len(flat) != real.numel() or values.shape[:-1] not in (real.shape, (real.numel(),)):
        return flat
    return flat[real.reshape(-1)]


def _mean(total: Array, count: int, expert: int) -> Array:
    made: Array = total / count
    return made


def _mean_of_expert(totals: Array, counts: Sequence[int], expert: int) -> Array:
    return _mean(totals[expert], max(1, counts[expert]), expert)


def _take(
    found: MatrixSum,
    name: str,
    positions: Callable[[Tensor], Tensor],
    module: nn.Module,
    args: Any,
    kwargs: Any,
    out: Any,
) -> None:
    given: Tensor = args[0] if args else next(iter(kwargs.values()))
    found.add(positions(given), name)
