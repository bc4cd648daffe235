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
from .merge_vocabulary import ModelTokens
from .model_config import with_dtype
from .model_folders import CONFIG, ModelFolder
from .token_files import config_for, token_files

__all__ = ["with_folder"]


def with_folder(
    plan: Plan,
    donor: ModelFolder,
    models: Sequence[ModelFolder],
    *,
    config: Mapping[str, Any] | None = None,
    files: Sequence[Companion] | None = None,
    tokens: ModelTokens | None = None,
) -> Plan:
    """Return a plan whose output, if it is a folder, opens like the donor's: with its files and configuration.

    ``config`` is that configuration where it is another; ``files`` what goes beside it. The dtype is that of the
    weights, and an output layer that one of the ``models`` had apart from its embedding is not tied again. With
    ``tokens`` the vocabulary is another: its list goes beside the weights of whatever model, and the size with it.
    """
    notes: list[str] = []
    config = donor.config if config is None else config
    if tokens is not None:
        files, notes = token_files(tokens, donor.files if files is None else files, models, models.index(donor))
        config, more = config_for(config, tokens.size)
        notes = [*tokens.notes, *notes, *more]
    if not donor.config:
        return replace(_beside(plan, files), notes=(*plan.notes, *notes)) if files else plan
    fields, note = with_dtype(config, plan)
    notes += [note] if note else []
    if donor.is_tied and has_own_head(plan.steps, all(one.is_tied for one in models)):
        fields["tie_word_embeddings"] = False
        notes.append("the output layer has weights of its own: config.json does not tie it to the embedding")
    said = Companion(CONFIG, text=json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    beside = [one for one in (donor.files if files is None else files) if one.name != CONFIG]
    return replace(_beside(plan, (said, *beside)), notes=(*plan.notes, *notes))


def _beside(plan: Plan, files: Sequence[Companion]) -> Plan:
    paths = tuple(one.path for one in files if one.path)
    target = TargetSpec(plan.target.kind, plan.target.name, {}, companions=tuple(files), files=paths)
    return replace(plan, target=plan_target(target))
