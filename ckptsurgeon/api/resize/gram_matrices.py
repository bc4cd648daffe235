"""Collects the Gram matrices of the inputs of linear layers, in temporary files: together they may exceed memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...util.text import escape, human_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...tensors.ops.regions import Array
    from ..prove.network import Network

__all__ = [
    "GRAM",
    "GramSums",
    "LayerWeights",
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
BLOCK = 64 << 20
"""So many rows of a Gram matrix are computed at once that they have about this many bytes in double precision."""


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
class _Sum:
    """The sum of x x^T over inputs x: a matrix in a temporary file, or None before the first inputs."""

    key: str
    sum: Array | None = None
    count: int = 0


@dataclass
class GramSums:
    """The Gram matrices of the inputs of linear layers: the mean of x x^T over all positions, for each layer.

    ``chosen`` has the keys of the weights whose inputs are collected; other weights are listed as lacking.
    """

    network: Network
    chosen: frozenset[str]
    layers: list[LinearLayer] = field(default_factory=list)
    sums: dict[str, _Sum] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Find the layers whose inputs are collected, and those that will be lacking."""
        self.layers += linear_layers(self.network, self.chosen, self.lacking)
        self.turned += [layer.key for layer in self.layers if is_transposed(layer.module)]
        self.sums.update({layer.key: _Sum(layer.key) for layer in self.layers})
        self.lacking += stacked_keys(self.network.module, weights_of(self.network))

    @contextmanager
    def collecting(self, positions: Callable[[Tensor], Tensor], *, within: str = "") -> Iterator[None]:
        """Collect Gram matrices during the ``with`` block, after ``prepare``.

        ``positions`` is a function that turns the input of a layer into rows, one for each position, without padding.
        ``within`` is the name of a module: only the inputs of layers in it are collected.
        """
        inside = [one for one in self.layers if not within or f"{one.name}.".startswith(f"{within}.")]
        with ExitStack() as hooks:
            for layer in inside:
                take = partial(_take, self.sums[layer.key], layer.name, positions)
                hooks.callback(layer.module.register_forward_hook(take, with_kwargs=True).remove)
            yield

    def mean(self, key: str) -> Array | None:
        """Return the Gram matrix of the inputs of the weight ``key``; None if it was not collected."""
        found = self.sums.get(key)
        return None if found is None or found.sum is None else found.sum / found.count

    def values(self) -> dict[str, Tensor]:
        """Return {key: Gram matrix}, in double precision, in files that are removed when the process ends."""
        import torch

        found = {}
        for one in self.sums.values():
            if one.sum is None or not one.count:
                self.lacking.append(one.key)
                continue
            for rows in _rows(len(one.sum)):
                one.sum[rows] /= one.count
            found[f"{one.key}.{GRAM}"] = torch.from_numpy(one.sum)
        return found

    @property
    def said(self) -> dict[str, Any]:
        """Return facts for the file: numbers of inputs, weights of shape (in, out), and layers without inputs."""
        rows = {one.key: one.count for one in self.sums.values() if one.count}
        return {"rows": rows, "turned": self.turned, "lacking": sorted(set(self.lacking))}


def stacked_keys(model: nn.Module, weights: LayerWeights) -> Iterator[str]:
    """Yield the keys of the weights of modules that stack the weights of all experts."""
    from .expert_statistics import are_experts

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


def _take(
    found: _Sum, name: str, positions: Callable[[Tensor], Tensor], module: nn.Module, args: Any, kwargs: Any, out: Any
) -> None:
    import numpy as np

    given: Tensor = args[0] if args else next(iter(kwargs.values()))
    flat = positions(given).double()
    size = flat.shape[1]
    if found.sum is None:
        found.sum = _in_file(size, found.key)
    for rows in _rows(size):
        part = (flat[:, rows].T @ flat).numpy()
        if not np.isfinite(part).all():
            raise ConfigError(
                f"the inputs of the module {escape(name)} have values that are NaN, infinite, or too large to square.",
                hint="Look for damaged weights with ckpt check, or give other inputs.",
            )
        found.sum[rows] += part
    found.count += len(flat)


def _rows(size: int) -> Sequence[slice]:
    step = max(1, BLOCK // (8 * size))
    return [slice(first, first + step) for first in range(0, size, step)]


def _in_file(size: int, key: str) -> Array:
    """Return a matrix of zeros in a temporary file; raises ConfigError if the disk has no room for it."""
    import numpy as np

    try:
        with tempfile.TemporaryFile(prefix="ckptsurgeon-") as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process when it writes
                os.posix_fallocate(file.fileno(), 0, 8 * size * size)
            else:
                file.truncate(8 * size * size)
            return np.memmap(file, "<f8", "r+", shape=(size, size))
    except OSError as error:
        raise ConfigError(
            f"there is no room for temporary files: the Gram matrix of {escape(key)} needs "
            f"{human_bytes(8 * size * size)}: {error.strerror}.",
            hint=f"Temporary files are in {escape(tempfile.gettempdir())}: set TMPDIR to a larger folder, or choose "
            "layers with --include.",
        ) from error
