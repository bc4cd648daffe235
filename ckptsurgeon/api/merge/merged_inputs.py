"""Collects the Gram matrices of the inputs that layers get in a merged model: RegMean++.

The blocks are merged in the order in which they run. First, each model's own block runs on the outputs of the merged
blocks before it. Then the block is merged by RegMean, and the merged block runs (https://arxiv.org/abs/2508.03121,
algorithm 1; the authors' code: https://github.com/nthehai01/RegMean-plusplus). The authors merge in this way only the
modules in a list of layers. Here, all blocks into which ``prove`` divides a network are merged in this way. So heads
are merged by the inputs that they get from merged layers, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, PlanError
from ...methods.merge._registry import merge_methods
from ...util.text import escape, listing
from ..prove.lockstep import InLockstep
from ..statistics.gram_matrices import GramSums, weights_of
from .merged_memory import check_memory, is_turned
from .sampled_tensors import SampledTensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...tensors.ops.regions import Array
    from ..prove.inputs import Inputs
    from ..prove.network import Network

    ReadGram = Callable[[int], Array]

__all__ = ["METHOD", "merged_grams"]

METHOD = "regmean_plusplus"


def merged_grams(
    networks: Sequence[Network],
    inputs: Sequence[Inputs],
    chosen: frozenset[str],
    *,
    positions: Sequence[Callable[[Tensor], Tensor]],
    parameters: Mapping[str, Any],
    limit: int,
) -> list[GramSums]:
    """Return the Gram matrices of each network; the layers before each measured layer are merged first.

    ``chosen`` has the keys of the weights whose inputs are collected. ``positions`` has a function for each network,
    which turns inputs of layers into rows. ``parameters`` are those of the method ``METHOD``. ``limit`` is the memory
    for weights in bytes. Raises PlanError if the networks differ, ConfigError if one does not run or memory is too
    small.
    """
    _check_alike(networks)
    run = _Merging(networks, chosen, positions, parameters)
    check_memory(networks[0], run.blocks, run.grams[0], models=len(networks), limit=limit)
    run.average_buffers()
    with run.loaded_outside():
        InLockstep([one.module for one in networks], run.blocks, run.merge, run.merged).run(networks, inputs)
    return run.grams


def _check_alike(networks: Sequence[Network]) -> None:
    first = {key: step.shape for key, step in networks[0].steps.items()}
    for other in networks[1:]:
        shapes = {key: step.shape for key, step in other.steps.items()}
        apart = sorted(key for key in first.keys() | shapes.keys() if first.get(key) != shapes.get(key))
        if apart:
            raise PlanError(
                f"{escape(networks[0].path)} and {escape(other.path)} have different tensors: {listing(apart)}.",
                hint="Give models of the same sizes.",
                details=apart,
            )


class _Merging:
    """Merges blocks of networks, after it has collected the Gram matrices of their inputs."""

    def __init__(
        self,
        networks: Sequence[Network],
        chosen: frozenset[str],
        positions: Sequence[Callable[[Tensor], Tensor]],
        parameters: Mapping[str, Any],
    ) -> None:
        from ..prove.blocks import block_names

        self._networks, self._positions = networks, positions
        self._parameters = dict(parameters)
        self._method, self._mean = merge_methods()[METHOD], merge_methods()["linear"]
        self.grams = [GramSums(one, chosen) for one in networks]
        self.blocks = block_names(networks[0].module)
        self._keys = [weights_of(one).keys for one in networks]
        for one in self.grams:
            one.prepare()
            _check_not_in_part(one)

    def average_buffers(self) -> None:
        """Set the floating-point buffers of all networks to their mean, such as the statistics of batch norms.

        The statistics of a network fit its own inputs only, not the inputs of a merged network.
        """
        first = self._networks[0]
        names = [name for name, one in first.module.named_buffers() if name in first.steps and one.is_floating_point()]
        means = {name: self._averaged([one.read([name])[name] for one in self._networks]) for name in names}
        for network in self._networks:
            for name, buffer in network.module.named_buffers():
                if name in means:
                    buffer.copy_(means[name])

    @contextmanager
    def loaded_outside(self) -> Iterator[None]:
        """Give all networks the means of the parameters that are in no block of layers, during the ``with`` block."""
        first = self._networks[0].module
        names = [
            name
            for name, _ in first.named_parameters(remove_duplicate=False)
            if not any(name == block or name.startswith(f"{block}.") or not block for block in self.blocks)
        ]
        means = self._read_merged(names)
        with ExitStack() as stack:
            for network in self._networks:
                stack.enter_context(_holding(network.module, means))
            yield

    def merge(self, block: str, runs: Sequence[Callable[[], Any]]) -> dict[str, Tensor]:
        """Run a block in each model by calling ``runs``, then merge it; return {name: value} of its parameters.

        Before a model's block runs, it gets the model's own weights; its inputs come from merged blocks.
        """
        names = self._names(block)
        for network, grams, positions, run in zip(self._networks, self.grams, self._positions, runs, strict=True):
            with _holding(network.module, network.read(names)), grams.collecting(positions, within=block):
                run()
        return self._read_merged(names)

    def merged(self, network: int, values: Mapping[str, Tensor]) -> Any:
        """Return a context manager that gives a network the parameters ``values`` until the end of its ``with`` block.

        ``network`` is the index of the network.
        """
        return _holding(self._networks[network].module, values)

    def _names(self, block: str) -> list[str]:
        module = self._networks[0].module.get_submodule(block) if block else self._networks[0].module
        return [f"{block}.{name}".strip(".") for name, _ in module.named_parameters(remove_duplicate=False)]

    def _read_merged(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self._merged_tensor(name) for name in names}

    def _merged_tensor(self, name: str) -> Tensor:
        import torch

        values = [network.read([name])[name] for network in self._networks]
        if not values[0].is_floating_point():
            return values[0]
        found = [grams.means(name, keys.get(name, "")) for grams, keys in zip(self.grams, self._keys, strict=True)]
        known = [one for one in found if one is not None]
        if len(known) < len(values):
            return self._averaged(values)
        tensors = _InMemory(name, values, known, turned=is_turned(self._networks[0].module, name))
        merging = self._method.prepare(tensors, dict(self._parameters))
        return torch.from_numpy(merging(tensors.whole())).float()

    def _averaged(self, values: Sequence[Tensor]) -> Tensor:
        import torch

        tensors = _InMemory("", values, [])
        weights = {"weight": self._parameters["weight"], "normalize": True}
        made = self._mean.prepare(tensors, weights)(tensors.whole())
        return torch.from_numpy(made).float().reshape(values[0].shape)


def _check_not_in_part(grams: GramSums) -> None:
    """Raise ConfigError if only some of the tensors that the network stacks into one tensor of experts are chosen.

    The merged block has one tensor for all experts, but a merge would average the tensors that are not chosen.
    """
    made = weights_of(grams.network).made
    for experts in grams.experts:
        for name in dict.fromkeys(slot.parameter for slot in experts.slots):
            left = [key for key in made.get(name, ()) if key not in grams.chosen]
            if left:
                raise ConfigError(
                    f"the network has one tensor, {escape(name)}, for chosen tensors and for tensors that are not "
                    f"chosen. Not chosen are {listing(left)}.",
                    hint="With --include and --exclude, choose all of them or none of them.",
                )


class _InMemory(SampledTensors):
    """The whole values of one tensor in all models, with a function for each model that reads its Gram matrices."""

    def __init__(self, key: str, values: Sequence[Tensor], grams: Sequence[ReadGram], *, turned: bool = False) -> None:
        arrays = tuple(one.contiguous().numpy() for one in values)
        super().__init__(key, tuple(values[0].shape), arrays, None, 0)
        self.is_transposed, self._grams = turned, grams

    def gram(self, model: int, expert: int = 0) -> Array:
        return self._grams[model](expert)


@contextmanager
def _holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a network the parameters ``values`` during the ``with`` block; afterwards, put the empty parameters back."""
    from torch import nn

    from ..prove.streaming import put_parameters

    parameters = dict(model.named_parameters(remove_duplicate=False))
    empty = {name: parameters[name] for name in values}
    put_parameters(model, {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()})
    try:
        yield
    finally:
        put_parameters(model, empty)
