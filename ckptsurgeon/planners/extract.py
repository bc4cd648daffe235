"""The planner of ``lora extract``: an adapter that brings a base to what was tuned from it, as PEFT has it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import PlanError
from ..keys import matched
from ..plan import Plan, PlanCompanion, PlanTarget
from ..text import escape, listing
from .coded import refuse_codes
from .extract_check import CONFIG, WEIGHTS
from .extract_config import adapter_config
from .extract_notes import extract_notes
from .extract_options import Extraction, check_extraction
from .extract_sorting import Sorted, sorted_keys
from .extract_steps import factor_steps, saved_name, saved_step
from .select import SourceView

__all__ = ["plan_lora_extract"]


def plan_lora_extract(
    tuned: SourceView,
    base: SourceView,
    differing: Collection[str],
    asked: Extraction,
    *,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan an adapter of those keys of ``tuned`` that differ from the base's; ``tuned`` is the first source.

    Raises PlanError where nothing differs, nothing of it can be in an adapter or it is quantised, PatternError for a
    pattern that matches nothing.
    """
    check_extraction(asked)
    flags = [(str(flag), flag.pattern) for flag in (*asked.include, *asked.exclude)]
    overlooked = matched(flags, list(tuned.tensors), "source")[1]
    found = sorted_keys(tuned.tensors, base.tensors, differing, asked)
    refuse_codes([tuned, base], "lora extract", {*found.factored, *found.biases, *found.saved, *found.left})
    _check_any(found, tuned, base)
    steps = [step for key in found.factored for step in factor_steps(key, tuned.tensors[key], base.tensors[key], asked)]
    steps += [saved_step(key, saved_name(key, found), tuned.tensors[key]) for key in (*found.biases, *found.saved)]
    config = adapter_config(steps, tuned.tensors, base.source.name)
    return Plan(
        verb="lora extract",
        sources=(tuned.source, base.source),
        target=PlanTarget("edit", "an adapter", "", companions=(_companion(config),), weights=WEIGHTS),
        steps=tuple(steps),
        unexpected=tuple((0, key) for key in found.left),
        seed=asked.seed,
        arguments=arguments or {},
        notes=(*notes, *overlooked, *extract_notes(found, tuned.tensors, asked)),
    )


def _check_any(found: Sorted, tuned: SourceView, base: SourceView) -> None:
    ours, theirs = escape(tuned.source.name), escape(base.source.name)
    if not (found.factored or found.left or found.saved):
        raise PlanError(f"{ours} and {theirs} hold the same values: there is nothing to extract.")
    if not found.factored:
        raise PlanError(
            f"nothing of what differs between {ours} and {theirs} can be of low rank: "
            f"{listing([*found.left, *found.saved])}.",
            hint="Widen --include, or use --embeddings.",
            details=[*found.left, *found.saved],
        )


def _companion(config: Mapping[str, Any]) -> PlanCompanion:
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    data = text.encode("utf-8", "surrogatepass")
    return PlanCompanion(CONFIG, len(data), hashlib.sha256(data).hexdigest(), text=text)
