"""What a merge was asked for, beside models, method and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..merges import Method
from ..plan import Plan
from ..planners import MergeOptions
from .inputs import OpenInputs
from .memory import with_costs
from .merge_vocabulary import VocabularyAsked

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

    def opened(self, paths: Sequence[str], stack: ExitStack) -> list[Checkpoint]:
        """Open models; the stack closes them."""
        return [stack.enter_context(open_checkpoint(one, self.root, unwrap=self.unwrap)) for one in paths]

    def carried(self, plan: Plan, opened: Sequence[Checkpoint], *others: str) -> Plan:
        """Return a plan with what it costs, what it keeps open, and the files that must not be written."""
        inputs = OpenInputs(tuple(opened), None, others, plugins=self.plugins, memory=self.memory)
        return with_costs(replace(plan, inputs=inputs), self.memory, self.plugins)
