"""``stats`` of several models that are merged while they run: the Gram matrices of the inputs in the merged model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError
from ...methods.merge._method import bound
from ...methods.merge._registry import merge_methods
from ...methods.merge.arithmetic.grams import positive_shares
from ...planning.keys.pattern_hints import chosen_keys
from ...planning.plan.plan import Plan
from ...storage.read.uri import shown
from ...util.text import escape, listing
from ..folder_differences import computing_apart
from ..inputs.argument_types import Parameters, Path, Patterns, Progress, Rules
from ..statistics.opening import check_stores_own, open_model
from ..statistics.stored import MERGED, NOTE, OF_RANDOM, RANDOM
from ..statistics.weight_prints import weight_prints
from .merged_inputs import METHOD, merged_grams
from .request import method_settings

if TYPE_CHECKING:
    from ..prove.inputs import Inputs
    from ..prove.network import Network
    from ..statistics.gram_matrices import GramSums

__all__ = ["merged_statistics"]


def merged_statistics(
    source: str,
    inputs: Path | None,
    merged_with: Rules,
    *,
    parameters: Parameters,
    include: Patterns,
    exclude: Patterns,
    model: Path | None,
    seed: int,
    root: str | None,
    limit: int,
    progress: Progress | None,
) -> Plan:
    """Return the plan of a file with the statistics of ``source`` and of the models ``merged_with``.

    The keys in the file begin with the index of the model. The other arguments are those of ``stats``; ``limit`` is the
    memory for weights in bytes. Raises ConfigError if no chosen layer runs.
    """
    import torch

    from ..edit import convert
    from ..prove.inputs import drawn_inputs, given_inputs
    from ..statistics.gram_matrices import GRAM, chosen_from, rows_of_inputs

    pairs = [(source, os.fspath(inputs) if inputs is not None else ""), *_pairs(merged_with)]
    given = _plain(parameters, len(pairs))
    positive_shares(given["weight"])
    with ExitStack() as stack, torch.no_grad():
        networks = list(_opened(stack, [path for path, _ in pairs], model, root))
        if progress is not None:
            _report(networks, progress)
        every: list[Inputs] = [
            given_inputs(path, one.module, one.folder) if path else drawn_inputs(one.module, seed)
            for (_, path), one in zip(pairs, networks, strict=True)
        ]
        chosen = chosen_keys(chosen_from(networks[0]), include, exclude)
        positions = [rows_of_inputs(one.arguments.get("attention_mask")) for one in every]
        grams = merged_grams(
            networks, every, frozenset(chosen.keys), positions=positions, parameters=given, limit=limit
        )
        values = {f"{at}.{key}": one for at, found in enumerate(grams) for key, one in found.values().items()}
        notes = [note for one in networks for note in one.value_notes()]
        notes += [note for one in every for note in one.notes]
    if not values:
        raise ConfigError(
            "--gram: with these inputs, none of the chosen linear layers runs.",
            hint="Choose other layers with --include and --exclude, or give other inputs.",
        )
    models = [
        {**_model(path, root), "inputs": own.said, RANDOM: not file, GRAM: found.said}
        for (path, file), own, found in zip(pairs, every, grams, strict=True)
    ]
    random = [f"{escape(shown(path))}: {OF_RANDOM}" for path, file in pairs if not file]
    said = {"weights": [], MERGED: {"models": models, "parameters": given}}
    plan = convert(values, dtype="float32", metadata={NOTE: json.dumps(said, sort_keys=True)})
    apart = list(_apart([path for path, _ in pairs], model))
    every_note = (*apart, *random, *notes, *chosen.notes, *_lacking(grams), *plan.notes)
    return replace(plan, notes=tuple(dict.fromkeys(every_note)))


def _apart(paths: Sequence[str], model: Path | None) -> Iterator[str]:
    """Yield notes on settings with which the first model and another compute different results from equal weights."""
    found = [note for note in (computing_apart(paths[0], other) for other in paths[1:]) if note]
    yield from found
    if found and model is not None:
        yield f"all models ran with the settings of {escape(os.fspath(model))}"


def _pairs(merged_with: Rules) -> Iterator[tuple[str, str]]:
    """Yield (MODEL, FILE) for each of the other models, from strings MODEL=FILE, or MODEL if it gets random inputs.

    FILE has the inputs of the model; it is '' for random inputs. Raises ConfigError if there is no file after "=".
    """
    if isinstance(merged_with, Mapping):
        pairs = [(path, os.fspath(own)) for path, own in merged_with.items()]
    else:
        texts = [merged_with] if isinstance(merged_with, str) else merged_with or ()
        pairs = [(path, own) for path, equals, own in (text.rpartition("=") for text in texts) if equals]
        yield from ((text, "") for text in texts if "=" not in text)
    for path, own in pairs:
        if not (path and own):
            raise ConfigError(
                f"--merged-with {escape(f'{path}={own}')} does not have the form MODEL=FILE.",
                hint="Give the file of the model's inputs, or the model alone: then its inputs are random.",
            )
        yield path, own


def _plain(parameters: Parameters, models: int) -> dict[str, Any]:
    """Return {name of a parameter: number, or list with a number for each model}.

    Raises ConfigError if a parameter is not the same for all tensors, or if its value is not valid.
    """
    method, found = merge_methods()[METHOD], {}
    for name, settings in method_settings(method, parameters).items():
        if any(one.pattern is not None or one.layers for one in settings):
            raise ConfigError(
                f"the parameter {escape(name)} of --merged-with must be the same for all tensors.",
                hint="Give a number, or one for each model.",
            )
        found[name] = list(settings[0].models) or settings[0].value
    return bound(METHOD, method.parameters, found, models)


def _opened(stack: ExitStack, paths: Sequence[str], model: Path | None, root: str | None) -> Iterator[Network]:
    for path in paths:
        network = stack.enter_context(closing(open_model(path, model, root)))
        check_stores_own(network, "--gram is")
        yield network


def _report(networks: Sequence[Network], progress: Progress) -> None:
    """Let ``progress`` know how many parameters were read: each is read twice, to run its block and to merge it."""
    total, done = 2 * sum(one.numel() for net in networks for one in net.module.parameters()), 0

    def read(number: int) -> None:
        nonlocal done
        done = min(done + number, total)
        progress(done, total)

    for network in networks:
        network.progress = read


def _model(path: str, root: str | None) -> dict[str, Any]:
    with open_checkpoint(path, root) as opened:
        return {"model": os.path.basename(path.rstrip("/")), **weight_prints(opened)}


def _lacking(grams: Sequence[GramSums]) -> Iterator[str]:
    lacking = sorted({key for one in grams for key in one.said["lacking"]})
    if lacking:
        yield f"there are no Gram matrices of {listing(lacking)}"
