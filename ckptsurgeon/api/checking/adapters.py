"""Facts on a PEFT adapter: the factors of each module, what its configuration selects, and the weights of its base."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...analysis.check.subject import AdapterFacts, Factors
from ...checkpoint.checkpoint import Checkpoint
from ...methods.lora.matching import match_modules
from ...methods.lora.names import peft_key_parts
from ...methods.lora.targets import ALL, MODULE, bounded
from ..model_folder.folder import ModelFolder

__all__ = ["adapter_facts"]

LORA = "LORA"


def adapter_facts(checkpoint: Checkpoint, folder: ModelFolder, base: Checkpoint | None) -> AdapterFacts | None:
    """Return the facts of the LoRA adapter that a checkpoint is, compared with a base if one is given; else None."""
    data = folder.adapter
    if data.get("peft_type") != LORA:
        return None
    found = factors_of(checkpoint)
    if base is not None:
        found = _with_base(found, base)
    modules = [one.module for one in found]
    chosen = data.get("layers_to_transform")
    return AdapterFacts(
        tuple(found),
        _matches(data.get("target_modules"), modules),
        is_chosen=chosen is not None and chosen != [],
        has_base=base is not None,
    )


def factors_of(checkpoint: Checkpoint) -> list[Factors]:
    """Return the factors of each module of an adapter, in the order of its tensors."""
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
    shapes = _shapes(base)
    names = match_modules([("", one.module, False) for one in factors], list(shapes))
    keys = {module: key for (_, module), key in names.weights.items()}
    return [replace(one, base=shapes.get(keys.get(one.module, ""), ())) for one in factors]


def _shapes(base: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a base's weights; of quantised ones, those that the codes stand for."""
    coded = {one.name: one.shape for one in base.codes.tensors if one.shape is not None}
    parts = {key for one in base.codes.tensors for key in one.keys}
    return {**{key: info.shape for key, info in base.items() if key not in parts}, **coded}


def _matches(targets: object, modules: Sequence[str]) -> dict[str, int]:
    """Return how many modules each entry of ``target_modules`` matches, as PEFT matches them."""
    if isinstance(targets, str):
        pattern = bounded(targets) if targets != ALL else None
        return {targets: sum(_is_match(pattern, one) for one in modules)} if pattern is not None else {}
    names = [one for one in targets if isinstance(one, str)] if isinstance(targets, list) else []
    wanted = {*names}
    found = Counter(end for one in modules for end in _ends(one) if end in wanted)
    return {name: found[name] for name in names}


def _ends(module: str) -> Iterator[str]:
    """Yield the name of a module, and the rest of it after each dot."""
    while module:
        yield module
        module = module.partition(".")[2]


def _is_match(pattern: re.Pattern[str], module: str) -> bool:
    return len(module) <= MODULE and pattern.fullmatch(module) is not None
