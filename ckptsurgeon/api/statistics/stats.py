"""``stats``: runs a network, and stores statistics of its channels, heads, experts and layers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError
from ...planning.keys.pattern_hints import chosen_keys
from ...planning.plan.plan import Plan
from ...storage.read.uri import shown
from ...util.text import count, escape, listing
from ..inputs.argument_types import Parameters, Path, Patterns, Progress, Rules, checked
from .experts import ExpertSums, are_experts
from .gram_matrices import GRAM, GramSums, chosen_from, is_linear, positions, real_positions, rows_of_inputs
from .magnitudes import MAGNITUDES, MagnitudeSums
from .stored import INFLUENCE, INPUTS, LOAD, NOTE, OF_RANDOM, RANDOM
from .weight_prints import weight_prints

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    layer's inputs (``K.gram``, float32): the mean of x x^T over all positions, summed in double precision in temporary
    files (8 bytes for each element), because all matrices together may not fit in memory. With ``fisher``, each
    parameter K gets the diagonal of its empirical Fisher information (``K.fisher``, float32): the mean over the
    examples (rows of the inputs) of the squared gradients of the loss, which takes 12 bytes of memory for each
    parameter. The loss is the model's own if the inputs have ``labels``. Without labels, it is the loss of the next
    token for causal language models, and for other models the loss for labels that are drawn from the model's own
    prediction with ``seed`` (https://arxiv.org/abs/2111.09832). With ``magnitudes``, each weight K of a linear layer
    gets the mean magnitude of each of the layer's inputs (``K.magnitudes``, float32; https://arxiv.org/abs/2502.02421).
    ``include`` and ``exclude`` choose the tensors for which these three are computed.

    ``merged_with`` maps each of the other models of a merge to its inputs, for ``merge`` by "regmean_plusplus". With
    ``gram``, the Gram matrices of all models are then of the inputs that layers get in the merged model: one block
    after the other is merged while all models run, with ``parameters`` of this method (weight, alpha, ridge). The file
    has the statistics of all models.

    ``inputs``, ``model``, ``seed``, ``root``, ``memory`` and ``progress`` are as in ``prove``: without ``inputs``,
    random inputs are drawn; statistics of them say little about texts, images or sounds. Weights are in memory while
    their module runs. Raises ConfigError if there is no configuration, or the network does not run on these inputs.
    """
    import torch

    from ..edit import convert
    from ..inputs.memory_budget import memory_bytes
    from ..model_folder.checks import notes_beside
    from ..prove.inputs import drawn_inputs, given_inputs
    from ..prove.network import configuration_of, open_network
    from ..prove.prove import run_network

    for_merges = gram or fisher or magnitudes
    if (include or exclude) and not for_merges:
        raise ConfigError(
            "--include and --exclude choose tensors for --gram, --fisher and --magnitudes, but none of them is given.",
            hint="Leave them out, or add --gram, --fisher or --magnitudes.",
        )
    if inputs is not None and not os.fspath(inputs):
        raise ConfigError("--inputs is empty.", hint="Give a file, or leave it out: then the inputs are random.")
    path, limit = os.fspath(source), memory_bytes(memory) or MEMORY
    if merged_with or parameters:
        from ..merge.merged_statistics import merged_statistics

        _check_merged(merged_with, gram=gram, others=fisher or magnitudes)
        return merged_statistics(
            path, inputs, merged_with, parameters=parameters, include=include, exclude=exclude, model=model, seed=seed,
            root=root, limit=limit, progress=progress,
        )  # fmt: skip
    configuration = os.fspath(model) if model is not None else configuration_of(path)
    if not configuration:
        open_checkpoint(path, root).close()  # if it does not exist, that is the error
        raise ConfigError(
            f"there is no config.json in the folder of {escape(shown(path))}, so the network is not known.",
            hint="Give the configuration: --model config.json.",
        )
    said: dict[str, Any] = {}
    with closing(open_network(path, configuration, task=None, root=root)) as network, torch.no_grad():
        if progress is not None:
            total, done = sum(one.numel() for one in network.module.parameters()), [0]
            total += total * fisher
            network.progress = lambda number: progress(_added(done, number), total)
        if for_merges and network.is_converted:
            raise ConfigError(
                "--gram, --fisher and --magnitudes are computed for the tensors of the network, but "
                f"{escape(shown(path))} has different tensors.",
                hint=f"Convert the checkpoint first: ckpt convert {escape(shown(path))} --layout transformers -o "
                "converted/.",
            )
        chosen, notes = _chosen(network, include, exclude)
        grams = GramSums(network, chosen if gram else frozenset())
        means = MagnitudeSums(network, chosen if magnitudes else frozenset())
        given = (
            drawn_inputs(network.module, seed)
            if inputs is None
            else given_inputs(os.fspath(inputs), network.module, network.folder)
        )
        mask = given.arguments.get("attention_mask")
        with _collected(network.module, mask) as found, ExitStack() as more:
            if gram:
                grams.prepare()
                more.enter_context(grams.collecting(rows_of_inputs(mask)))
            if magnitudes:
                more.enter_context(means.collecting(rows_of_inputs(mask)))
            run_network(network, given, limit)
        values = {key: value for name, one in found.items() for key, value in one.by_key(name)}
        if magnitudes:
            values |= means.values()
            said[MAGNITUDES] = means.said
            _check_runs(means.said, MAGNITUDES, fisher=fisher)
        if gram:
            values |= grams.values()
            said[GRAM] = grams.said
            _check_runs(grams.said, GRAM, fisher=fisher)
        if fisher:
            from .fisher import FISHER, fisher_of

            information = fisher_of(network, given, chosen, seed=seed, limit=limit)
            values |= information.values
            said[FISHER] = information.said
        found_in_values = network.value_notes()
    if not values:
        raise ConfigError(
            f"with these inputs, no linear layer of the network of {escape(shown(path))} runs.",
            hint="Give other inputs with --inputs.",
        )
    with open_checkpoint(path, root) as opened:
        said |= {
            "model": os.path.basename(path.rstrip("/")),
            **weight_prints(opened),
            "inputs": given.said,
            RANDOM: inputs is None,
        }
        of_model = dict.fromkeys((*opened.notes, *notes_beside(opened), *found_in_values))
    plan = convert(values, dtype="float32" if gram else None, metadata={NOTE: json.dumps(said, sort_keys=True)})
    return replace(plan, notes=(*of_model, *notes, *_notes(said), *plan.notes))


def _check_merged(merged_with: Rules, *, gram: bool, others: bool) -> None:
    """Raise ConfigError for arguments that do not go together with ``merged_with``."""
    if not merged_with:
        raise ConfigError("--param is only for --merged-with.", hint="Leave it out.")
    if not gram or others:
        raise ConfigError(
            "--merged-with is for --gram alone.", hint="Add --gram; make other statistics with another command."
        )


def _check_runs(said: Mapping[str, Any], kind: str, *, fisher: bool) -> None:
    """Raise ConfigError if there are no statistics of the kind ``kind``; with ``fisher``, the file has others."""
    if not said["rows"] and not fisher:
        raise ConfigError(
            f"--{kind}: with these inputs, none of the chosen linear layers runs.",
            hint="Choose other layers with --include and --exclude, or give other inputs.",
        )


def _chosen(network: Network, include: Patterns, exclude: Patterns) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the keys of the weights that ``include`` and ``exclude`` choose, and notes on patterns."""
    found = chosen_keys(chosen_from(network), include, exclude)
    return frozenset(found.keys), found.notes


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


def _added(done: list[int], number: int) -> int:
    done[0] += number
    return done[0]


@dataclass
class _Mean:
    """A running mean: the sum of the values, and the number of positions that were added."""

    sum: Any = None
    count: int = 0

    def add(self, values: Tensor, count: int) -> None:
        self.sum = values if self.sum is None else self.sum + values
        self.count += count

    def by_key(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the key ``name`` and the mean, if anything was added."""
        if self.count:
            yield name, (self.sum / self.count).float()


class _OfExperts(ExpertSums):
    def by_key(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (key, statistics) for a module with the weights of all experts."""
        yield from ((f"{name}.{last}", value) for last, value in self.results().items())


@contextmanager
def _collected(model: nn.Module, mask: Tensor | None) -> Iterator[Mapping[str, _Mean | _OfExperts]]:
    """Yield {key: statistics}, which is filled when the network runs in the ``with`` block.

    Positions where ``mask`` is 0 are padding, and do not count.
    """
    from ..prove.blocks import block_names

    found: dict[str, _Mean | _OfExperts] = {}
    real = real_positions(mask)
    layers = {name for name in block_names(model) if name.rpartition(".")[2].isdigit()}
    with ExitStack() as hooks:

        def watch(module: nn.Module, key: str, take: Callable[..., None], of: type[_Mean | _OfExperts] = _Mean) -> None:
            mean = found.setdefault(key, of())
            hooks.callback(module.register_forward_hook(partial(take, mean, real), with_kwargs=True).remove)

        for name, module in model.named_modules():
            kind = type(module).__name__
            if is_linear(module):
                watch(module, f"{name}.{INPUTS}", _take_inputs)
            if "Router" in kind:
                watch(module, f"{name}.{LOAD}", _take_load)
            if are_experts(module):
                watch(module, name, _take_experts, _OfExperts)
            if name in layers:
                watch(module, f"{name}.{INFLUENCE}", _take_influence)
        yield found


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _take_inputs(mean: _Mean, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    flat = positions(_first(args, kwargs), real).double()
    mean.add(flat.square().sum(0), flat.shape[0])


def _take_load(mean: _Mean, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    import torch

    parts = [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, torch.Tensor)]
    chosen = next((one for one in parts if not one.is_floating_point()), None)
    weight = getattr(module, "weight", None)
    if chosen is not None and weight is not None:
        flat = positions(chosen, real)
        mean.add(torch.bincount(flat.reshape(-1), minlength=weight.shape[0]).double(), flat.shape[0])


def _take_experts(
    sums: _OfExperts, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    sums.add(module, [*args, *kwargs.values()], output, real)


def _take_influence(mean: _Mean, real: Tensor | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    import torch

    before = _first(args, kwargs)
    after = output[0] if isinstance(output, tuple) else output
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.shape == after.shape:
        first, last = (positions(one, real).double() for one in (before, after))
        cosines = torch.cosine_similarity(first, last, dim=-1)
        mean.add((1 - cosines).sum(), cosines.numel())
