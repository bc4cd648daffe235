"""``stats``: runs a network, and stores statistics of its channels, heads, experts and layers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError
from ...planning.keys.pattern_hints import chosen_keys
from ...planning.plan.plan import Plan
from ...storage.read.uri import shown
from ...util.text import count, escape, listing
from ..inputs.argument_types import Parameters, Path, Patterns, Progress, Rules, checked
from .gram_matrices import GRAM, chosen_from
from .magnitudes import MAGNITUDES
from .measuring import ForMerges, measured
from .opening import check_stores_own, open_model
from .stored import NOTE, OF_RANDOM, RANDOM
from .weight_prints import weight_prints

if TYPE_CHECKING:
    from torch import Tensor

    from ..prove.network import Network

__all__ = ["stats"]

MEMORY = 1 << 30
"""The default of ``memory``, in bytes."""


@checked
def stats(
    source: Path,
    *,
    inputs: Path | None = None,
    gram: bool = False,
    fisher: bool = False,
    magnitudes: bool = False,
    merged_with: Rules = (),
    parameters: Parameters = (),
    include: Patterns = (),
    exclude: Patterns = (),
    model: Path | None = None,
    seed: int = 0,
    root: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Run the network of a checkpoint on inputs, and return the plan of a file with statistics of its activations.

    ``resize`` uses the following statistics; ``L`` is the name of a module. A linear layer has ``L.inputs`` (float32):
    the mean square of each input, over all positions. A router has ``L.load``: for each expert, the share of positions
    that use it. A module with the weights of all experts has ``L.saliency``: for each expert, the mean of router weight
    times norm of its output, over the positions that use it (REAP, https://arxiv.org/abs/2510.13999). It also has
    ``L.inputs`` (experts by channels): the mean square, over all positions, of router weight times input of the
    expert's last layer. A layer in a list of layers has its block influence ``L.influence``: 1 minus the mean cosine
    between its input and its output (ShortGPT, https://arxiv.org/abs/2403.03853).

    ``merge`` uses further statistics. With ``gram``, each weight K of a linear layer gets the Gram matrix of the
    layer's inputs (``K.gram``, float32): the mean of x x^T over all positions. It is summed in double precision in
    temporary files (8 bytes for each element), because all matrices together may not fit in memory. With ``fisher``,
    each parameter K gets the diagonal of its empirical Fisher information (``K.fisher``, float32): the mean over the
    examples (rows of the inputs) of the squared gradients of the loss. This takes 12 bytes of memory for each
    parameter. The loss is the model's own if the inputs have ``labels``. Without labels, it is the loss of the next
    token for causal language models. For other models, it is the loss for labels that are drawn from the model's own
    prediction with ``seed`` (https://arxiv.org/abs/2111.09832). With ``magnitudes``, each weight K of a linear layer
    gets the mean magnitude of each of the layer's inputs (``K.magnitudes``, float32; https://arxiv.org/abs/2502.02421).
    ``include`` and ``exclude`` choose the tensors for which these three are computed.

    ``merged_with`` maps each of the other models of a merge to its inputs, for ``merge`` by "regmean_plusplus". With
    ``gram``, the Gram matrices of all models are then made from the inputs that layers get in the merged model. For
    this, one block after the other is merged while all models run, with ``parameters`` of this method (weight, alpha,
    ridge). The file has the statistics of all models.

    ``inputs``, ``model``, ``seed``, ``root``, ``memory`` and ``progress`` are as in ``prove``: without ``inputs``,
    random inputs are drawn; statistics of them say little about texts, images or sounds. Weights are in memory while
    their module runs. Raises ConfigError if there is no configuration, or the network does not run on these inputs.
    """
    import torch

    from ...engine.compute.compute import memory_bytes
    from ..prove.inputs import drawn_inputs, given_inputs

    kinds = ForMerges(gram=gram, fisher=fisher, magnitudes=magnitudes)
    _check_given(inputs, kinds, has_patterns=bool(include or exclude))
    path, limit = os.fspath(source), memory_bytes(memory) or MEMORY
    if merged_with or parameters:
        from ..merge.merged_statistics import merged_statistics

        _check_merged(merged_with, kinds)
        return merged_statistics(
            path, inputs, merged_with, parameters=parameters, include=include, exclude=exclude, model=model, seed=seed,
            root=root, limit=limit, progress=progress,
        )  # fmt: skip
    with closing(open_model(path, model, root)) as network, torch.no_grad():
        if progress is not None:
            _report(network, progress, runs=1 + fisher)
        if kinds:
            check_stores_own(network, "--gram, --fisher and --magnitudes are")
        chosen = chosen_keys(chosen_from(network), include, exclude)
        given = (
            drawn_inputs(network.module, seed)
            if inputs is None
            else given_inputs(os.fspath(inputs), network.module, network.folder)
        )
        found = measured(network, given, kinds, frozenset(chosen.keys), seed=seed, limit=limit)
        seen = network.value_notes()
    said, notes = _of_model(path, root)
    said |= {**found.said, "inputs": given.said, RANDOM: inputs is None}
    plan = _planned(found.values, said, path)
    told = (*dict.fromkeys((*notes, *seen)), *given.notes, *chosen.notes, *_notes(said))
    return replace(plan, notes=(*told, *plan.notes))


def _check_given(inputs: Path | None, kinds: ForMerges, *, has_patterns: bool) -> None:
    """Raise ConfigError for patterns if no kind of statistics needs them, and for an empty path of the inputs."""
    if has_patterns and not kinds:
        raise ConfigError(
            "--include and --exclude choose tensors for --gram, --fisher and --magnitudes, but none of them is given.",
            hint="Leave --include and --exclude out, or add --gram, --fisher or --magnitudes.",
        )
    if inputs is not None and not os.fspath(inputs):
        raise ConfigError(
            "--inputs is empty.", hint="Give a file, or leave --inputs out, so that the inputs are random."
        )


def _check_merged(merged_with: Rules, kinds: ForMerges) -> None:
    """Raise ConfigError if ``merged_with`` is empty, or if ``kinds`` are not Gram matrices alone."""
    if not merged_with:
        raise ConfigError("--param is only for --merged-with.", hint="Leave it out.")
    if kinds != ForMerges(gram=True, fisher=False, magnitudes=False):
        raise ConfigError(
            "--merged-with works only with --gram, and without --fisher and --magnitudes.",
            hint="Use --gram alone here; make the other statistics with another command.",
        )


def _report(network: Network, progress: Progress, *, runs: int) -> None:
    """Let ``progress`` know how many parameters were read; each of the ``runs`` runs reads all parameters."""
    total, done = runs * sum(one.numel() for one in network.module.parameters()), 0

    def read(number: int) -> None:
        nonlocal done
        done += number
        progress(done, total)

    network.progress = read


def _of_model(path: str, root: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the name and the digests of a checkpoint, which the file records, and the notes on the checkpoint."""
    from ..model_folder.checks import notes_beside

    with open_checkpoint(path, root) as opened:
        said = {"model": os.path.basename(path.rstrip("/")), **weight_prints(opened)}
        return said, (*opened.notes, *notes_beside(opened))


def _planned(values: Mapping[str, Tensor], said: Mapping[str, Any], path: str) -> Plan:
    """Return the plan of a file with statistics of ``path`` and the record ``said``; ConfigError without statistics."""
    from ..edit import convert

    if not values:
        raise ConfigError(
            f"with these inputs, no linear layer of the network of {escape(shown(path))} runs.",
            hint="Give other inputs with --inputs.",
        )
    # Gram matrices were summed in double precision
    dtype = "float32" if GRAM in said else None
    return convert(values, dtype=dtype, metadata={NOTE: json.dumps(said, sort_keys=True)})


def _notes(said: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on statistics: random inputs, which tensors have none, and which loss was used."""
    if said[RANDOM]:
        yield OF_RANDOM
    named = ((GRAM, "Gram matrices of"), ("fisher", "Fisher information of"), (MAGNITUDES, "magnitudes of inputs of"))
    for kind, of in named:
        about = said.get(kind)
        if about is not None and about["lacking"]:
            yield f"there are no {of} {listing(about['lacking'])}"
    unused = said.get(GRAM, {}).get("unused", {})
    if unused:
        yield (
            f"{count(sum(unused.values()), 'expert')} got no input: the Gram matrices of their weights are zero, so a "
            "merge keeps the weights of models in which they are used, or the mean"
        )
    if "fisher" in said:
        yield f"Fisher information of {count(said['fisher']['examples'], 'example')}: {said['fisher']['loss']}"
