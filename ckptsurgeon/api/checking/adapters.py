"""Collects facts on a PEFT adapter: the factors of each module, the modules that its settings select, base weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...analysis.check.subject import AdapterFacts, Factors
from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER
from ...errors import CheckpointError
from ...methods.lora.config import parse_config
from ...methods.lora.matching import match_modules
from ...methods.lora.names import peft_key_parts
from ...methods.lora.targets import ALL, MODULE, bounded
from ...planning.lora_merge.expert_stacks import has_stacks
from ...planning.lora_output.stacked_experts import (
    expert_stacks,
    single_experts,
    with_layers_only,
)
from ...tensors.quantised.sizes import logical_shapes
from ..inputs.dequantising import with_stated_shapes
from ..inputs.encoding import ENCODINGS, read_as
from ..inputs.operations import operate
from ..model_folder.folder import ModelFolder, model_folder
from ..model_folder.weights.tied_heads import tied_head

__all__ = ["adapter_facts", "with_experts_read"]

LORA = "LORA"
KEEP = ENCODINGS[0]
MIXTRAL = ".block_sparse_moe.experts"
"""The module of the single experts of Mixtral, which transformers 5 stacks in ``mlp.experts``."""


def adapter_facts(checkpoint: Checkpoint, folder: ModelFolder, base: Checkpoint | None) -> AdapterFacts | None:
    """Return the facts on a LoRA adapter; None if the checkpoint is not a LoRA adapter.

    ``folder`` has the adapter's configuration. If ``base`` is given, the facts include the shapes of the weights in
    ``base``.
    """
    data = folder.adapter
    if data.get("peft_type") != LORA:
        return None
    found = factors_of(checkpoint)
    if base is not None:
        found = _with_base(found, base)
        found = _with_stacks(found, checkpoint, data, base)
        single = with_experts_read(checkpoint, data, base)[0]
        if single is not checkpoint:
            of_experts = _with_base(factors_of(single), base)
            found = [_of_stack(one, of_experts) for one in found]
    modules = [one.module for one in found]
    chosen, targets = data.get("layers_to_transform"), data.get("target_modules")
    matches = _matches(targets, modules)
    return AdapterFacts(
        tuple(found),
        matches,
        len(modules) - sum(matches.values()) if isinstance(targets, str) and matches else _unnamed(matches, modules),
        is_chosen=chosen is not None and chosen != [],
        has_base=base is not None,
        magnitudes=tuple(key for key in checkpoint if (part := peft_key_parts(key)) and part.part == "magnitude"),
    )


def with_experts_read(
    checkpoint: Checkpoint, data: Mapping[str, Any], base: Checkpoint
) -> tuple[Checkpoint, Mapping[str, Any]]:
    """Return an adapter and its configuration with stacked experts read as by ``lora merge``.

    If the base has single experts, stacks are divided into these. If the base has the stacks, only the configuration
    changes: it no longer names them. An adapter without stacked experts is returned unchanged.
    """
    with suppress(CheckpointError):  # other checks report factors that do not fit each other
        shapes = _shapes(base)
        if has_stacks(data, shapes):
            return checkpoint, with_layers_only(data)
        single = single_experts(checkpoint, data, ADAPTER, shapes)
        if single is not None:
            return operate([checkpoint], single.operations)[0].checkpoint, single.config
    return checkpoint, data


def _with_stacks(
    factors: Sequence[Factors], checkpoint: Checkpoint, data: Mapping[str, Any], base: Checkpoint
) -> list[Factors]:
    """Return ``factors`` with one module for each stack of experts that the base stores (``experts.down_proj``)."""
    shapes = _shapes(base)
    if not has_stacks(data, shapes):
        return list(factors)
    try:
        settings = parse_config(with_layers_only(data), ADAPTER)
        stacks = [*expert_stacks(checkpoint, data, settings, ADAPTER)]
    except CheckpointError:  # other checks report factors that do not fit each other
        return list(factors)
    modules = {f"{stack.module}.{stack.parameter}": stack for stack in stacks}
    names = match_modules([("", module, False) for module in modules], list(shapes))
    of_stacks = [
        Factors(
            module, stack.a, stack.b, checkpoint[stack.a].shape, checkpoint[stack.b].shape,
            base=shapes.get(names.weights.get(("", module), ""), ()), experts=stack.experts,
        )
        for module, stack in modules.items()
    ]  # fmt: skip
    experts = {stack.module for stack in stacks}
    return [*(one for one in factors if one.module not in experts), *of_stacks]


def _of_stack(stack: Factors, singles: Sequence[Factors]) -> Factors:
    """Return ``stack`` with its field ``base`` set if the base stores a separate weight for each of these experts.

    ``stack`` are the factors of stacked experts, and ``singles`` the factors of all single experts. The field ``base``
    is the shape of the adapted weights in the base. It is set only if the factors of all these single experts have the
    shapes of the base's weights.
    """
    names = (f"{stack.module}.", f"{stack.module.replace('.mlp.experts', MIXTRAL)}.")
    own = [one for one in singles if one.module.startswith(names)]
    if stack.base or not own or not all(one.base == _shape(one) for one in own):
        return stack
    return replace(stack, base=_shape(stack))


def _shape(one: Factors) -> tuple[int, ...]:
    return (*one.b_shape[:1], *one.a_shape[1:])


def factors_of(checkpoint: Checkpoint) -> list[Factors]:
    """Return the factors A and B of each module of an adapter, in the order of the adapter's tensors."""
    found: dict[str, Factors] = {}
    for key, info in checkpoint.items():
        part = peft_key_parts(key)
        if part is None or part.part not in ("A", "B"):
            continue
        one = found.get(part.module, Factors(part.module, is_embedding=part.embedding))
        named = {"a": key, "a_shape": info.shape} if part.part == "A" else {"b": key, "b_shape": info.shape}
        found[part.module] = replace(one, **named)  # type: ignore[arg-type]
    return list(found.values())


def _with_base(factors: Sequence[Factors], base: Checkpoint) -> list[Factors]:
    shapes = dict(_shapes(base))
    # A tied output layer is a module, too, although its weight is stored as the embedding.
    tied = tied_head(model_folder(base), base) if base.folder is not None else {}
    shapes |= {key: shapes[owner] for key, owner in tied.items() if owner in shapes}
    names = match_modules([("", one.module, False) for one in factors], list(shapes))
    keys = {module: key for (_, module), key in names.weights.items()}
    return [replace(one, base=shapes.get(keys.get(one.module, ""), ())) for one in factors]


def _shapes(base: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Return {name of a base's weight: shape}; for quantised weights, name and shape of the decoded weight.

    ``lora merge`` looks weights up by these names. If a weight cannot be decoded, and the headers contain only the
    number of its parameters (bitsandbytes), its shape is (number,).
    """
    read = read_as(base, KEEP)
    coded = logical_shapes(with_stated_shapes(read, read.codes))
    return {**{key: info.shape for key, info in read.items() if key not in read.codes.by_key}, **coded}


def _matches(targets: object, modules: Sequence[str]) -> dict[str, int]:
    """Return {entry of ``target_modules``: number of modules that it matches}, by the rules of PEFT.

    If ``targets`` is a string, it is one regular expression. If it is a list, it has names of modules, or the last
    parts of their names.
    """
    if isinstance(targets, str):
        pattern = bounded(targets) if targets != ALL else None
        return {targets: sum(_is_match(pattern, one) for one in modules)} if pattern is not None else {}
    names = [one for one in targets if isinstance(one, str)] if isinstance(targets, list) else []
    wanted = {*names}
    found = Counter(end for one in modules for end in _ends(one) if end in wanted)
    return {name: found[name] for name in names}


def _unnamed(names: Mapping[str, int], modules: Sequence[str]) -> int:
    """Return the number of modules that no entry of ``target_modules`` matches; 0 if there are no entries.

    ``names`` maps each entry to the number of modules that it matches.
    """
    return sum(names.keys().isdisjoint(_ends(one)) for one in modules) if names else 0


def _ends(module: str) -> Iterator[str]:
    """Yield the name of a module, and its last parts: ``a.b.c``, ``b.c``, ``c``."""
    while module:
        yield module
        module = module.partition(".")[2]


def _is_match(pattern: re.Pattern[str], module: str) -> bool:
    return len(module) <= MODULE and pattern.fullmatch(module) is not None
