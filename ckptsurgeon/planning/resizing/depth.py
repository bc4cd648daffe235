"""Changes the number of layers: repeats, takes or leaves out layers, or adds layers that only pass their input on.

Depth up-scaling repeats layers (SOLAR, https://arxiv.org/abs/2312.15166). Block expansion adds copies whose output
projections are zero, so that each only passes its input on (LLaMA Pro, https://arxiv.org/abs/2401.02415).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ...errors import ConfigError, PlanError
from ...util.text import brief_repr, count, escape, listing, shape_text
from ..keys.spelling import quoted
from .axes import Network, indices_text
from .change import Change

__all__ = [
    "INFLUENTIAL",
    "NORM_AFTER",
    "OUTPUTS",
    "WAYS",
    "Layer",
    "changed_depth",
    "final_keys",
    "has_final_norm",
    "layers_of",
    "lists_of",
]

INFLUENTIAL = "influential"
"""The value of ``--layers`` that keeps the layers that change their input most, according to statistics."""
WAYS = ("repeat", "interleave", "identity", "evenly", "first")
"""The values of ``--layers`` that name a way to choose layers; all other values are lists of layers."""
SHOWN = 12
"""The number of layers whose block influence (1 minus the mean cosine of input and output) a note shows."""
NEW = "resized"
"""A segment of the temporary keys that layers have until they get their new numbers."""
_RANGE = re.compile(r"([0-9]{1,6})(?:\.\.([0-9]{1,6}))?")
OUTPUTS = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|down_proj|fc2|wo|o|w2|lin2|out_lin|dense_4h_to_h|output_dense|output_linear|output\.dense"
    r"|attention\.dense|self_attn\.dense|self_attention\.dense)(\.weight|\.bias|_bias|)$"
)
"""Matches the keys of the layers whose outputs are added to the residual stream, in transformers' networks."""
_ADDED = ("linear", "transposed linear", "experts", "interleaved experts")
NORM_AFTER = re.compile(r"(attention\.output\.LayerNorm|sa_layer_norm|output_layer_norm)\.weight$")
"""Matches the norms of layers that normalise after the residual sum (post-norm), as BERT's do."""


def final_keys(text: str) -> str:
    """Return the note ``text`` with temporary keys of layers replaced by the final keys."""
    return text.replace(f".{NEW}.", ".")


class Layer(NamedTuple):
    """A layer of the output: a copy of the source's layer with the index ``source``.

    If ``is_identity`` is true, the output projections of the copy are set to zero, so that it only passes its input on.
    """

    source: int
    is_identity: bool = False


def layers_of(text: str, before: int, after: int) -> list[Layer]:
    """Return the layers that ``--layers`` asks for: a list (``0..23,8..31``), or one of ``WAYS``.

    ``before`` and ``after`` are the numbers of layers of source and output. Raises ConfigError if they do not fit.
    """
    hint = _hint(before, after)
    if not text:
        raise ConfigError(
            f"the number of layers changes from {before} to {after}, but no option says which layers to use.",
            hint=f"Give --layers: {hint}.",
        )
    if text in WAYS:
        return _in_way(text, before, after, hint)
    found: list[Layer] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= before:
            raise ConfigError(
                f"--layers {brief_repr(text, 60)}: {brief_repr(part.strip(), 30)} is not a layer from 0 to "
                f"{before - 1}, nor a range of them.",
                hint=f"Write {hint}.",
            )
        found += [Layer(number) for number in range(first, last + 1)]
        if len(found) > 100_000:
            break
    if len(found) != after:
        raise ConfigError(
            f"--layers {brief_repr(text, 60)} lists {count(len(found), 'layer')}, but the configuration has {after}.",
            hint=f"List {after} layers, or set the number of layers to {len(found)}.",
        )
    return found


def _hint(before: int, after: int) -> str:
    if after > before:
        overlap = f"0..{min(before, after - after // 2) - 1},{max(before - after // 2, 0)}..{before - 1}"
        listed = f"a list ({overlap})" if 2 * before >= after else "a list of layers"
        return (
            f"{listed}, repeat (all in order, then again), interleave (each several times), or identity (new layers "
            "that only pass their input on)"
        )
    return f"a list (0..{after - 1}), first, or evenly"


def _in_way(way: str, before: int, after: int, hint: str) -> list[Layer]:
    if (way in ("repeat", "identity", "interleave")) != (after > before):
        raise ConfigError(f"--layers {way} cannot make {after} layers from {before}.", hint=f"Write {hint}.")
    if way in ("repeat", "first"):
        return [Layer(number % before) for number in range(after)]
    if way == "evenly":
        last = max(after - 1, 1)
        return [Layer(round(number * (before - 1) / last)) for number in range(after)]
    numbers = [number * before // after for number in range(after)]
    copies = [number and numbers[number - 1] == numbers[number] for number in range(after)]
    return [Layer(number, way == "identity" and bool(copy)) for number, copy in zip(numbers, copies, strict=True)]


def lists_of(before: Network, after: Network, numbers: tuple[int, int]) -> list[str]:
    """Return the paths of the lists of layers whose length a field changes, such as ``model.layers``.

    ``numbers`` are the values of the field in both configurations. Raises PlanError if there is no such list.
    """
    one, two = _lengths(before), _lengths(after)
    found = [path for path, size in one.items() if (size, two.get(path)) == numbers]
    other = [path for path, size in one.items() if two.get(path) != size and path not in found]
    if not found or other:
        where = f" (but {escape(other[0])} changes)" if other else ""
        raise PlanError(
            f"the network has no list of layers whose length changes from {numbers[0]} to {numbers[1]}{where}.",
            hint="The network may use one layer several times, as ALBERT does, or another field may give the number "
            "of layers.",
        )
    return found


def _lengths(network: Network) -> dict[str, int]:
    """Return {path: length} for the outermost lists of numbered modules; a length is the largest number plus 1."""
    found: dict[str, int] = {}
    for key in network.tensors:
        parts = key.split(".")
        for at, part in enumerate(parts):
            if part.isdigit():
                path = ".".join(parts[:at])
                found[path] = max(found.get(path, 0), int(part) + 1)
                break
    return found


def has_final_norm(paths: Sequence[str], network: Network) -> bool:
    """Return whether the network has a norm after each of the lists of layers ``paths``.

    If it has none, the layers themselves normalise their outputs, as in BERT and BART.
    """
    keys = list(network.tensors)
    norms = [(at, key.rpartition(".")[0]) for at, key in enumerate(keys) if network.kinds.get(key) == "norm"]
    norms = [(at, norm) for at, norm in norms if not norm.endswith("embedding")]

    def follows(path: str) -> bool:
        last = max(at for at, key in enumerate(keys) if key.startswith(f"{path}."))
        around = {path[: match.start()] for match in re.finditer(r"\.|$", path)} - {path} | {""}
        return any(
            (at > last or "final" in norm or "post" in norm) and norm.rpartition(".")[0] in around
            for at, norm in ((at, norm.replace(".pooler.", ".")) for at, norm in norms)
        )

    return all(map(follows, paths))


def changed_depth(
    field: str,
    layers: Sequence[Layer],
    paths: Sequence[str],
    before: Network,
    after: Network,
    numbers: tuple[int, int],
    *,
    normalises_after: bool,
    influences: Sequence[float] = (),
) -> Change:
    """Return the change of the network ``before`` to ``after``: its lists of layers ``paths`` become ``layers``.

    ``numbers`` are the values of the field ``field`` in both configurations. ``normalises_after`` is true if each layer
    normalises the sum of its input and its own results (post-norm). ``influences`` has the block influence of each
    layer of the source, if the layers were chosen by it; the note then has the influences of the layers that are left
    out. Raises PlanError if an added layer cannot pass its input on, if a source layer lacks a tensor that the output's
    layer needs, or if a tensor outside the layers changes.
    """
    _check_outside(field, paths, before, after)
    for path in paths:
        _check_places(path, layers, before, after)
    if normalises_after and any(layer.is_identity for layer in layers):
        raise PlanError(
            "each layer of this network normalises its output, so no layers can be added that only pass their input "
            "on.",
            hint="Repeat layers instead: --layers repeat, or a list.",
        )
    added = sum(layer.is_identity for layer in layers)
    kept = {layer.source for layer in layers}
    dropped = numbers[0] - len(kept)
    pass_on = "is added, which only passes its" if added == 1 else "are added, which only pass their"
    doing = f"{count(added, 'layer')} {pass_on} input on (arXiv 2401.02415)" if added else ""
    if not added:
        again = len(layers) - len(kept)
        doing = ", ".join(
            [f"{count(again, 'layer')} repeated"] * (again > 0)
            + [f"{count(dropped, 'layer')} left out ({_left_out(numbers[0], kept, influences)})"] * (dropped > 0)
        )
    change = Change(f"{field} {numbers[0]} to {numbers[1]}: {doing or 'layers in another order'}", bool(added))
    for path in paths:
        _copy(change, path, layers, before)
    own = [key for path in paths for key in _of_one_layer(path, layers, before, after)]
    change.left += [quoted(key) for key in own]
    if own:
        names = {re.sub(rf"\.{NEW}\.[0-9]+\.", ".", key) for key in own}
        change.said += f"; tensors that only some layers have are not repeated: {listing(sorted(names), where='')}"
    return change


def _left_out(size: int, kept: Collection[int], influences: Sequence[float]) -> str:
    """Return a text: the numbers below ``size`` that are not in ``kept``, with the layers' ``influences`` if known."""
    numbers = [number for number in range(size) if number not in kept]
    if not influences:
        return escape(indices_text([(number, number + 1) for number in numbers]), 60)
    said = [f"{number} with influence {influences[number]:.2g}" for number in numbers]
    return listing(said, SHOWN, where=" (ckpt stats shows all)")


def _of_one_layer(path: str, layers: Sequence[Layer], before: Network, after: Network) -> Iterator[str]:
    """Yield the temporary key of each copied tensor that its layer in the output does not have."""
    for number, layer in enumerate(layers):
        own = f"{path}.{layer.source}."
        for key in before.tensors:
            if key.startswith(own) and f"{path}.{number}.{key[len(own) :]}" not in after.tensors:
                yield f"{path}.{NEW}.{number}.{key[len(own) :]}"


def _check_outside(field: str, paths: Sequence[str], before: Network, after: Network) -> None:
    """Raise PlanError if the shape of a tensor outside the lists of layers depends on the number of layers."""
    for key, info in before.tensors.items():
        other = after.tensors.get(key, info)
        if info.shape != other.shape and not any(_is_in(key, path) for path in paths):
            raise PlanError(
                f"{field} changes {escape(key)} from {shape_text(info.shape)} to {shape_text(other.shape)}: "
                "the tensor has weights for each layer, but is not in a list of layers.",
                hint="The number of layers of this network cannot be changed; its width, heads and channels can.",
            )


def _check_places(path: str, layers: Sequence[Layer], before: Network, after: Network) -> None:
    """Raise PlanError if a layer of the output needs a tensor that the copied layer of the source does not have."""
    had, needed = _names_by_layer(path, before), _names_by_layer(path, after)
    for number, layer in enumerate(layers):
        lacking = sorted(needed.get(number, set()) - had.get(layer.source, set()))
        if lacking:
            having = [str(one) for one, names in sorted(had.items()) if lacking[0] in names]
            raise PlanError(
                f"layer {number} of the output needs {escape(lacking[0])}, which layer {layer.source} of the source "
                "does not have.",
                hint=f"The source has it in layer {listing(having, 3, where='')}: put such a layer there with --layers."
                if having
                else "Choose other layers with --layers.",
            )


def _names_by_layer(path: str, network: Network) -> dict[int, set[str]]:
    """Return a map from the number of each layer in the list ``path`` to the names of its tensors inside the layer."""
    found: dict[int, set[str]] = {}
    for key in network.tensors:
        if _is_in(key, path):
            number, _, name = key[len(path) + 1 :].partition(".")
            found.setdefault(int(number), set()).add(name)
    return found


def _copy(change: Change, path: str, layers: Sequence[Layer], before: Network) -> None:
    at = len(path.split("."))
    size = 1 + max(int(key.split(".")[at]) for key in before.tensors if _is_in(key, path))
    uses: Mapping[int, list[int]] = {number: [] for number in range(size)}
    for number, layer in enumerate(layers):
        uses[layer.source].append(number)
    for number, users in uses.items():
        if users:
            change.after.append({"copy": f"{path}.{number}", "into": [f"{path}.{NEW}.{user}" for user in users]})
        else:
            change.left.append(f"{path}.{number}")
    change.renamed.append(f"{path}.{NEW}.{{n}}={path}.{{n}}")
    zeroed = [number for number, layer in enumerate(layers) if layer.is_identity]
    for number in zeroed:
        keys = _output_projections(path, number, layers, before)
        change.after += [{"zero": key} for key in keys]


def _is_in(key: str, path: str) -> bool:
    return key.startswith(f"{path}.") and key[len(path) + 1 :].partition(".")[0].isdigit()


def _output_projections(path: str, number: int, layers: Sequence[Layer], before: Network) -> list[str]:
    """Return the temporary keys of a layer's output projections; if they are zero, the layer adds nothing to its input.

    Raises PlanError if they are not known.
    """
    own = f"{path}.{layers[number].source}."
    keys = [key for key in before.tensors if key.startswith(own)]
    found = [key for key in keys if before.kinds.get(key) in _ADDED and OUTPUTS.search(key)]
    silent = _parts_without(found, keys, own, before)
    if len({key.rpartition(".")[0] for key in found}) < 2 or silent:
        raise PlanError(
            "a layer that is added to pass its input on needs output projections of zeros, but it is not known which "
            f"tensors of {escape(silent or own[:-1])} these are.",
            hint="Repeat layers instead: --layers repeat, or a list.",
        )
    return [f"{path}.{NEW}.{number}.{key[len(own) :]}" for key in found]


def _parts_without(found: Sequence[str], keys: Sequence[str], own: str, before: Network) -> str:
    """Return the path of a module that has several matrices, but none of them in ``found``; "" if there is none.

    ``keys`` are all keys of a layer, ``own`` is their common beginning, and ``found`` are its output projections.
    """
    matrices: dict[str, set[str]] = {}
    for key in keys:
        if before.kinds.get(key) in _ADDED and not key.endswith("bias"):
            matrices.setdefault(key[len(own) :].partition(".")[0], set()).add(key)
    return next((own + name for name, some in matrices.items() if len(some) > 1 and not some.intersection(found)), "")
