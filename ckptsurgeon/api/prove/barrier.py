"""``loss_barrier``: the loss of the networks on the line between two networks, with weights read block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from ...analysis.prove.barrier import BarrierPoint, LossBarrier
from ...analysis.prove.figures import distance
from ...checkpoint.opening import open_checkpoint, place_of
from ...engine.compute.compute import memory_bytes
from ...errors import ConfigError, PlanError
from ...storage.read.uri import shown
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing
from ..inputs.argument_types import AxisGroups, CheckpointLike, Path, Progress, checked

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs
    from .losses import EvaluatedLoss
    from .network import Network

__all__ = ["loss_barrier"]

MEMORY = 1 << 30
"""The default of ``memory``, in bytes."""
COPIES = 3
"""The weights of a block are in memory this many times: those of both networks, and the interpolated ones."""
MATRICES = 16
"""The largest number of matrices that are compared to see whether two networks are related."""
RELATED = 0.1
"""Networks whose matrices have a smaller median cosine are not related."""
LEAST, MOST = 3, 1001
"""The smallest and the largest number of points."""


@checked
def loss_barrier(
    first: CheckpointLike,
    second: CheckpointLike,
    *,
    points: int = 11,
    align: bool = False,
    align_groups: AxisGroups = None,
    model: Path | None = None,
    inputs: Path | None = None,
    seed: int = 0,
    task: str | None = None,
    root: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> LossBarrier:
    """Return the losses of networks on the line between two networks, compared with the interpolated losses.

    A network on the line has the weights (1 - alpha) A + alpha B; floating-point buffers, such as the means of batch
    norms, are interpolated in the same way. ``points`` is the number of values of alpha, at equal distances from 0 to
    1. With ``align``, the second network is first put into the order of the first one, as by ``merge`` (Git Re-Basin,
    https://arxiv.org/abs/2209.04836); ``align_groups`` lists the axes if there is no config.json.

    All networks run on the same inputs. The loss is the model's own if the inputs have ``labels``. For causal language
    models with ``inputs`` without labels, it is the cross-entropy of the next token. For all other models, and for
    random inputs, it is the distance to the outputs of the two networks. The field ``loss`` of the result names the
    loss.

    The other arguments are those of ``prove``. Weights are in memory only while their module runs: the weights of the
    two networks, and the interpolated weights, together up to ``memory`` (by default 1 GiB).

    Raises ConfigError for an invalid argument, if there is no configuration, if no inputs can be made for the network,
    or if the loss of one of the two is not finite; PlanError if the two networks have different tensors, or compute
    different results with equal weights.
    """
    import torch

    from .comparison import described
    from .prove import configuration_notes, networks_of, report

    if not LEAST <= points <= MOST:
        raise ConfigError(
            f"--points {points} is not a valid number of points.", hint=f"Use a number from {LEAST} to {MOST}."
        )
    if align_groups is not None and not align:
        raise ConfigError("--align-groups is only for --align.", hint="Add --align.")
    limit = max(1, (memory_bytes(memory) or MEMORY) // COPIES)
    with ExitStack() as stack, torch.inference_mode():
        sources, notes = (first, second), list[str]()
        if align:
            sources, notes = _aligned(sources, root, align_groups, limit, stack)
        found = networks_of(sources, model, task=task, roots=(root, root) if not align else (None, None))
        networks = [stack.enter_context(closing(one)) for one in found]
        _check_alike(networks)
        _check_configurations(first, second)
        if progress is not None:
            report(networks, progress, runs=points)
        given = _inputs(networks[0], inputs, seed)
        losses, said = _losses(networks, given, points, limit, drawn=inputs is None)
        notes += _notes(networks, drawn=inputs is None)
        notes += _cosine_notes(networks, said, aligned=align)
        notes += configuration_notes(first, second, model, root)
    ends = losses[0], losses[-1]
    return LossBarrier(
        described(networks[0]), described(networks[1]), given.said, said, tuple(_points(losses, *ends)), align,
        tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _points(losses: Sequence[float], first: float, last: float) -> list[BarrierPoint]:
    """Return the points with their losses; ``first`` and ``last`` are the losses of the two networks."""
    every, end = [], len(losses) - 1
    for place, loss in enumerate(losses):
        alpha = place / end
        line = first if alpha == 0 else last if alpha == 1 else (1 - alpha) * first + alpha * last
        every.append(BarrierPoint(alpha, loss, loss - line))
    return every


def _aligned(
    sources: tuple[CheckpointLike, CheckpointLike], root: str | None, groups: AxisGroups, limit: int, stack: ExitStack
) -> tuple[tuple[CheckpointLike, CheckpointLike], list[str]]:
    """Return the two checkpoints, the second permuted to match the first, and notes; ``stack`` closes the files."""
    from ..aligning.align import align
    from ..aligning.own_groups import group_fields
    from ..inputs.encoding import ENCODINGS, read_as

    opened = [read_as(stack.enter_context(open_checkpoint(one, root)), ENCODINGS[0]) for one in sources]
    found = align(opened, 0, groups=group_fields(groups), memory=limit * COPIES)
    return (found.checkpoints[0], found.checkpoints[1]), found.notes


def _check_alike(networks: Sequence[Network]) -> None:
    """Raise PlanError unless both networks are of one class and have the same tensors."""
    first, second = networks
    kinds = [type(one.module).__name__ for one in networks]
    if kinds[0] != kinds[1]:
        raise PlanError(
            f"{escape(first.path)} is a {kinds[0]}, but {escape(second.path)} is a {kinds[1]}: their weights cannot be "
            "interpolated.",
            hint="Give two networks of the same kind.",
        )
    shapes = [{key: step.shape for key, step in one.steps.items()} for one in networks]
    apart = sorted(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key))
    if apart:
        raise PlanError(
            f"{escape(first.path)} and {escape(second.path)} have different tensors, so their weights cannot be "
            f"interpolated: {listing(apart)}.",
            hint="Give two networks of the same sizes.",
            details=apart,
        )


def _check_configurations(first: CheckpointLike, second: CheckpointLike) -> None:
    """Raise PlanError if the configurations differ so that equal weights would compute different results.

    Interpolated weights would then belong to no configuration.
    """
    from ..folder_differences import computing_apart

    names = [escape(shown(place_of(one))) for one in (first, second)]
    apart = computing_apart(first, second)
    if apart:
        raise PlanError(
            f"the weights of {names[0]} and {names[1]} cannot be interpolated: {apart}.",
            hint="Give two networks with the same configuration.",
        )


def _inputs(network: Network, path: Path | None, seed: int) -> Inputs:
    from .inputs import drawn_inputs, given_inputs

    return (
        drawn_inputs(network.module, seed) if path is None else given_inputs(str(path), network.module, network.folder)
    )


def _losses(
    networks: Sequence[Network], inputs: Inputs, points: int, limit: int, *, drawn: bool
) -> tuple[list[float], str]:
    """Return the losses at all points, in the order of alpha, and the name of the loss.

    ``drawn`` is true if the inputs are random. The networks at both ends (alpha 0 and 1) run first, because the loss
    may need their outputs.
    """
    from .losses import loss_for, main_output

    loss, last = loss_for(networks[0].module, inputs, drawn=drawn), points - 1
    outputs = {place: _run(networks, place / last, inputs, limit) for place in (0, last)}
    if loss.compares:
        loss.references += [main_output(outputs[place]) for place in (0, last)]
    _check_finite(networks, loss, outputs, last)
    found = {place: loss.of(output) for place, output in outputs.items()}
    outputs.clear()
    for place in range(1, last):
        found[place] = loss.of(_run(networks, place / last, inputs, limit))
    return [found[place] for place in range(points)], loss.said


def _check_finite(networks: Sequence[Network], loss: EvaluatedLoss, outputs: Mapping[int, Any], last: int) -> None:
    """Raise ConfigError if one of the two networks has a loss that is not finite: then nothing can be compared."""
    for network, place in zip(networks, (0, last), strict=True):
        if not math.isfinite(loss.of(outputs[place])):
            raise ConfigError(
                f"the loss of {escape(network.path)} is not finite for these inputs, so nothing can be compared.",
                hint="Find weights that are not finite with ckpt check, or give other inputs with --inputs.",
            )


def _run(networks: Sequence[Network], alpha: float, inputs: Inputs, limit: int) -> Any:
    """Run the network at ``alpha``, and return the output of its ``forward``."""
    from .running import run_network

    kept: list[Any] = []
    network, read = networks[0], _between(networks, alpha)
    network.load_buffers(read)
    hook = network.module.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        run_network(network, inputs, limit, read)
    finally:
        hook.remove()
    return kept[0]


def _between(networks: Sequence[Network], alpha: float) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
    """Return a function that maps keys to tensors of the network at ``alpha``: interpolated between the two networks.

    Tensors of integers come from the first network. If ``alpha`` is 0 or 1, the values are those of one network, and
    the other network is not read.
    """
    import torch

    first, second = networks
    if alpha in (0, 1):
        return first.read if alpha == 0 else second.read

    def read(keys: Sequence[str]) -> Mapping[str, Tensor]:
        made, others = first.read(keys), second.read(keys)
        for key, value in made.items():
            if value.is_floating_point():
                made[key] = torch.lerp(value, others[key], alpha)
        return made

    return read


def _cosine_notes(networks: Sequence[Network], loss: str, *, aligned: bool) -> list[Note]:
    """Return a warning if the matrices of two networks, which have both run, are hardly similar.

    Networks that were trained from the same weights have cosines near 1, unrelated ones near 0. An alignment makes
    unrelated matrices alike, too, so it gets a remark with the cosine instead. ``loss`` is the name of the loss.
    """
    found = _cosines(networks)
    if not found:
        return []
    of = f"the median cosine of {count(len(found), 'matrix', 'matrices')} is {found[len(found) // 2]:.2g}"
    if aligned:
        return [Note(NoteKind.REMARK, f"with B in the order of A, {of}")]
    if abs(found[len(found) // 2]) >= RELATED:
        return []
    said = (
        f"the weights of the two networks have hardly anything in common: {of}. They were probably not trained from "
        f"the same weights: {_advice(loss)}; if B is only in another order, --align finds it"
    )
    return [Note(NoteKind.SERIOUS, said)]


def _cosines(networks: Sequence[Network]) -> list[float]:
    """Return the cosines of at most ``MATRICES`` matrices of two networks, sorted.

    Only samples that were kept while the networks ran are compared, so nothing is read.
    """
    first, second = networks
    matrices = [
        key
        for key, step in first.steps.items()
        if len(step.shape) > 1
        and not step.tied_to
        and key in second.samples
        and key in first.samples
        and first.samples[key].is_floating_point()
    ]
    some = matrices[:: -(-len(matrices) // MATRICES) or 1]
    return sorted(distance(first.samples[key], second.samples[key]).cosine for key in some)


def _advice(loss: str) -> str:
    """Return advice on merging two unrelated networks whose barrier is low; ``loss`` is the name of the loss."""
    from .losses import OF_OUTPUTS, OF_PREDICTIONS

    if loss in (OF_PREDICTIONS, OF_OUTPUTS):
        return "a mean of them is of no use, even if this barrier is low"
    return "judge a mean of them by its losses, on inputs with labels, and not by the barrier alone"


def _notes(networks: Sequence[Network], *, drawn: bool) -> list[str]:
    from .comparison import network_notes
    from .vocabularies import tokens_of

    notes = [*network_notes(list(networks), None)]
    lists = [tokens_of(one.tokens, one.folder) for one in networks]
    if all(lists) and lists[0] != lists[1]:
        notes.append("the token lists differ, but row n of one network is interpolated with row n of the other")
    if drawn:
        notes.append(
            "the inputs are random: on real inputs, the barrier may be different; give real inputs with --inputs"
        )
    return notes
