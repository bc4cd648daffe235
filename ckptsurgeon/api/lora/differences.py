"""Finds contradictions between the adapter_config.json and the tensors of an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ...destinations.hf.files import ADAPTER
from ...errors import CheckpointError
from ...methods.lora.adapter import LINEAR
from ...methods.lora.config import AdapterConfig, damage_of, parse_config
from ...methods.lora.reading import read_adapter
from ...planning.merge.layers import layers_of, numbered_lists
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note, as_notes, with_prefix
from ...util.text import count, escape, listing

__all__ = ["differences"]

TOKENS = "trainable_token_indices"
_OF_TOKENS = re.compile(r"\.(?:token_adapter|trainable_tokens)")
"""Matches the keys of the tensors in which PEFT stores new embedding rows for single tokens."""


def differences(tensors: Mapping[str, TensorInfo], data: object) -> tuple[Note, ...]:
    """Return notes on contradictions between an adapter's configuration ``data`` and its tensors.

    If ``lora merge`` does not support this kind of adapter, there are no notes.
    """
    try:
        config = parse_config(data, ADAPTER)
    except CheckpointError:
        damage = damage_of(data, ADAPTER)
        if isinstance(data, dict) and data.get(TOKENS) and not any(_OF_TOKENS.search(key) for key in tensors):
            return (_misfit(f"{TOKENS} selects tokens, but no tensor has rows for them"),)
        said = f"{damage.removesuffix('.')}: lora merge cannot use it"
        return (Note(NoteKind.ADAPTER_SETTING_REFUSED, said),) if damage else ()
    try:
        adapter = read_adapter(tensors, config, "the adapter", lambda key: 1.0)
    except CheckpointError as error:
        return (_misfit(error.message),)
    selected = [one for one in _without_factors([one.name for one in adapter.modules]) if _selects(config, one)]
    selects = f"target_modules selects {count(len(selected), 'module')}"
    lost = f"{selects} without factors, although the same module has factors in most other layers"
    lost = f"{lost}: {listing(selected, 6, where='')}"
    notes = (
        *as_notes(NoteKind.ADAPTER_SETTINGS, (*adapter.notes, *_few(config, [one.name for one in adapter.modules]))),
        *([Note(NoteKind.ADAPTER_MISMATCH, lost)] if selected else []),
    )
    return tuple(with_prefix(f"{ADAPTER}: ", note) for note in notes)


def _misfit(why: str) -> Note:
    return Note(NoteKind.ADAPTER_MISMATCH, f"{ADAPTER} does not fit the tensors: {why}")


def _few(config: AdapterConfig, modules: Sequence[str]) -> Iterator[str]:
    """Yield a note if ``target_modules`` is "all-linear", but all modules with factors have the same name (``q_proj``).

    A model with such a module has other linear layers, too, so factors are probably missing.
    """
    kinds = {f".{one}".rpartition(".")[2] for one in modules}
    if config.linear is not None and len(kinds) == 1 and all(LINEAR.search(f".{one}") for one in modules):
        having = f"only modules named {escape(kinds.pop())} have factors ({listing(modules, 6, where='')})"
        yield f"target_modules is all-linear, but {having}: factors of other modules are probably missing"


def _selects(config: AdapterConfig, module: str) -> bool:
    return config.targets is not None and config.targets.has(module)


def _without_factors(modules: Sequence[str]) -> Iterator[str]:
    """Yield the modules without factors, if the modules of the same name in most other layers have factors.

    ``modules`` are the modules with factors. A module is yielded only if another module in the same parent module
    (``self_attn``) has factors. If the last layer lacks the factors too, the module is not yielded for any layer: the
    last layers of some models share keys and values with earlier layers.
    """
    for stack in numbered_lists(modules):
        layers = {number: set(rests) for number, rests in layers_of(stack, modules).items()}
        for rest in dict.fromkeys(rest for rests in layers.values() for rest in rests if "." in rest):
            around = f"{rest.rpartition('.')[0]}."
            alike = [number for number, rests in layers.items() if any(one.startswith(around) for one in rests)]
            lost = [number for number in alike if rest not in layers[number]]
            if lost and 2 * len(lost) < len(alike) and max(lost) != max(alike):
                yield from (stack.key(number, rest) for number in lost)
