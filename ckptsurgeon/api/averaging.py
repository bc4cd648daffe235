"""``average``: several checkpoints of one model become one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ..checkpoint import Checkpoint, open_checkpoint
from ..plan import Plan
from ..planners import SourceView, ema_weights, plan_average
from .argument_types import checked
from .inputs import OpenInputs, names_of, plan_source, said_of
from .planning import arguments_said
from .types import Path

__all__ = ["average"]


@checked
def average(
    sources: Sequence[Path],
    *,
    ema: float | None = None,
    int_buffers: str = "last",
    unwrap: bool = False,
    root: str | None = None,
) -> Plan:
    """Plan the average of checkpoints of one model: the mean, or with ``ema`` their moving average, oldest first.

    Floating and complex tensors are averaged in double precision and keep the dtype of the first. Integers and truth
    values, which have no mean, are those of the ``int_buffers`` "last" or "first" checkpoint, or the "max".

    Raises ConfigError for fewer than two checkpoints, PlanError where their keys, shapes or kinds of numbers differ,
    and what ``open_checkpoint`` raises.
    """
    paths = [os.fspath(path) for path in sources]
    weights = ema_weights(ema, len(paths)) if ema is not None and len(paths) > 1 else ()
    opened: list[Checkpoint] = []
    try:
        for path in paths:
            opened.append(open_checkpoint(path, root, unwrap=unwrap))
        views = [SourceView(plan_source(n, c), c) for n, c in zip(names_of(paths), opened, strict=True)]
        plan = plan_average(
            views,
            weights=weights,
            int_buffers=int_buffers,
            arguments={**arguments_said(int_buffers=int_buffers, unwrap=unwrap, root=root), **_said(ema)},
            metadata=opened[-1].metadata if opened else {},
            notes=said_of(opened),
        )
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    return replace(plan, inputs=OpenInputs(tuple(opened), None))


def _said(ema: float | None) -> dict[str, float]:
    return {"ema": ema} if ema is not None else {}
