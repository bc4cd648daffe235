"""Runs a network, and measures the statistics of its modules, and the statistics that merge methods use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .gram_matrices import GRAM, GramSums, rows_of_inputs
from .magnitudes import MAGNITUDES, MagnitudeSums
from .module_means import collected

if TYPE_CHECKING:
    from torch import Tensor

    from ..prove.inputs import Inputs
    from ..prove.network import Network

__all__ = ["ForMerges", "Measured", "measured"]


@dataclass(frozen=True)
class ForMerges:
    """The kinds of statistics that merge methods use: each field is true if this kind is computed."""

    gram: bool
    fisher: bool
    magnitudes: bool

    def __bool__(self) -> bool:
        """Return whether any of the three kinds of statistics is computed."""
        return self.gram or self.fisher or self.magnitudes


@dataclass(frozen=True)
class Measured:
    """Statistics by key (``values``), and the facts that the file of statistics records about each kind (``said``)."""

    values: Mapping[str, Tensor]
    said: Mapping[str, Any]


def measured(
    network: Network, given: Inputs, kinds: ForMerges, chosen: frozenset[str], *, seed: int, limit: int
) -> Measured:
    """Run a network, and return its statistics; statistics for merge methods are collected for the tensors ``chosen``.

    The other arguments are those of ``stats``; ``limit`` is the memory for weights in bytes. Raises ConfigError if the
    network does not run, or if none of the chosen layers runs.
    """
    sums = _sums(network, kinds, chosen)
    values = _run(network, given, sums, limit)
    said: dict[str, Any] = {}
    for kind, one in sums.items():
        values |= one.values()
        said[kind] = one.said
        _check_rows(said[kind], kind, fisher=kinds.fisher)
    if kinds.fisher:
        from .fisher import FISHER, fisher_of

        information = fisher_of(network, given, chosen, seed=seed, limit=limit)
        values |= information.values
        said[FISHER] = information.said
    return Measured(values, said)


def _sums(network: Network, kinds: ForMerges, chosen: frozenset[str]) -> dict[str, GramSums | MagnitudeSums]:
    """Return {kind: object that sums the statistics of this kind while the network runs}: magnitudes, Gram matrices."""
    sums: dict[str, GramSums | MagnitudeSums] = {}
    if kinds.magnitudes:
        sums[MAGNITUDES] = MagnitudeSums(network, chosen)
    if kinds.gram:
        sums[GRAM] = grams = GramSums(network, chosen)
        grams.prepare()
    return sums


def _run(network: Network, given: Inputs, sums: dict[str, GramSums | MagnitudeSums], limit: int) -> dict[str, Tensor]:
    """Run a network; return {key: statistics} of its layers, routers and experts, as ``collected`` describes them.

    The run also adds the statistics for merge methods to ``sums``. ``limit`` is the memory for weights in bytes.
    """
    from ..prove.running import run_network

    mask = given.arguments.get("attention_mask")
    with collected(network.module, mask) as found, ExitStack() as more:
        for one in reversed(sums.values()):  # of inputs that are too large, Gram matrices say most
            more.enter_context(one.collecting(rows_of_inputs(mask)))
        run_network(network, given, limit)
    return {key: value for name, one in found.items() for key, value in one.by_key(name)}


def _check_rows(said: Mapping[str, Any], kind: str, *, fisher: bool) -> None:
    """Raise ConfigError if there are no statistics of this kind, unless there is Fisher information (``fisher``)."""
    if not said["rows"] and not fisher:
        raise ConfigError(
            f"--{kind}: with these inputs, none of the chosen linear layers runs.",
            hint="Choose other layers with --include and --exclude, or give other inputs.",
        )
