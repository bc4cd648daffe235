"""``prove``: runs two networks on the same inputs, and says whether their outputs are equal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ...analysis.prove.figures import Prediction, distance, prediction
from ...analysis.prove.proof import DIFFERENT, BlockResult, Proof, ProvedNetwork
from ...checkpoint.in_memory import path_of
from ...checkpoint.opening import open_checkpoint
from ...errors import CheckpointError, ConfigError, PlanError
from ...storage.read.uri import shown
from ...util.notes import reworded, with_prefix, without_prefix
from ...util.text import count, escape, listing, percent
from ..diff import folder_differences
from ..inputs.argument_types import CheckpointLike, Path, Progress
from ..inputs.memory_budget import memory_bytes
from ..model_folder.config_differences import DIFFERENT as SETTINGS_DIFFER

if TYPE_CHECKING:
    from torch import Tensor

    from .blocks import Outputs, Place, Recording
    from .inputs import Inputs
    from .network import Network
    from .streaming import ReadWeights
    from .vocabularies import SharedTokens

__all__ = ["described", "network_notes", "networks_of", "prove", "prove_each", "report", "run_network"]

T = TypeVar("T")
Pair: TypeAlias = tuple[T, T]

MEMORY = 1 << 30
"""The default of ``memory``, in bytes."""
MAIN = ("", 0, 0)
"""The ``Place`` (key in the recorded outputs) of the main output of the whole network."""
STRICT = 1.25
"""If a tensor differs by more than rounding explains, outputs may differ by this multiple of the measured error.

The measured error is that of a run with weights that were changed at random, by as much as rounding may have changed
them. If no tensor differs by more than rounding explains, the multiple is ``weights.FACTOR``.
"""
FEW = 8.0
"""For an output of n numbers, ``STRICT`` or ``FACTOR`` is multiplied by 1 + FEW / sqrt(n): small outputs vary more.

The ratio of two sums of n squared normal variables has the distribution F(n, n). The factor is about the square root of
the 99.9 % quantile of this distribution: 3.5 for 8 numbers, 1.5 for 64, 1.1 for 1000.
"""
FLOOR = 1e-6
"""This number is added to each allowed error, because sums may be computed in another order."""
SHOWN = 8
SETTINGS_UNSEEN = "the config.json files differ in settings that do not change the outputs for these inputs"
_PREDICTS = re.compile(r"For(?!PreTraining$)|LMHead|DoubleHeads")
"""Matches names of classes of transformers whose main outputs are logits. GPT2LMHeadModel has no "For" in its name."""


def prove(
    first: CheckpointLike, second: CheckpointLike, *, model: Path | None = None, inputs: Path | None = None,
    seed: int = 0, task: str | None = None, root: str | None = None, memory: str | int | None = None,
    progress: Progress | None = None,
) -> Proof:  # fmt: skip
    """Run the networks of two checkpoints on the same inputs, and compare their outputs after each block.

    The network of a checkpoint is built from the config.json in its folder; ``model`` is the configuration for a
    checkpoint without a config.json, and ``task`` the ESPnet task, if that configuration fits several tasks. ``root``
    is the dotted path of the state dict in both checkpoints. ``inputs`` is a file: arguments of ``forward`` by name
    (.safetensors), lines of text (.txt), or audio (.wav, .flac, .ogg). By default, random inputs are drawn with
    ``seed``. Both networks run in float32, whatever the stored dtypes. Weights are in memory only while their module
    runs, up to ``memory`` (by default 1 GiB) at once.

    If the outputs differ, the first network runs again with random changes of its weights, as large as rounding to the
    stored dtypes may have made. The change of the outputs determines the allowed error. ``progress`` is called with
    (parameters read, parameters in total).

    Raises ConfigError if there is no configuration or if no inputs can be made for the network, PlanError if a
    checkpoint lacks weights of its network.
    """
    return prove_each(
        (first, second), roots=(root, root), model=model, inputs=inputs, seed=seed, task=task, memory=memory,
        progress=progress,
    )  # fmt: skip


def prove_each(
    sources: Pair[CheckpointLike], *, roots: Pair[str | None], model: Path | None = None, inputs: Path | None = None,
    seed: int = 0, task: str | None = None, memory: str | int | None = None, progress: Progress | None = None,
) -> Proof:  # fmt: skip
    """Do the same as ``prove``, but with a ``root`` of its own for each checkpoint (``roots``)."""
    import torch

    from .weights import other_shapes

    limit = memory_bytes(memory) or MEMORY
    with ExitStack() as stack, torch.inference_mode():
        networks = [stack.enter_context(closing(one)) for one in networks_of(sources, model, task=task, roots=roots)]
        if progress is not None:
            report(networks, progress)
        arguments, shared = _inputs(networks, inputs, seed)
        runs = [_run(network, given, network.read, limit) for network, given in zip(networks, arguments, strict=True)]
        proof = _compared(networks, arguments[0], runs, shared, limit)
    told = _folder_notes(folder_differences(*sources), proof, has_new_shapes=bool(other_shapes(networks)))
    return replace(proof, notes=(*proof.notes, *told))


def _folder_notes(notes: Sequence[str], proof: Proof, *, has_new_shapes: bool) -> Iterator[str]:
    """Yield the notes on how the folders differ, as they fit the verdict.

    If no network drifts, settings do not change the outputs for these inputs. If weights have new shapes
    (``has_new_shapes``), the settings differ because of the shapes, and there is no note on them.
    """
    for note in notes:
        if proof.verdict == DIFFERENT or not note.startswith(SETTINGS_DIFFER):
            yield note
        elif not has_new_shapes:
            yield reworded(note, note.replace(SETTINGS_DIFFER, SETTINGS_UNSEEN, 1))


def networks_of(
    sources: Pair[CheckpointLike], model: Path | None, *, task: str | None, roots: Pair[str | None]
) -> Iterator[Network]:
    """Yield the open networks of two checkpoints; the arguments are those of ``prove_each``."""
    from .network import configuration_of, open_network

    own = [configuration_of(path_of(source)) for source in sources]
    named = str(model) if model is not None else next(filter(None, own), "")
    for source, configuration, root in zip(sources, own, roots, strict=True):
        if not (configuration or named):
            open_checkpoint(source, root).close()  # a source that does not exist has no configuration either
            raise ConfigError(
                f"there is no config.json in the folder of {escape(shown(path_of(source)))}, so the architecture of "
                "the model is not known.",
                hint="Give the configuration: --model config.json, or a YAML file with model:.",
            )
        yield open_network(source, configuration or named, task=task, root=root)


def report(networks: list[Network], progress: Progress, *, runs: int = 0) -> None:
    """Make both networks report to ``progress`` how many parameters they have read.

    Both are read for each of ``runs`` networks between and at them, but for one at each end. Without ``runs``, the
    total counts the parameters of the first network twice, because this network may run twice.
    """
    total = 2 * _parameters(networks[0]) + _parameters(networks[1])
    if runs:
        total = 2 * (runs - 1) * _parameters(networks[0])
    done = 0

    def read(number: int) -> None:
        nonlocal done
        done = min(done + number, total)
        progress(done, total)

    for network in networks:
        network.progress = read


def _parameters(network: Network) -> int:
    return sum(one.numel() for one in network.module.parameters())


def _inputs(networks: list[Network], path: Path | None, seed: int) -> tuple[list[Inputs], SharedTokens | None]:
    """Return the inputs for both networks, and the tokens that both have (a SharedTokens).

    The tokens are None if both token lists are the same, or if the inputs are tensors from a file.
    """
    from .inputs import drawn_inputs, given_inputs
    from .vocabularies import shared_tokens, tokens_of

    modules = [network.module for network in networks]
    text = str(path) if path is not None else ""
    if text.lower().endswith(".safetensors"):
        given = given_inputs(text, modules[0], networks[0].folder)
        return [given, given], None
    shared = shared_tokens(modules, [tokens_of(network.tokens, network.folder) for network in networks])
    if path is not None:
        if text.lower().endswith(".txt"):
            _check_tokeniser(networks[0])
            if shared is not None and not networks[1].tokens:
                return [given_inputs(text, one.module, one.folder) for one in networks], shared
        found = given_inputs(text, modules[0], networks[0].folder)
    else:
        found = drawn_inputs(modules[0], seed, None if shared is None else shared.first.tolist())
    if shared is None:
        return [found, found], None
    ids = {name: shared.translated(value) for name, value in found.arguments.items() if name.endswith("input_ids")}
    return [found, replace(found, arguments={**found.arguments, **ids})], shared


def _check_tokeniser(network: Network) -> None:
    """Raise ConfigError if the tokeniser next to a GGUF file has other tokens than the file."""
    from .vocabularies import tokens_of

    beside = tokens_of((), network.folder)
    if network.tokens and beside and beside != network.tokens:
        raise ConfigError(
            f"the tokeniser in the folder of {escape(network.path)} has other tokens than this file.",
            hint="Put the tokeniser of the GGUF file next to it, or give tensors: --inputs FILE.safetensors.",
        )


def _run(network: Network, inputs: Inputs, read: ReadWeights, limit: int) -> Recording:
    """Run a network, and return the outputs of its blocks; the arguments are those of ``run_network``."""
    from .blocks import block_names, recorded

    with recorded(network.module, block_names(network.module)) as recording:
        run_network(network, inputs, limit, read)
    return recording


def run_network(network: Network, inputs: Inputs, limit: int, read: ReadWeights | None = None) -> None:
    """Run a network once; raises ConfigError if the network raises an exception.

    ``limit`` is the memory for parameters in bytes. ``read`` returns the values of parameters, by default those of the
    network's checkpoint.
    """
    from ...destinations.hf.model import offline
    from .streaming import streamed

    module = network.module
    with streamed(module, read or network.read, limit):
        try:
            with offline():
                module(**inputs.arguments_for(module))
        except CheckpointError:
            raise
        except Exception as error:  # a network is foreign code, which may raise anything
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "Allow all weights in memory at once: set --memory to the size of the model in float32."
            is_empty = "meta" in said
            raise ConfigError(
                f"the network of {escape(network.path)} does not run: {escape(said, 300)}",
                hint=hint if is_empty else inputs.hint,
            ) from error


def _compared(
    networks: list[Network], inputs: Inputs, runs: list[Recording], shared: SharedTokens | None, limit: int
) -> Proof:
    from .weights import beyond_rounding, changed_in, differing, not_reached, other_shapes

    notes = [*network_notes(networks, shared)]
    pairs = _pairs(runs[0].outputs, runs[1].outputs, shared, notes)
    notes += _output_notes(pairs)
    distances = {place: distance(*pair) for place, pair in pairs.items()}
    allowed: Mapping[Place, float] = {}
    if not all(one.same for one in distances.values()):
        allowed = _allowed(networks, inputs, runs[0].outputs, limit)
    results = {
        place: BlockResult(place[0], place[1], found, allowed.get(place, math.nan), place[2])
        for place, found in distances.items()
    }
    output = results.pop(MAIN)
    proof = Proof(
        described(networks[0]), described(networks[1]), inputs.said, tuple(results.values()), output,
        prediction=_prediction(networks, pairs[MAIN]), differing=len(differing(networks)),
        unused=tuple(not_reached(networks, runs[0])), notes=tuple(notes),
    )  # fmt: skip
    if proof.drift is None:
        return _with_unseen(proof, networks, shared, inputs)
    changed = changed_in(networks, proof.drift)
    inside = {one.key for one in changed}
    apart = (*other_shapes(networks, shared), *beyond_rounding(networks, shared))
    others = tuple(key for key in apart if key not in inside)
    return replace(proof, changed=changed, changed_elsewhere=others)


def _with_unseen(proof: Proof, networks: list[Network], shared: SharedTokens | None, inputs: Inputs) -> Proof:
    """Return ``proof`` with the tensors that differ by more than rounding explains, if the outputs do not show it.

    If the inputs cannot show the effect of such a tensor, for example because they do not use the values that differ,
    the tensor is in ``unused_differing`` of the result. A note lists the other tensors.
    """
    from .weights import beyond_rounding, hidden_embeddings, without_effect

    apart = list(beyond_rounding(networks, shared))
    alone = [key for key in proof.unused if key in apart]
    alone += [key for key in without_effect(apart, (*proof.blocks, proof.output)) if key not in alone]
    alone += hidden_embeddings(networks, shared, inputs.token_ids())
    hidden = [key for key in apart if key not in alone]
    notes = (*proof.notes, _hidden_note(hidden)) if hidden else proof.notes
    return replace(proof, unused_differing=tuple(alone), notes=notes)


def _output_notes(pairs: Mapping[Place, Pair[Tensor]]) -> Iterator[str]:
    """Yield a note if some numbers of the first network's output are not finite, because they cannot be compared.

    ``pairs`` has the outputs of both networks. Raises PlanError if the networks have no outputs of the same shape,
    ConfigError if no number of the first network's output is finite.
    """
    if MAIN not in pairs:
        raise PlanError("the networks have no output that can be compared.", hint="Give two networks of the same kind.")
    if not bool(pairs[MAIN][0].isfinite().any()):
        raise ConfigError(
            "the first network computes only NaN or infinite values for these inputs, so nothing can be compared.",
            hint="Find weights that are not finite with ckpt check, or give other inputs with --inputs.",
        )
    finite = float(pairs[MAIN][0].isfinite().double().mean())
    if finite < 1:
        yield f"{percent(1 - finite)} of the first network's output is NaN or infinite: this part is not compared"


def _pairs(first: Outputs, second: Outputs, shared: SharedTokens | None, notes: list[str]) -> dict[Place, Pair[Tensor]]:
    """Return {``Place`` in the first network: outputs of both networks there}, in the order of the run.

    The output of a block is left out if the other network lacks this block, or if the two outputs have different
    shapes; then a note is appended to ``notes``. If the networks have no block name in common, outputs are paired in
    the order of the run. If the token lists differ (``shared``), logits are reduced to the shared tokens.
    """
    from .blocks import OUTPUT

    common = [place for place in first if place in second]
    names = {place: place for place in common}
    if all(place[0] == OUTPUT for place in common) and len(first) == len(second):
        names = dict(zip(first, second, strict=True))
        notes.append("the blocks of the two networks have different names: they are compared in the order of the run")
    elif len(common) < max(len(first), len(second)):
        alone = [place[0] or "the output" for place in first.keys() ^ second.keys()]
        notes.append(
            f"only one of the networks has {listing(sorted(set(alone)), SHOWN, where='')}, so it is not compared"
        )
    found, other = {}, []
    for place, there in names.items():
        pair = first[place], second[there]
        pair = shared.columns(*pair) if shared is not None else pair
        if pair[0].shape == pair[1].shape:
            found[place] = pair
        elif place[0] != OUTPUT:
            other.append(place[0])
    if other:
        notes.append(
            "blocks that are not compared, because their outputs have different shapes: "
            f"{listing(list(dict.fromkeys(other)), SHOWN, where='')}"
        )
    return found


def network_notes(networks: list[Network], shared: SharedTokens | None) -> Iterator[str]:
    """Yield the notes on both networks; ``shared`` are the tokens that both have, if their token lists differ."""
    notes = [
        [without_prefix(f"{escape(one.path)}: ", note) for note in (*one.notes, *one.value_notes())] for one in networks
    ]
    yield from (with_prefix("both: ", note) for note in notes[0] if note in notes[1])
    for network, own, others in zip(networks, notes, reversed(notes), strict=True):
        yield from (with_prefix(f"{network.path}: ", note) for note in own if note not in others)
    if shared is not None:
        yield f"the token lists differ: only the {count(len(shared.first), 'token')} that are in both are compared"


def _allowed(networks: list[Network], inputs: Inputs, plain: Outputs, limit: int) -> dict[Place, float]:
    """Return the allowed error of each block's output in the first network: the error that rounding may cause.

    This error is measured by a second run of the first network. In this run, the tensors that differ between the
    networks are changed at random, as much as rounding may have changed them. ``plain`` has the outputs of the first
    run.
    """
    from .network import rounding_between
    from .weights import FACTOR, beyond_rounding, differing

    first, second = networks
    apart = set(differing(networks))
    factor = FACTOR if next(beyond_rounding(networks), None) is None else STRICT

    def moved(keys: Sequence[str]) -> dict[str, Tensor]:
        values = first.read(keys)
        for key in apart & values.keys():
            if values[key].is_floating_point():
                values[key] = rounding_between(first, second, key).moved(key, values[key])
        return values

    first.load_buffers(moved)
    try:
        found = _run(first, inputs, moved, limit).outputs
    finally:
        first.load_buffers()
    return {
        place: factor * (1 + FEW / math.sqrt(one.numel())) * distance(one, found[place]).error + FLOOR
        for place, one in plain.items() if place in found
    }  # fmt: skip


def described(network: Network) -> ProvedNetwork:
    """Return the path, the class, the size and the dtypes of a network."""
    return ProvedNetwork(network.path, type(network.module).__name__, _parameters(network), network.dtypes)


def _prediction(networks: list[Network], pair: tuple[Tensor, Tensor]) -> Prediction | None:
    names = [type(network.module).__name__ for network in networks]
    predicts = all(_PREDICTS.search(name) for name in names)
    return prediction(*pair) if predicts and pair[0].dim() > 1 and bool(pair[0].isfinite().all()) else None


def _hidden_note(keys: list[str]) -> str:
    what = count(len(keys), "tensor differs", "tensors differ")
    said = f"{what} by more than rounding explains, but the outputs for these inputs do not show it"
    return f"{said}: {listing(keys, SHOWN, where='')}"
