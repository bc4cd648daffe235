"""Aligns experts before they are merged: reorders their channels, so that the merge averages similar channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.resizable import Resizable
from ...errors import PlanError
from ...planning.aligning.groups import Part
from ...planning.aligning.stored import NetworkGroup
from ...planning.resizing.axes import Axis
from ...planning.resizing.merge_experts import AlignedExperts, Groups
from ...util.text import escape
from ..aligning.network_groups import NetworkGroups

__all__ = ["ExpertAlignment"]

MEMORY = 3 << 30
"""The most bytes of memory for two experts: the similarities of 16,384 channels (Mixtral 8x22B) take 2 GiB."""


@dataclass(frozen=True)
class ExpertAlignment:
    """Finds the order of the channels of experts of the network ``base``.

    ``named`` is a function that returns the open checkpoint, with the tensors under their names in the network.
    """

    base: Resizable
    named: Callable[[], Checkpoint]

    def aligned(self, axes: Sequence[Axis], groups: Groups, weights: Sequence[float]) -> AlignedExperts:
        """Return the orders of channels in which each expert of a layer is most similar to the first one of its group.

        ``axes`` are those of the layer's experts, and ``groups`` are the groups of experts that are merged. The first
        of a group is the expert that is used most, according to ``weights``; if these are [], it is the one with the
        lowest index. Raises PlanError if it is not known which axes are channels, or for weights that are not numbers.
        """
        from ...engine.matching.experts import match_expert

        found = self._channels_of(axes)
        parts = [Part((one.key,), one.dim, one.begin, one.block) for one in found.parts]
        matched = {}
        for group in groups:
            first = max(group, key=lambda one: (weights[one] if weights else 0.0, -one))
            for other in group:
                if other != first:
                    matched[other] = match_expert(self.named(), parts, found.units, first, other, MEMORY)
        shapes = {one.key: self.named()[one.key].shape for one in found.parts}
        orders = {expert: one.order for expert, one in matched.items() if one.moved}
        return AlignedExperts(
            parts, found.units, shapes, orders,
            [one.before for one in matched.values()], [one.after for one in matched.values()],
        )  # fmt: skip

    def _channels_of(self, axes: Sequence[Axis]) -> NetworkGroup:
        """Return the channels of one expert of the layer with ``axes``; raises PlanError if they are not known."""
        keys = [axis.key for axis in axes if "experts" in axis.kind]
        found = next((self._channels[key] for key in keys if key in self._channels), None)
        if found is None:
            raise PlanError(
                f"the experts cannot be aligned: it is not known which axes of {escape((keys or [axes[0].key])[0])} "
                "are their channels.",
                hint="Leave --align-experts out.",
            )
        return found

    @cached_property
    def _channels(self) -> Mapping[str, NetworkGroup]:
        """{key of a tensor of experts: channels of the first expert}; all experts have channels along the same axes."""
        groups = NetworkGroups(self.base).channels_of_experts()
        return {part.key: group for group in groups for part in group.parts if part.expert == 0}
