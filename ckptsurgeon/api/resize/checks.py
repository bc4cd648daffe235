"""Checks for changes of the size after which all weights fit, but the network computes something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from ...errors import ConfigError, PlanError
from ...planning.resizing.axes import Axis
from ...planning.resizing.depth import Layer
from ...planning.resizing.fields import EXPERT_GROUPS, USED_EXPERTS, role_of
from ...util.text import brief_repr, count, escape, listing
from .arguments import at_path

__all__ = [
    "USED_GROUPS",
    "check_experts",
    "check_head_sizes",
    "check_heads",
    "check_identity",
    "check_switch",
    "check_ties",
    "check_used",
    "check_values",
    "has_heads_in_pairs",
    "heads_of_one_size",
    "keys_by_switch",
    "layers_apart",
    "numbers_apart",
    "scales_output",
    "stays_tied",
]

Constants = Mapping[str, object]
"""{path of a module and name of an attribute: value}, for values that are not weights, such as a scale."""
_LATENT = "kv_lora_rank"
"""A field of networks that compute the keys and values of all heads from one latent vector.

In these networks, each head has its own keys.
"""
_RELATIVE, _SCALED_IF_TIED = ("relative_attention_num_buckets", "d_kv"), "scale_decoder_outputs"
_SCALED_TYPES = ("umt5", "switch_transformers", "udop")
_SIZES_OF_HEADS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim")
_OTHER_SUMS = ("alpha_factor", "zero_expert_num")
"""Endings of names of fields; in networks with such a field, layers do more than add their result to their input."""
USED_GROUPS = "topk_group"
"""The field with the number of groups of experts that each token uses."""
_FIT = "Change one of these two fields with --set."
_OF_LARGEST = ("greedy", "group_limited_greedy")
"""Values of ``topk_method`` (DeepSeek-V2) that allow groups of one expert: a group's score is its largest score.

All other routers of transformers that have groups take the sum of the two largest scores in each group.
"""
_HEADS = ("heads", "kv_heads")
_MATRICES = ("linear", "transposed linear", "conv")
_COUNTS_LAYERS = "scale_attn_by_inverse_layer_idx"
_SAME = ("initializ", "std", "drop", "layerdrop")
"""Parts of the names of values that are only used in training."""


def check_values(asked: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise ConfigError if the configuration class changes a value that the user set (``asked``).

    ``fields`` are the fields of the configuration that the class made.
    """
    for name, value in asked.items():
        if at_path(fields, name) != value and at_path(fields, name) is not None:
            raise ConfigError(
                f"--set {escape(name)}={brief_repr(value)} is not possible: the configuration class of the model "
                f"changes this value to {brief_repr(at_path(fields, name))}.",
                hint="Leave this --set out.",
            )


def check_experts(asked: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise ConfigError if changed numbers of experts do not fit together, so that the network could not run.

    ``asked`` has the changed fields, and ``fields`` are all fields of the output.
    """
    for inside in {name.rpartition(".")[0] for name in asked}:
        part = at_path(fields, inside) if inside else fields
        numbers = {name: one for name, one in part.items() if type(one) is int and one > 0} if part else {}
        changed = {name.rpartition(".")[2] for name in asked if name.rpartition(".")[0] == inside}
        every = next((name for name in numbers if role_of(name) == "experts"), "")
        groups = next((one for one in EXPERT_GROUPS if one in numbers), EXPERT_GROUPS[0])
        for used in (*USED_EXPERTS, groups) if every else ():
            if used in changed and type(part.get(used)) is int and part[used] < 1:
                raise ConfigError(f"--set {used}={part[used]} is not a whole number above 0.")
            if used not in numbers or not changed & {used, every}:
                continue
            if numbers[used] > numbers[every]:
                raise ConfigError(
                    f"{used} {numbers[used]} is more than the {numbers[every]} experts ({every}).", hint=_FIT
                )
            if used == groups and numbers[every] % numbers[used]:
                raise ConfigError(f"{every} {numbers[every]} is not a multiple of {used} {numbers[used]}.", hint=_FIT)
        if changed & {groups, USED_GROUPS} and numbers.get(USED_GROUPS, 0) > numbers.get(groups, 1):
            raise ConfigError(
                f"{USED_GROUPS} {numbers[USED_GROUPS]} is more than {groups} {numbers.get(groups, 1)}.",
                hint=_FIT,
            )
        if every and groups in numbers:
            _check_group_size(
                numbers, changed, (every, groups), least=1 if part.get("topk_method") in _OF_LARGEST else 2
            )


def _check_group_size(numbers: Mapping[str, int], changed: Set[str], names: tuple[str, str], *, least: int) -> None:
    """Raise ConfigError if the groups into which routers divide the experts are too small.

    Groups are too small if each has fewer than ``least`` experts, or if the groups that a token uses have, together,
    fewer experts than the token uses.

    ``numbers`` has the fields, ``changed`` are those that change, and ``names`` are those with the numbers of experts
    and of groups. ``least`` is the smallest possible number of experts in a group.
    """
    every, groups = names
    size = numbers[every] // numbers[groups]
    if changed & {every, groups} and size < least:
        raise ConfigError(
            f"{every} is {numbers[every]} and {groups} is {numbers[groups]}, so each group has one expert. The router "
            "needs two: it adds the two largest scores of each group.",
            hint=_FIT,
        )
    most = numbers.get(USED_GROUPS, numbers[groups]) * size
    for used in USED_EXPERTS:
        if numbers.get(used, 0) > most and changed & {every, used, groups, USED_GROUPS}:
            raise ConfigError(
                f"{used} {numbers[used]} is more than the {count(most, 'expert')} of the groups that each token uses "
                f"({USED_GROUPS} {numbers.get(USED_GROUPS, numbers[groups])}, {count(size, 'expert')} in each).",
                hint=f"Set a smaller {used} or a larger {USED_GROUPS} with --set.",
            )


def check_ties(name: str, before: Mapping[str, Any], *, is_untied: bool) -> None:
    """Raise ConfigError if untying the output layer (``is_untied``) would change what the network computes.

    T5 and similar networks multiply the last hidden states by a number if the output layer is tied. ``name`` is the
    field that unties it, and ``before`` are the fields of the source.
    """
    if is_untied and stays_tied(before) and _SCALED_IF_TIED not in before:
        raise ConfigError(
            f"--set {name}=false cannot be used: it would change the outputs, because this network scales the inputs "
            "of its output layer only if the layer is tied.",
            hint="Leave this field out; with --new-width init, the width can grow without it.",
        )


def stays_tied(before: Mapping[str, Any]) -> bool:
    """Return whether untying the output layer of a network would change its outputs, as in T5."""
    return all(one in before for one in _RELATIVE)


def scales_output(before: Mapping[str, Any]) -> bool:
    """Return whether a network divides the inputs of its output layer by the square root of the width, as T5 does."""
    tied = before.get("model_type") in _SCALED_TYPES and before.get("tie_word_embeddings") is True
    return before.get(_SCALED_IF_TIED) is True or tied


def check_head_sizes(field: str, before: Constants, after: Constants) -> None:
    """Raise PlanError if a change of the width changes the size of each head.

    ``field`` is the field with the width. ``before`` and ``after`` map the names of values in the modules of the two
    networks to these values.
    """
    for name, size in before.items():
        other = after.get(name, size)
        if other != size and name.rpartition(".")[2] in _SIZES_OF_HEADS:
            raise PlanError(
                f"{field}: the size of each head would change ({escape(name)} would be {other} instead of {size}).",
                hint="Leave this --set out: this network computes the size of a head from its width.",
            )


def keys_by_switch(part: Mapping[str, Any]) -> bool:
    """Return whether the field ``multi_query`` decides whether all heads share one key head, as in Falcon-7B.

    In such a network, each head has its own key head if ``multi_query`` is false. The field with the number of key
    heads has no effect on tensors, but must agree with ``multi_query``. ``part`` has the fields of the configuration,
    or of one of its sections.
    """
    return type(part.get("multi_query")) is bool and not part.get("new_decoder_architecture")


def check_switch(names: Sequence[str], changed: Sequence[str]) -> None:
    """Raise PlanError if ``multi_query`` is one of the fields ``names``, which are to be changed.

    ``multi_query`` decides whether all attention heads share one key head, so it is not a size that ``resize`` can
    change. ``changed`` are the tensors whose shapes depend on the field, for the message.
    """
    switch = next((name for name in names if name.rpartition(".")[2] == "multi_query"), None)
    if switch is not None:
        raise PlanError(
            f"{switch} cannot be changed: it decides how queries, keys and values share the rows of "
            f"{listing(changed)}, and whether all heads have the same key.",
            hint="Split the tensors with --operations of ckpt transplant, repeat or average the keys and values, and "
            "join them for a config.json with the new value.",
        )


def check_heads(part: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ConfigError if the numbers of query and key heads do not fit.

    ``part`` has all fields, and ``new`` has {field: new value}.
    """
    names = {role: [one for one in part if role_of(one) == role and type(part[one]) is int] for role in _HEADS}
    if not (names["heads"] and names["kv_heads"]) or keys_by_switch(part):
        return
    heads, keys = names["heads"][0], names["kv_heads"][0]
    if heads not in new and keys not in new:
        return
    numbers = [new.get(one, part[one]) for one in (heads, keys)]
    wanted = new.get(heads, new.get(keys))
    if _LATENT in part and part[heads] == part[keys] and numbers[0] != numbers[1]:
        raise ConfigError(
            f"{heads} and {keys} have to stay equal: all heads compute their keys from the same latent vector.",
            hint=f"Set both: --set {heads}={wanted} --set {keys}={wanted}.",
        )
    if numbers[0] % numbers[1]:
        raise ConfigError(
            f"{heads} {numbers[0]} is not a multiple of {keys} {numbers[1]}, so query heads cannot share key heads "
            "evenly.",
            hint=f"Choose a divisor of {numbers[0]} for {keys}.",
        )


def heads_of_one_size(name: str, numbers: tuple[int, int], axes: Iterable[Axis], width: str) -> PlanError | None:
    """Return an error if a new number of heads would divide the same weights into heads of another size; else None.

    This happens if no field has the size of a head. ``name`` is the field with the number of heads, ``numbers`` are its
    old and its new value, and ``width`` is the field with the width. ``axes`` are the axes that change.
    """
    weights = [axis for axis in axes if axis.kind in _MATRICES]
    ratios = {axis.after * numbers[0] == axis.before * numbers[1] for axis in weights}
    if ratios == {True} and {axis.side for axis in weights} == {"out", "in"}:
        return None
    more, less = numbers[1] > numbers[0], numbers[1] < numbers[0]
    wider = f"Add --set {width}=N, a width that grows by the same factor."
    others = (
        "To make the model smaller, remove feed-forward channels or layers, or key heads if there is a field for their "
        "number."
    )
    return PlanError(
        f"{name} {numbers[0]} to {numbers[1]}: this network has no field for the size of a head (it is {width} "
        f"divided by {name}), so the same weights would be divided into "
        f"{'more and smaller' if more else 'fewer, larger'} heads, and the outputs would change.",
        hint=wider if more else others if less else "",
    )


def has_heads_in_pairs(values: Constants) -> bool:
    """Return whether the network subtracts heads in pairs, as DiffLlama does: one head minus lambda times the other."""
    return any(name.endswith(".lambda_init") for name in values)


def check_used(role: str, field: str, axes: Sequence[Axis]) -> None:
    """Raise PlanError if the size of all heads' outputs differs from the input size of the layer after the heads.

    Helium has ``head_dim``, but the layer after its heads has the size of the width. ``role`` and ``field`` are the
    role and the name of the field that changes, and ``axes`` the axes whose sizes change with it.
    """
    modules: dict[str, list[Axis]] = {}
    for axis in axes:
        if axis.kind in _MATRICES and not axis.key.endswith("bias"):
            modules.setdefault(axis.key.rpartition(".")[0].rpartition(".")[0], []).append(axis)
    is_used = any(axis.side == "in" for own in modules.values() for axis in own)
    for path, own in modules.items():
        names = {axis.key for axis in own}
        made = {axis.key for axis in own if axis.side == "out"}
        used = {axis.key for axis in own if axis.side == "in"}
        if role == "heads" and not is_used:
            last = listing(sorted(made))
        elif role == "width" and len(names) > 2 and len(made) == 1 and made <= used:
            last = next(iter(made))
        else:
            continue
        raise PlanError(
            f"{field}: the layers of {escape(path)} would not fit together, because of the shape of {last}.",
            hint="In this network, the number of heads times the size of a head must be the width: do not change the "
            "width or the number of heads.",
        )


def check_identity(before: Mapping[str, Any]) -> None:
    """Raise PlanError if new layers cannot pass their input on unchanged in this network."""
    found = [name for name in before if name.endswith(_OTHER_SUMS) or (name == _COUNTS_LAYERS and before[name])]
    if found:
        raise PlanError(
            f"with {listing(found, where='')}, layers of this network always change their input, so no layers can be "
            "added that pass their input on unchanged.",
            hint="Repeat layers instead: --layers repeat, or a list of layers.",
        )


def numbers_apart(before: Constants, after: Constants, but: Iterable[str] = ()) -> list[str]:
    """Return the names of numbers in modules, such as a scale, that differ between two sizes of a network.

    ``before`` and ``after`` map these names to the numbers. ``but`` are paths of modules that are not compared.
    """
    known = set(but)
    return [
        name
        for name, value in after.items()
        if isinstance(value, (float, tuple))
        and name in before
        and before[name] != value
        and name.rpartition(".")[0] not in known
        and not any(part in name.rpartition(".")[2] for part in _SAME)
    ]


def layers_apart(before: Constants, after: Constants, paths: Sequence[str], layers: Sequence[Layer]) -> list[str]:
    """Return the names of numbers that differ between a new layer and the layer whose weights it gets.

    ``before`` and ``after`` map names to the numbers in the modules of the old and of the new network. ``paths`` are
    the paths of the lists of layers, and ``layers`` has, for each new layer, the layer from which it is made. Layers
    that only pass their input on are not compared.
    """
    found = []
    for path in paths:
        for number, layer in enumerate(layers):
            own, theirs = f"{path}.{number}.", f"{path}.{layer.source}."
            for name, value in after.items():
                if layer.is_identity or not name.startswith(own):
                    continue
                old = before.get(theirs + name[len(own) :])
                if old != value and (old, value) != (layer.source, number) and not _is_number_of_layer(name):
                    found.append(name)
    return found


def _is_number_of_layer(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.endswith(("idx", "index", "layer_id", "layer_number")) or any(part in last for part in _SAME)
