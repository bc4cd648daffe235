"""The small files of a merged model's folder: the base's or the first model's, as they are true of the output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..plan import Plan
from ..planners import has_own_head
from ..target import Companion, TargetSpec
from .inputs import plan_target
from .model_config import with_dtype
from .model_folders import CONFIG, ModelFolder

__all__ = ["with_folder"]


def with_folder(
    plan: Plan,
    donor: ModelFolder,
    models: Sequence[ModelFolder],
    *,
    config: Mapping[str, Any] | None = None,
    files: Sequence[Companion] | None = None,
) -> Plan:
    """Return a plan whose output, if it is a folder, opens like the donor's: with its files and configuration.

    ``config`` is that configuration where it is another; ``files`` what goes beside it. The dtype is that of the
    weights, and an output layer that one of the ``models`` had apart from its embedding is not tied again.
    """
    if not donor.config:
        return plan
    fields, note = with_dtype(donor.config if config is None else config, plan)
    notes = [note] if note else []
    if donor.is_tied and has_own_head(plan.steps, all(one.is_tied for one in models)):
        fields["tie_word_embeddings"] = False
        notes.append("the output layer has weights of its own: config.json does not tie it to the embedding")
    said = Companion(CONFIG, text=json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    beside = [one for one in (donor.files if files is None else files) if one.name != CONFIG]
    target = TargetSpec(
        plan.target.kind, plan.target.name, {}, companions=(said, *beside),
        files=tuple(one.path for one in beside if one.path),
    )  # fmt: skip
    return replace(plan, target=plan_target(target), notes=(*plan.notes, *notes))
