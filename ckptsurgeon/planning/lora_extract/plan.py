"""The planner of ``lora extract``: an adapter that brings a base to what was tuned from it, as PEFT has it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from ..keys.hints import matched
from ..plan.plan import Plan, PlanCompanion, PlanTarget
from ..plan.step import Input
from ..quantised import refuse_codes
from ..transplant.select import SourceView
from .check import CONFIG, WEIGHTS
from .config import adapter_config
from .notes import extract_notes
from .options import Extraction, check_extraction
from .sorting import Sorted, sorted_keys
from .steps import factor_steps, saved_name, saved_step

__all__ = ["plan_lora_extract", "with_tied"]


def plan_lora_extract(
    tuned: SourceView,
    base: SourceView,
    differing: Collection[str],
    asked: Extraction,
    *,
    tied: Sequence[Mapping[str, str]] = ({}, {}),
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan an adapter of those keys of ``tuned`` that differ from the base's; ``tuned`` is the first source.

    ``tied`` names for each of the two an output layer that it has not because it is the embedding, with that: PEFT
    adapts the two apart.

    Raises PlanError where nothing differs, nothing of it can be in an adapter or it is quantised, PatternError for a
    pattern that matches nothing.
    """
    check_extraction(asked)
    flags = [(str(flag), flag.pattern) for flag in (*asked.include, *asked.exclude)]
    overlooked = matched(flags, list(tuned.tensors), "source")[1]
    ours, theirs = (with_tied(one.tensors, heads) for one, heads in zip((tuned, base), tied, strict=True))
    found = sorted_keys(ours, theirs, differing, asked)
    refuse_codes([tuned, base], "lora extract", {*found.factored, *found.biases, *found.saved, *found.left})
    _check_any(found, tuned, base)
    inputs = {key: _input(0, key, ours, tied[0]) for key in (*found.factored, *found.biases, *found.saved)}
    steps = [
        step
        for key in found.factored
        for step in factor_steps(key, inputs[key], _input(1, key, theirs, tied[1]), asked)
    ]
    steps += [saved_step(saved_name(key, found), inputs[key]) for key in (*found.biases, *found.saved)]
    config = adapter_config(steps, tuned.tensors, base.source.name)
    return Plan(
        verb="lora extract",
        sources=(tuned.source, base.source),
        target=PlanTarget("edit", "an adapter", "", companions=(_companion(config),), weights=WEIGHTS),
        steps=tuple(steps),
        unexpected=tuple((0, key) for key in found.left),
        seed=asked.seed,
        arguments=arguments or {},
        notes=(*notes, *overlooked, *_apart(found, tied), *extract_notes(found, ours, asked)),
    )


def with_tied(tensors: Mapping[str, TensorInfo], heads: Mapping[str, str]) -> Mapping[str, TensorInfo]:
    """Return tensors with the output layers that are others of them, which go by their own names."""
    return {**tensors, **{head: tensors[key] for head, key in heads.items()}} if heads else tensors


def _input(source: int, key: str, tensors: Mapping[str, TensorInfo], heads: Mapping[str, str]) -> Input:
    info = tensors[key]
    return Input(source, heads.get(key, key), info.dtype, info.shape)


def _apart(found: Sorted, tied: Sequence[Mapping[str, str]]) -> list[str]:
    """Say which output layer is adapted for itself, though it is the embedding."""
    adapted = {*found.factored, *found.saved}
    pairs = [f"{escape(head)} ({escape(key)})" for head, key in {**tied[0], **tied[1]}.items() if head in adapted]
    return (
        [f"the adapter has the output layer beside the embedding, which PEFT takes apart: {listing(pairs)}"]
        if pairs
        else []
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
