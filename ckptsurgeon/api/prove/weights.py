"""Finds weights of two networks that differ by more than rounding explains, and weights that the inputs do not use."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...analysis.prove.figures import Distance, distance
from ...analysis.prove.proof import BlockResult, ChangedTensor
from .experts import differing_experts, experts_around
from .network import rounding_between
from .rearranged import order_of, other_weight
from .rounding import Rounding, largest_of_rows

if TYPE_CHECKING:
    from .blocks import Recording
    from .network import Network
    from .vocabularies import SharedTokens

__all__ = [
    "FACTOR", "RECOGNISED", "beyond_rounding", "changed_in", "changed_tensors", "differing", "hidden_embeddings",
    "not_reached", "other_shapes", "without_effect",
]  # fmt: skip

FACTOR = 2.0
"""A difference above this multiple of the rounding error is not explained by rounding."""
RECOGNISED = 16
"""The largest number of changed weights that are compared with other weights."""
COUNTERS = ("num_batches_tracked",)
"""The ends of the keys of buffers that only training uses."""
NOISY = 0.1
"""If the allowed relative error of an output is larger than this, the output cannot show whether weights differ."""


def differing(networks: Sequence[Network]) -> list[str]:
    """Return the keys of the tensors that were read from both networks and have different values."""
    first, second = (network.digests for network in networks)
    return [key for key, digest in first.items() if key in second and second[key] != digest]


def beyond_rounding(networks: Sequence[Network], shared: SharedTokens | None = None) -> Iterator[str]:
    """Yield the keys of tensors that differ by more than rounding explains, judged by a sample of their values.

    If the token lists differ (``shared``), tensors with a row for each token are left out, because the rows of the two
    networks have different orders. Tensors of different shapes and counters (``num_batches_tracked``) are left out,
    too.
    """
    first, second = networks
    for key in differing(networks):
        if first.steps[key].shape != second.steps[key].shape:
            continue
        samples = first.samples[key], second.samples[key]
        if key.endswith(COUNTERS):
            continue
        if samples[0].shape != samples[1].shape or (shared is not None and first.rows(key) in shared.sizes):
            continue
        rounding = _rounding(networks, key)
        if not _is_explained(distance(*samples), rounding, samples[0]) and not _explained_by_rows(networks, key):
            yield key


def other_shapes(networks: Sequence[Network], shared: SharedTokens | None = None) -> list[str]:
    """Return the keys of the tensors that have another shape in the second network.

    If the token lists differ (``shared``), tensors with a row for each token are left out.
    """
    first, second = networks
    keys = [key for key in differing(networks) if first.steps[key].shape != second.steps[key].shape]
    return [key for key in keys if shared is None or first.rows(key) not in shared.sizes]


def _rounding(networks: Sequence[Network], key: str) -> Rounding:
    first, second = networks
    return rounding_between(first, second, key)


def _is_explained(measured: Distance, rounding: Rounding, values: Tensor) -> bool:
    """Return whether rounding explains the measured distance of two tensors; ``values`` are values of the first one."""
    size = float(values.double().square().mean().sqrt()) or 1.0
    return measured.error <= FACTOR * (rounding.relative + rounding.absolute / size) + 2 * FACTOR * rounding.of_row


def _explained_by_rows(networks: Sequence[Network], key: str) -> bool:
    """Return whether rounding to codes explains the difference of two tensors.

    The possible error is computed for each row, from its largest value.

    In a row with few large values, the error of codes is large, because it is a share of the largest value.
    """
    of_row = _rounding(networks, key).of_row
    if not of_row or len(networks[0].steps[key].shape) < 2:
        return False
    first, second = (network.read([key])[key].double() for network in networks)
    largest = float((first - second).square().mean().sqrt())
    return largest <= FACTOR * of_row * float(largest_of_rows(first).square().mean().sqrt()) / math.sqrt(3)


def not_reached(networks: Sequence[Network], run: Recording) -> list[str]:
    """Return the keys of the tensors that the first network did not use in the run.

    Tensors that no run has read are read from both networks now, so that their checksums can be compared.
    """
    steps = networks[0].steps
    keys = [key for key, _ in networks[0].module.named_parameters(remove_duplicate=False) if key in steps]
    used = {steps[key].tied_to or key for key in keys if run.reaches(key)}
    found = [key for key in keys if (steps[key].tied_to or key) not in used]
    for network in networks:
        network.read([key for key in found if key not in network.digests and key in network.steps])
    return found


def without_effect(keys: Iterable[str], blocks: Sequence[BlockResult]) -> Iterator[str]:
    """Yield the keys of tensors that differ between the networks without a visible effect on outputs of their block.

    There are two such cases. The outputs of both networks are equal bit for bit, because the inputs did not use the
    values that differ. Or rounding may change the outputs so much (``NOISY``) that they show nothing.
    """
    for key in keys:
        inner = [one for one in blocks if one.name and key.startswith(f"{one.name}.")]
        around = inner or [one for one in blocks if not one.name]
        if all(one.distance.same or one.allowed > NOISY for one in around):
            yield key


def hidden_embeddings(networks: Sequence[Network], shared: SharedTokens | None, ids: Collection[int]) -> Iterator[str]:
    """Yield the embeddings in which some rows differ, but none of the rows that the inputs use.

    Each result is the key of the embedding with a remark on the rows. ``ids`` are the token ids in the inputs. For
    embeddings of other things than tokens, such as positions, it is not known which rows the inputs use, so none counts
    as used. If all rows of an embedding differ, the inputs used some of them, so the embedding is not yielded.
    """
    module, known = networks[0].module, set(differing(networks))
    tokens = _input_embedding(module)
    for name, one in module.named_modules():
        key = f"{name}.weight".strip(".")
        if not isinstance(one, nn.Embedding) or key not in known:
            continue
        rows = _rows_beyond_rounding(networks, key, shared)
        reached = torch.zeros_like(rows)
        if one is tokens:
            reached[[row for row in ids if 0 <= row < len(rows)]] = True
        if bool((rows & ~reached).any()) and not bool((rows & reached).any() or rows.all()):
            yield f"{key} (rows of tokens that no input has)" if one is tokens else f"{key} (some rows)"


def _input_embedding(module: nn.Module) -> nn.Module | None:
    get = getattr(module, "get_input_embeddings", None)
    try:
        found = get() if callable(get) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def _rows_beyond_rounding(networks: Sequence[Network], key: str, shared: SharedTokens | None) -> Tensor:
    """Return a mask of the rows of an embedding that differ by more than rounding explains.

    If the token lists or the shapes differ, no row is marked, because the rows may belong to different tokens.
    """
    first, second = (network.read([key])[key] for network in networks)
    if shared is not None or first.shape != second.shape:
        return torch.zeros(len(first), dtype=torch.bool)
    rounding = _rounding(networks, key)
    apart, norms = (first - second).norm(dim=1), first.norm(dim=1)
    allowed = (FACTOR * rounding.relative + 2 * FACTOR * rounding.of_row) * norms
    allowed = allowed.maximum(FACTOR * rounding.of_row * largest_of_rows(first) * math.sqrt(first.shape[1] / 3))
    beyond: Tensor = torch.logical_not(apart <= allowed)
    return beyond


def changed_in(networks: Sequence[Network], drift: BlockResult | None) -> tuple[ChangedTensor, ...]:
    """Return the tensors whose values differ between the networks, the largest difference first.

    Only tensors in the block ``drift`` are returned: the first block whose outputs differ. If it is None, the result is
    ().
    """
    if drift is None:
        return ()
    inside = [key for key in differing(networks) if key.startswith(f"{drift.name}." if drift.name else "")]
    return changed_tensors(networks, inside, drift.name)


def changed_tensors(networks: Sequence[Network], keys: Sequence[str], block: str = "") -> tuple[ChangedTensor, ...]:
    """Return the tensors among ``keys`` whose values differ, the largest difference first.

    ``block`` is the name of the block with these tensors, or '' if they are in no common block; the results only repeat
    it. Only the first ``RECOGNISED`` results say what happened to the weight.
    """
    rows = [(key, _distance_of(networks, key)) for key in keys]
    shapes = {key: _shapes(networks, key) for key in keys}
    found = [
        ChangedTensor(key, block, _error(far, shapes[key]), shapes=shapes[key]) for key, far in rows if not far.same
    ]
    ordered = sorted(found, key=lambda one: -math.inf if math.isnan(one.error) else -one.error)
    around = experts_around(networks[0].module, keys)
    return tuple(
        _recognised(networks, one, has_experts=one.key in around) if at < RECOGNISED else one
        for at, one in enumerate(ordered)
    )


def _recognised(networks: Sequence[Network], changed: ChangedTensor, *, has_experts: bool) -> ChangedTensor:
    """Return a changed weight with the reason, if it is known: it equals another weight, or its rows or columns moved.

    The weight is returned unchanged if its shape has changed, or if rounding explains the difference.

    If the weight has a slice for each expert (``has_experts``), the result also has the experts that differ.
    """
    key, (first, second) = changed.key, networks
    if first.steps[key].shape != second.steps[key].shape or changed.error <= FACTOR * _rounding(networks, key).relative:
        return changed

    def is_explained(measured: Distance, values: Tensor) -> bool:
        return _is_explained(measured, _rounding(networks, key), values)

    if equals := other_weight(networks, key, is_explained):
        return replace(changed, equals=equals)
    pair = first.read([key])[key], second.read([key])[key]
    experts = differing_experts(*pair, is_explained) if has_experts else ()
    return replace(changed, order=order_of(*pair, is_explained), experts=experts)


def _shapes(networks: Sequence[Network], key: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a tensor in both networks; () if they are equal."""
    first, second = (tuple(network.steps[key].shape) for network in networks)
    return () if first == second else (first, second)


def _distance_of(networks: Sequence[Network], key: str) -> Distance:
    first, second = (network.read([key])[key] for network in networks)
    if first.shape != second.shape:
        return Distance(math.inf, 0.0, math.inf, same=False)
    return distance(first, second)


def _error(far: Distance, shapes: Sequence[tuple[int, ...]]) -> float:
    """Return the relative error of a weight; NaN if its values have one shape, but their difference is not finite.

    ``shapes`` are the shapes of the weight in both networks, or () if they are equal.
    """
    return far.error if far.is_finite or shapes else math.nan
