"""Aligns models with a reference: finds the axes that may be permuted, matches weights, and permutes the axes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.resizable import Resizable
from ...engine.apply_settings import MEMORY
from ...errors import ConfigError, PlanError
from ...planning.aligning.groups import RESIDUAL, Group, taking
from ...planning.aligning.stored import StoredTensors
from ...storage.read.uri import shown
from ...util.text import brief_repr, count, escape, listing
from ..inputs.encoding import DEQUANTIZE
from ..inputs.operations import operate
from .aligned_models import AlignedModels
from .network_groups import NetworkGroups
from .own_groups import own_groups
from .rebuilt_network import sizes_of

__all__ = ["align"]

TESTED = (
    "llama", "qwen3", "mixtral", "bert", "gpt2", "t5", "vit", "whisper", "gemma3_text", "mistral", "qwen2", "qwen2_moe",
    "qwen3_moe", "phi3", "gpt_oss", "deepseek_v3", "gpt_neox", "helium", "gemma2", "granitemoeshared", "minimax",
    "hunyuan_v1_moe", "bart", "xglm", "mpnet", "wav2vec2", "clip",
)  # fmt: skip
"""The types of models whose outputs the tests compare before and after an alignment."""
CONFIG = "config.json"
PAPER = "Git Re-Basin, arXiv 2209.04836"
FEW = 24
"""The largest number of changed groups that get one note each. If more groups change, each kind gets one note."""


def align(
    opened: Sequence[Checkpoint],
    reference: int,
    *,
    groups: Mapping[str, Any] | None = None,
    memory: int = 0,
) -> AlignedModels:
    """Permute the axes of each model so that its weights match those of the model at index ``reference``.

    Returns all models, and the notes on the changes. The weights of all models are read. ``groups`` are the groups of
    axes that the user lists, as ``group_fields`` returns them. If this is None, the groups are found from the network
    that the reference's config.json describes. ``memory`` is the largest number of bytes that matching may use; 0 is
    the default limit.

    Raises ConfigError if the network is not known, PlanError if the shapes of the models differ or weights are NaN.
    """
    from ...engine.matching.matching import match

    found = AlignedModels(list(opened))
    network = _network(opened[reference]) if groups is None else None
    for index, one in enumerate(opened):
        if index == reference or (one.path == opened[reference].path and not one.in_memory):
            continue
        if network is not None:
            _check_network(network, one, opened[reference])
        own, left = _groups(network, groups, one)
        _check_shapes(opened[reference], one, own)
        results = match(opened[reference], one, own, memory or MEMORY)
        orders = {number: (each.order, each.shared) for number, each in enumerate(results)}
        rows = taking(own, orders, one, one.ties)
        if rows:
            decode = [DEQUANTIZE] if one.stored is not None else []
            found.operations[index] = [*decode, *rows]
            found.checkpoints[index] = operate([one.stored or one], found.operations[index])[0].checkpoint
        found.notes += _notes(one, opened[reference], results)
        found.notes += (f"{_name(one)}: {each}" for each in left)
    if len(opened) == 1:
        found.notes.append("--align changes nothing: there is only one model")
    if network is not None and network.model_type not in TESTED:
        found.notes.append(
            f"aligning models of the type {escape(network.model_type)} was not tested in ckptsurgeon: compare the "
            "model before and after with ckpt prove"
        )
    return found


def _name(checkpoint: Checkpoint) -> str:
    """Return the path of a checkpoint for messages; passwords and tokens in a URL are hidden."""
    return escape(shown(checkpoint.path))


def _config_of(checkpoint: Checkpoint) -> str:
    """Return the path of the config.json in the folder of a checkpoint; "" if there is none."""
    path = checkpoint.path
    if checkpoint.in_memory or "://" in path:
        return ""
    found = os.path.join(path if os.path.isdir(path) else os.path.dirname(path), CONFIG)
    return found if os.path.isfile(found) else ""


def _check_network(network: NetworkGroups, model: Checkpoint, reference: Checkpoint) -> None:
    """Raise PlanError if the config.json of ``model`` states another size or model type than that of the reference.

    Such a size may differ although all shapes are equal: for example, the number of heads. The numbers of layers and
    tokens are not compared here. If ``model`` has no config.json, nothing is compared. ``network`` is the network of
    the reference.
    """
    config = _config_of(model)
    if not config:
        return
    ours, theirs = network.sizes, sizes_of(Resizable(config, dequantized=True).fields())
    apart = next((name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)), "")
    if apart:
        raise PlanError(
            f"{_name(model)} cannot be aligned with {_name(reference)}: its {escape(apart)} is "
            f"{brief_repr(theirs.get(apart))}, not {brief_repr(ours.get(apart))}.",
            hint="Only models of the same sizes can be aligned.",
        )


def _network(reference: Checkpoint) -> NetworkGroups:
    """Return the network that the config.json of a checkpoint describes; raises ConfigError if it is not known.

    The groups of axes that may be permuted are found from this network.
    """
    hint = "List the axes that change together: --align-groups FILE.yaml."
    config = _config_of(reference)
    if not config:
        where = (
            f"{_name(reference)} is in memory"
            if reference.in_memory
            else f"there is no {CONFIG} in the folder of {_name(reference)}"
        )
        raise ConfigError(f"{where}, so it is not known which of its axes may be permuted.", hint=hint)
    try:
        return NetworkGroups(Resizable(config, dequantized=reference.stored is not None))
    except ConfigError as error:
        raise ConfigError(
            f"it is not known which axes of {_name(reference)} may be permuted: {error.message.rstrip('.')}.", hint=hint
        ) from error


def _groups(
    network: NetworkGroups | None, groups: Mapping[str, Any] | None, model: Checkpoint
) -> tuple[list[Group], list[str]]:
    """Return the groups of axes of a model that may be permuted, and the reasons why other axes may not be permuted.

    ``groups`` are the groups that the user lists. If ``network`` is given, its groups are used instead; raises
    PlanError if none of them is found in the model.
    """
    if network is None:
        return own_groups(groups or {}, model, model.path), []
    made, names, known = dict(model), {key: key for key in model}, network.first.recognise
    if known is not None:
        layout = known(model)
        made = dict(operate([model], layout.operations)[0].checkpoint) if layout.operations else made
        names = {**{key: key for key in made}, **layout.names}
    stored = StoredTensors(model, made, names, network.first.ties)
    found, lost = [], dict[str, list[tuple[str, str]]]()
    for one in network.found:
        try:
            found.append(stored.group(one))
        except PlanError as error:
            lost.setdefault(one.kind, []).append((escape(one.name), error.message.rstrip(".")))
    left = [
        f"{'the dimensions of the ' if kind == RESIDUAL else ''}{kind}{_of([name for name, _ in each])} keep their "
        f"order: {each[0][1]}"
        for kind, each in lost.items()
    ]
    if not found:
        why = next(iter([*left, *network.left]), f"its keys are not those of the network that {CONFIG} describes")
        raise PlanError(
            f"it is not known which axes of {_name(model)} may be permuted: {why}.",
            hint="List the axes in a file: --align-groups FILE.yaml.",
            details=[*network.left, *left],
        )
    loose = [key for key in made if network.first.ties.get(names.get(key, key), names.get(key, key))
             not in network.first.tensors]  # fmt: skip
    if loose:
        left.append(
            f"these tensors are not part of the network that {CONFIG} describes, so they keep their order: "
            f"{listing(loose)}"
        )
    return found, [*network.left, *left]


def _of(names: Sequence[str]) -> str:
    return f" of {listing(names, 3, where='')}" if any(names) else ""


def _check_shapes(reference: Checkpoint, model: Checkpoint, groups: Sequence[Group]) -> None:
    """Raise PlanError if an axis in ``groups`` has different sizes in ``reference`` and ``model``."""
    for group in groups:
        for part in group.parts:
            for key in part.keys:
                other = reference.get(key)
                if other is None or other.shape == model[key].shape:
                    continue
                if len(other.shape) != len(model[key].shape) or other.shape[part.dim] != model[key].shape[part.dim]:
                    raise PlanError(
                        f"{_name(model)} cannot be aligned with {_name(reference)}: the shapes of {escape(key)} "
                        "differ.",
                        hint="Only models of the same sizes can be aligned.",
                    )


def _notes(model: Checkpoint, reference: Checkpoint, results: Sequence[Any]) -> Iterator[str]:
    """Yield notes on the groups of axes of ``model`` that were reordered, or one note if none was.

    ``results`` has the result of matching for each group.
    """
    moved = [one for one in results if one.moved]
    name, other = _name(model), _name(reference)
    if not moved:
        yield (
            f"{name} is already aligned with {other} ({PAPER}): the order of all {count(len(results), 'group')} of "
            "axes stays the same"
        )
        return
    yield (
        f"{name} is aligned with {other} ({PAPER}): the order changed in {len(moved)} of "
        f"{count(len(results), 'group')} of axes"
    )
    for kind in dict.fromkeys(one.group.kind for one in moved):
        own = [one for one in moved if one.group.kind == kind]
        if len(moved) <= FEW:
            for one in own:
                number = one.group.units * one.group.sharing
                said = f"{one.moved} of {number} moved, similarity {one.before:.3f} before and {one.after:.3f} after"
                yield f"{name}: {one.group}: {said}"
            continue
        numbers = sum(one.group.units * one.group.sharing for one in own)
        before, after = [one.before for one in own], [one.after for one in own]
        yield (
            f"{name}: {kind} of {count(len(own), 'group')}: {sum(one.moved for one in own)} of {numbers} moved, "
            f"similarity {min(before):.3f}..{max(before):.3f} before and {min(after):.3f}..{max(after):.3f} after"
        )
