"""Describes the change of a network's weights, as far as it determines the change of the optimizer's moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....planning.keys.spelling import numberless
from ....planning.resizing.axes import Network
from ....planning.resizing.depth import final_keys
from ....planning.resizing.fused import fused_keys
from ....planning.target import TargetSpec

__all__ = ["ResizedNetwork"]


@dataclass(frozen=True)
class ResizedNetwork:
    """How the weights of a network change: by the operations ``rows`` on the tensors of the network ``first``.

    ``last`` is the network after the change, and ``kinds`` are the kinds of the modules of the tensors of ``first``.
    ``policies`` maps patterns, in which a placeholder stands for each number, to the policy that adds initialised
    elements. ``untied`` are the keys of tensors that are tied in ``first``, but not in ``last``. If ``moves_rows`` is
    true, the rows of the tensors in ``last.vocabulary`` are moved with their tokens. ``unlike`` are the keys of tensors
    whose copies have different gradients; for a fused tensor, they are the keys of the separate queries, keys and
    values.
    """

    first: TargetSpec
    last: TargetSpec
    kinds: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    policies: Mapping[str, str] = field(default_factory=dict)
    untied: frozenset[str] = frozenset()
    moves_rows: bool = False
    unlike: frozenset[str] = frozenset()

    def named_as_stored(self, keys: Iterable[str]) -> set[str]:
        """Return the patterns of the output's tensors to which ``keys`` belong, with a placeholder for each number.

        ``keys`` are keys or patterns. If the network has queries, keys and values in one tensor, the key of the
        queries, for example, gives the pattern of the whole tensor.
        """
        first = Network(self.first.tensors, self.kinds, self.first.ties)
        fused = {numberless(part): numberless(key) for part, key in fused_keys(first).items()}
        patterns = {key if "{" in key else numberless(final_keys(key)) for key in keys}
        return {fused.get(pattern, pattern) for pattern in patterns}
