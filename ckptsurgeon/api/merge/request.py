"""What a merge was asked for, beside models, method and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...methods.merge._method import Method
from ...planning.merge.options import MergeOptions
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ..inputs.inputs import OpenInputs
from ..inputs.memory_budget import with_costs
from ..inputs.types import CheckpointLike
from ..model_folder.quantised import check_settings, unsettled_notes, with_settings
from .vocabulary import VocabularyAsked

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """What a merge was asked for beside models, method and parameters; ``arguments`` are that as it is recorded."""

    options: MergeOptions
    vocabulary: VocabularyAsked
    arguments: Mapping[str, Any]
    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = 0
    unwrap: bool = False
    root: str | None = None

    def opened(
        self, models: Sequence[CheckpointLike], stack: ExitStack, *, base: int | None = None
    ) -> list[Checkpoint]:
        """Open models, of which ``base`` is the place of the base; the stack closes them."""
        names = ["base" if place == base else f"model {place + 1}" for place in range(len(models))]
        return [
            stack.enter_context(open_checkpoint(one, self.root, unwrap=self.unwrap, called=name))
            for one, name in zip(models, names, strict=True)
        ]

    def carried(self, plan: Plan, opened: Sequence[Checkpoint], *others: str, donor: int) -> Plan:
        """Return a plan with what it costs, what it keeps open, and the files that must not be written.

        ``donor`` is the place of the model whose configuration the output has.
        """
        check_codes(plan, [one.codes for one in opened])
        check_settings(plan, opened, donor)
        plan = replace(plan, notes=(*plan.notes, *unsettled_notes(plan, opened, donor)))
        plan = with_settings(plan, opened, donor)
        inputs = OpenInputs(tuple(opened), None, others, plugins=self.plugins, memory=self.memory)
        return with_costs(replace(plan, inputs=inputs), self.memory, self.plugins)
