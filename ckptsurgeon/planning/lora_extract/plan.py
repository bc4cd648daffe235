"""Plans ``lora extract``: an adapter that turns a base into a tuned model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ...errors import PlanError
from ...methods.lora.conv1d import is_named_conv1d
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing
from ..keys.pattern_hints import matched
from ..lora_output.peft import companion
from ..plan.files import PlanTarget, SourceView
from ..plan.plan import Plan
from ..plan.step import Input
from ..quantised import refuse_codes
from .config import WEIGHTS, adapter_config
from .steps import (
    ExtractOptions,
    SortedKeys,
    check_extraction,
    factor_steps,
    is_convolution,
    is_embedding,
    is_transposed,
    module_of,
    rank_of,
    saved_name,
    saved_step,
    sorted_keys,
)

__all__ = ["extract_notes", "layout_notes", "plan_lora_extract", "with_tied"]

# Notes on the layout of extracted weights, (out, in) or (in, out).


def layout_notes(found: SortedKeys, tuned: Mapping[str, TensorInfo], asked: ExtractOptions) -> Iterator[str]:
    """Yield notes on layers whose layout, (out, in) or (in, out), differs from the requested one or is uncertain."""
    layers = [key for key in found.factored if len(tuned[key].shape) == 2 and not is_embedding(key)]
    lie = {key: is_transposed(key, tuned[key].shape, asked) for key in layers}
    odd = [module_of(key) for key, lies in lie.items() if lies != asked.transposed]
    if asked.model and odd:
        kind = "Linear" if asked.transposed else "Conv1D"
        what = "--fan-in-fan-out does not apply to" if asked.transposed else "fan_in_fan_out is true for"
        layers_text = f"{count(len(odd), f'{kind} layer')}: {listing(odd, where='')}"
        yield f"config.json has the model type {asked.model.kind}, so {what} {layers_text}"
    named = [module_of(key) for key, lies in lie.items() if is_named_conv1d(key) and not lies]
    if asked.model is None and named:
        yield (
            f"{count(len(named), 'module is', 'modules are')} named like GPT-2's Conv1D, but treated as (out, in), "
            f"because --fan-in-fan-out was not given: {listing(named, where='')}"
        )


# Notes on an adapter: layout of weights, reduced ranks, convolutions, tensors that are left out.


def extract_notes(found: SortedKeys, tuned: Mapping[str, TensorInfo], asked: ExtractOptions) -> Iterator[str]:
    """Yield the notes on an adapter: layouts, ranks below the requested one, convolutions, tensors left out."""
    yield from layout_notes(found, tuned, asked)
    if asked.embeddings and not any(map(is_embedding, found.factored)):
        others = [key for key in (*found.left, *found.saved) if is_embedding(key)]
        why = f"{listing(others, where='')} cannot be made low-rank, or is excluded" if others else ""
        why = why or "no tensor that differs has the name of an embedding"
        yield f"--embeddings changes nothing: {why}"
    yield from _cut_rank_notes(found, tuned, asked)
    convolutions = [module_of(key) for key in found.factored if is_convolution(tuned[key].shape)]
    if convolutions:
        yield (
            f"{count(len(convolutions), 'convolution is', 'convolutions are')} assumed to be neither grouped nor "
            "transposed, because no tensor shows this; PEFT cannot merge grouped or transposed convolutions (leave "
            f"them out with --exclude): {listing(convolutions, where='')}"
        )
    if found.left:
        some = f"{len(found.savable)} of these, which" if len(found.savable) < len(found.left) else "tensors that"
        hint = f"; --save-modules saves {some} are not weights of layers" if found.savable else ""
        left = listing(found.left, where="")
        many = "that differ are" if len(found.left) > 1 else "that differs is"
        yield f"{count(len(found.left), 'tensor')} {many} not in the adapter: {left}{hint}"


def _cut_rank_notes(found: SortedKeys, tuned: Mapping[str, TensorInfo], asked: ExtractOptions) -> Iterator[str]:
    """Yield a note for each rank below the requested one, with the modules that get it."""
    smaller: dict[int, list[str]] = {}
    for key in found.factored:
        rank = rank_of(tuned[key].shape, asked)
        if rank < asked.rank:
            smaller.setdefault(rank, []).append(module_of(key))
    for rank, modules in sorted(smaller.items()):
        yield (
            f"the rank is {rank} instead of {asked.rank}, because it cannot be higher than the smaller side of the "
            f"weight, for {count(len(modules), 'module')}: {listing(modules, where='')}"
        )


def plan_lora_extract(
    tuned: SourceView,
    base: SourceView,
    differing: Collection[str],
    asked: ExtractOptions,
    *,
    tied: Sequence[Mapping[str, str]] = ({}, {}),
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of an adapter that turns ``base``, the second source, into ``tuned``, the first.

    ``differing`` are the keys whose values differ. ``tied`` has a map for ``tuned`` and a map for ``base``. Each map is
    for output layers that are not stored because they are tied to the input embedding: it maps the key of the output
    layer to the key of the embedding. PEFT adapts the two layers separately.

    Raises PlanError if nothing differs, if none of the differences can be put into an adapter, or if a tensor is
    quantised; PatternError for a pattern that matches nothing.
    """
    check_extraction(asked)
    flags = [(str(flag), flag.pattern) for flag in (*asked.include, *asked.exclude)]
    overlooked = matched(flags, list(tuned.tensors), "source")[1]
    ours, theirs = (with_tied(one.tensors, heads) for one, heads in zip((tuned, base), tied, strict=True))
    found = sorted_keys(ours, theirs, differing, asked)
    refuse_codes([tuned, base], "lora extract", {*found.factored, *found.biases, *found.saved, *found.left})
    _check_any(found, tuned, base, asked)
    inputs = {key: _input(0, key, ours, tied[0]) for key in (*found.factored, *found.biases, *found.saved)}
    steps = [
        step
        for key in found.factored
        for step in factor_steps(key, inputs[key], _input(1, key, theirs, tied[1]), asked)
    ]
    saved = (*found.biases, *found.saved)
    steps += [saved_step(saved_name(key, found), inputs[key], tuned.dtype_of(inputs[key].key)) for key in saved]
    config = adapter_config(steps, tuned.tensors, base.source.name)
    return Plan(
        verb="lora extract",
        sources=(tuned.source, base.source),
        target=PlanTarget("edit", "an adapter", "", companions=(companion(config),), weights=WEIGHTS),
        steps=tuple(steps),
        unexpected=tuple((0, key) for key in found.left),
        seed=asked.seed,
        arguments=arguments or {},
        notes=(*notes, *overlooked, *_untied_notes(found, tied), *extract_notes(found, ours, asked)),
    )


def with_tied(tensors: Mapping[str, TensorInfo], heads: Mapping[str, str]) -> Mapping[str, TensorInfo]:
    """Return the tensors, together with the output layers that are not stored because they are tied to an embedding.

    ``heads`` maps the key of each such output layer to the key of the embedding.
    """
    return {**tensors, **{head: tensors[key] for head, key in heads.items()}} if heads else tensors


def _input(source: int, key: str, tensors: Mapping[str, TensorInfo], heads: Mapping[str, str]) -> Input:
    info = tensors[key]
    return Input(source, heads.get(key, key), info.dtype, info.shape)


def _untied_notes(found: SortedKeys, tied: Sequence[Mapping[str, str]]) -> list[str]:
    """Return notes on output layers that are adapted separately, although they are tied to the embedding."""
    adapted = {*found.factored, *found.saved}
    notes: dict[str, list[str]] = {}
    for head, key in {**tied[0], **tied[1]}.items():
        if head in adapted:
            which = (
                "the adapter has both, and PEFT unties them"
                if key in adapted
                else "the adapter has only the output layer, and PEFT unties the two; --embeddings adds the embedding, "
                "--exclude leaves out the output layer"
            )
            notes.setdefault(which, []).append(f"{escape(head)} ({escape(key)})")
    return [f"output layer tied to an embedding, {listing(pairs)}: {which}" for which, pairs in notes.items()]


def _check_any(found: SortedKeys, tuned: SourceView, base: SourceView, asked: ExtractOptions) -> None:
    """Raise PlanError if no tensor becomes low-rank; the hint names those options that could change this."""
    ours, theirs = escape(tuned.source.name), escape(base.source.name)
    if not (found.factored or found.left or found.saved):
        raise PlanError(
            f"{ours} and {theirs} have the same values: there is nothing to extract.",
            hint="Give the tuned model and the base that it was made from.",
        )
    if not found.factored:
        selected = " selected" if asked.include or asked.exclude else ""
        ways = (
            ("widen --include", asked.include),
            ("leave --exclude out", asked.exclude),
            ("use --embeddings to adapt embeddings too", not asked.embeddings),
        )
        ways_left = " or ".join(way for way, helps in ways if helps)
        raise PlanError(
            f"no{selected} tensor that differs between {ours} and {theirs} can be made low-rank: "
            f"{listing([*found.left, *found.saved])}.",
            hint=f"{ways_left[:1].upper()}{ways_left[1:]}."
            if ways_left
            else "Use ckpt patch: it keeps every difference.",
            details=[*found.left, *found.saved],
        )
