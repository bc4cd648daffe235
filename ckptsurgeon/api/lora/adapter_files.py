"""Reads the files of PEFT adapters, compares their scales, and reads the architecture in a base's config.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from ...analysis.inspection import AdapterSettings, adapter_settings
from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, ADAPTER_WEIGHTS, CONFIG
from ...errors import CheckpointError, FormatError, PlanError, SourceError
from ...methods.lora.config import AdapterConfig, damage_of, parse_config
from ...methods.lora.conv1d import KnownModel, known_model
from ...methods.lora.names import peft_key_parts
from ...planning.merge.layers import layers_of, numbered_lists
from ...planning.plan.plan import Plan
from ...storage.json_text import read_json
from ...storage.read._descriptors import leads_out
from ...storage.read.base import File, Folder
from ...storage.read.uri import scheme_of
from ...storage.small_files import SMALL_BYTES, read_file
from ...util.text import count, escape, listing
from ..model_folder.folder import ModelFolder

__all__ = [
    "BYTES",
    "adapter_of",
    "configuration_of",
    "has_configuration",
    "model_at",
    "other_base_notes",
    "other_scales",
    "with_scales_checked",
]

TOKENS = "trainable_token_indices"
_OF_TOKENS = re.compile(r"\.(?:token_adapter|trainable_tokens)")
"""Matches the keys of the changes of single tokens; an output layer that is tied to the embedding has none."""

# The files of a PEFT adapter: its weights, and the configuration in the same folder.

BYTES = 16 << 20
"""The largest adapter_config.json that is read, in bytes."""


def has_configuration(weights: File) -> bool:
    """Return whether ``weights`` has PEFT's file name, and adapter_config.json is in its folder.

    A folder at a URL cannot be listed: then it is assumed that adapter_config.json exists.
    """
    if weights.name not in ADAPTER_WEIGHTS:
        return False
    return scheme_of(weights.uri) in ("http", "https") or ADAPTER in weights.folder().names()


def configuration_of(folder: Folder) -> File:
    """Return the adapter_config.json of a folder; raises SourceError if it is missing, or a link out of the folder."""
    path = os.path.join(folder.uri, ADAPTER)
    if leads_out(path):
        raise SourceError(
            f"{escape(path)} is a link to outside of its folder, which is not followed.",
            hint="Copy it into the folder.",
        )
    return folder.file(ADAPTER)


def adapter_of(checkpoint: Checkpoint) -> tuple[AdapterSettings | None, tuple[str, ...]]:
    """Return the settings (rank, alpha, modules) of the adapter in a checkpoint, and notes on them.

    The settings are None if the checkpoint is not an adapter, or if they cannot be read.
    """
    weights = next((file for file in checkpoint.open_files().values() if file.name in ADAPTER_WEIGHTS), None)
    try:
        if weights is None or not has_configuration(weights):
            return None, ()
        data = _read(configuration_of(weights.folder()))
        settings = adapter_settings(data)
        if settings is None:
            return None, (f"{ADAPTER} cannot be used: it has no peft_type",)
        return settings, _differences(checkpoint, data)
    except (ValueError, SourceError, FormatError) as error:
        return None, (f"{ADAPTER} cannot be used: {error}",)


def other_base_notes(base: Checkpoint, *adapters: Checkpoint) -> Iterator[str]:
    """Yield a note on each adapter whose adapter_config.json gives another base.

    Only the last part of ``base_model_name_or_path`` is compared with the name of the base's folder.
    """
    own = os.path.basename(os.path.normpath(base.folder.uri)) if base.folder is not None else ""
    for adapter in adapters:
        settings, _ = adapter_of(adapter)
        name = settings.base_model or "" if settings is not None else ""
        if own and name and os.path.basename(name.rstrip("/")).lower() != own.lower():
            said = f"the base of {escape(adapter.path)} is {escape(name)} (base_model_name_or_path)"
            yield f"{said}, not {escape(own)}"


def _differences(checkpoint: Checkpoint, data: object) -> tuple[str, ...]:
    """Return notes on contradictions between an adapter's configuration ``data`` and its tensors.

    If ``lora merge`` does not support this kind of adapter, there are no notes.
    """
    from ...methods.lora.adapter import read_adapter

    try:
        config = parse_config(data, ADAPTER)
    except CheckpointError:
        damage = damage_of(data, ADAPTER)
        if isinstance(data, dict) and data.get(TOKENS) and not any(_OF_TOKENS.search(key) for key in checkpoint):
            return (f"{ADAPTER} does not fit the tensors: {TOKENS} selects tokens, but no tensor has their changes",)
        return (f"{damage.removesuffix('.')}: lora merge cannot use it",) if damage else ()
    try:
        adapter = read_adapter(checkpoint, config, checkpoint.path, lambda key: 1.0)
    except CheckpointError as error:
        return (f"{ADAPTER} does not fit the tensors: {error.message}",)
    selected = [one for one in _without_factors([one.name for one in adapter.modules]) if _selects(config, one)]
    lost = f"target_modules selects {count(len(selected), 'module')} without factors, although other layers have them"
    notes = (*adapter.notes, *([f"{lost}: {listing(selected, 6, where='')}"] if selected else []))
    return tuple(f"{ADAPTER}: {note}" for note in notes)


def _selects(config: AdapterConfig, module: str) -> bool:
    return config.targets is not None and config.targets.has(module)


def _without_factors(modules: Sequence[str]) -> Iterator[str]:
    """Yield the modules that have no factors, although the same module has factors in most of the other layers.

    ``modules`` are the modules with factors. A layer is reported only if its parent module (``self_attn``) has other
    factors, and not if the last layer lacks them too: the last layers may share keys and values with earlier layers.
    """
    for stack in numbered_lists(modules):
        layers = {number: set(rests) for number, rests in layers_of(stack, modules).items()}
        for rest in dict.fromkeys(rest for rests in layers.values() for rest in rests if "." in rest):
            around = f"{rest.rpartition('.')[0]}."
            alike = [number for number, rests in layers.items() if any(one.startswith(around) for one in rests)]
            lost = [number for number in alike if rest not in layers[number]]
            if lost and 2 * len(lost) < len(alike) and max(lost) != max(alike):
                yield from (stack.key(number, rest) for number in lost)


def _read(file: File) -> object:
    try:
        if file.size > BYTES:
            raise ValueError(f"it is too large: {file.size} bytes")
        return read_json(file.read(0, file.size))
    finally:
        file.close()


# The architecture in the config.json of a base.


def model_at(path: str, checkpoint: Checkpoint) -> KnownModel | None:
    """Return the architecture in the config.json of a base's folder; None if there is none, or it is not a known one.

    ``path`` is the path of the weights; '' for weights in memory, which have no folder.
    """
    if not path:
        return None
    try:
        config = json.loads(_beside(checkpoint) if "://" in path else _here(path))
    except (OSError, ValueError, RecursionError):
        return None
    return known_model(config) if isinstance(config, dict) else None


def _here(path: str) -> bytes:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    path = os.path.join(folder, CONFIG)
    return b"" if leads_out(path) else read_file(path)


def _beside(checkpoint: Checkpoint) -> bytes:
    """Return the bytes of the config.json in a remote checkpoint's folder; b'' if it is not found there."""
    for weights in checkpoint.open_files().values():
        folder = weights.folder()
        if CONFIG not in folder.names():
            return b""
        with closing(folder.file(CONFIG)) as file:
            return file.read(0, min(SMALL_BYTES, file.size))
    return b""


# The scales (lora_alpha / r) in adapter_config.json: factors must not get into a folder with other scales.

SCALES = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out")
"""The fields of adapter_config.json that decide how an adapter's factors are scaled and applied."""


def other_scales(donor: ModelFolder, models: Iterable[ModelFolder]) -> list[str]:
    """Return notes on the adapters in ``models`` whose settings (``SCALES``) differ from those of ``donor``.

    The output gets the adapter_config.json of the donor.
    """
    notes = []
    ours = donor.adapter
    for one in [one for one in models if one.adapter] if ours else ():
        names = [name for name in SCALES if (one.adapter.get(name) or None) != (ours.get(name) or None)]
        if names:
            head = f"{ADAPTER} of {escape(one.path)} and {ADAPTER} of {escape(donor.path)} differ in {listing(names)}"
            notes.append(f"{head}; the output gets the one of {escape(donor.path)}")
    return notes


def with_scales_checked(plan: Plan, folders: Sequence[ModelFolder], number: int) -> Plan:
    """Return the plan of a transplant with notes on source adapters whose scales differ from the destination's.

    ``folders`` are the folders of the ``number`` sources, followed by the folder of the destination if there is one. A
    scale is lora_alpha divided by the rank. Raises PlanError if factors from a source would get another scale.
    """
    donor = folders[-1]
    if len(folders) == number or not donor.adapter:
        return plan
    taken: dict[int, list[str]] = {}
    for step in plan.steps:
        if step.source is not None and step.source < number and step.op != "keep":
            taken.setdefault(step.source, []).append(step.key)
    for source, keys in taken.items():
        _check_scales(folders[source], donor, keys)
    notes = other_scales(donor, [folders[source] for source in sorted(taken)])
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _check_scales(one: ModelFolder, donor: ModelFolder, keys: Iterable[str]) -> None:
    ours, theirs = _config(donor), _config(one)
    if ours is None or theirs is None:
        return
    parts = [part for part in map(peft_key_parts, keys) if part is not None and part.part in ("A", "B")]
    names = dict.fromkeys(part.module for part in parts)
    apart = [name for name in names if ours.scale_of(name) != theirs.scale_of(name)]
    if apart:
        raise PlanError(
            f"the factors of {escape(apart[0])} are scaled by {theirs.scale_of(apart[0]):g} in the {ADAPTER} of "
            f"{escape(one.path)}, but by {ours.scale_of(apart[0]):g} in the {ADAPTER} of {escape(donor.path)}, which "
            "the output gets.",
            hint="Set lora_alpha (alpha_pattern, use_rslora) of the destination to that of the source, and plan again.",
            details=apart,
        )


def _config(folder: ModelFolder) -> AdapterConfig | None:
    """Return the LoRA configuration in a folder; None if it is of another kind, or cannot be read."""
    try:
        return parse_config(folder.adapter, ADAPTER) if folder.adapter else None
    except CheckpointError:
        return None
