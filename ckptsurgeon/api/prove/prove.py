"""``prove``: runs two networks on the same inputs, and says whether their outputs are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ...analysis.prove.proof import DIFFERENT, Proof
from ...checkpoint.opening import open_checkpoint, path_of
from ...engine.compute.compute import memory_bytes
from ...errors import ConfigError
from ...storage.read.uri import shown
from ...util.notes import reworded
from ...util.text import escape
from ..diff import folder_differences
from ..inputs.argument_types import CheckpointLike, Path, Progress, checked
from ..model_folder.config_differences import DIFFERENT as SETTINGS_DIFFER
from .comparison import compared, parameters_of
from .running import recorded_run

if TYPE_CHECKING:
    from .inputs import Inputs
    from .network import Network
    from .vocabularies import SharedTokens

__all__ = ["configuration_notes", "networks_of", "prove", "prove_each", "report"]

T = TypeVar("T")
Pair: TypeAlias = tuple[T, T]

MEMORY = 1 << 30
"""The default of ``memory``, in bytes."""
_ONE_RUNS = "The other network runs on these inputs. Compare the sizes in the two config.json files."
"""The hint if only the second network does not run."""
SETTINGS_UNSEEN = "the config.json files differ in settings that do not change the outputs for these inputs"


@checked
def prove(
    first: CheckpointLike, second: CheckpointLike, *, model: Path | None = None, inputs: Path | None = None,
    seed: int = 0, task: str | None = None, root: str | None = None, memory: str | int | None = None,
    progress: Progress | None = None,
) -> Proof:  # fmt: skip
    """Run the networks of two checkpoints on the same inputs, and compare their outputs after each block.

    The network of a checkpoint is built from the config.json in its folder. ``model`` is the configuration for a
    checkpoint without a config.json, by default that of the other checkpoint; ``task`` is the ESPnet task, if that
    configuration fits several tasks. ``root`` is the dotted path of the state dict in both checkpoints. ``inputs`` is a
    file: arguments of ``forward`` by name (.safetensors), lines of text (.txt), audio (.wav, .flac, .ogg), an image, or
    a folder of images or sounds. By default, random inputs are drawn with ``seed``. Both networks run in float32,
    whatever the stored dtypes. Weights are in memory only while their module runs, up to ``memory`` (by default 1 GiB)
    at once.

    If the outputs differ, the first network runs again with random changes of its weights, as large as rounding to the
    stored dtypes may have made. The change of the outputs determines the allowed error. ``progress`` is called with
    (parameters read, parameters in total).

    Raises ConfigError if there is no configuration or if no inputs can be made for the network, PlanError if a
    checkpoint lacks weights of its network.
    """
    proof = prove_each(
        (first, second), roots=(root, root), model=model, inputs=inputs, seed=seed, task=task, memory=memory,
        progress=progress,
    )  # fmt: skip
    return replace(proof, notes=(*proof.notes, *configuration_notes(first, second, model, root)))


def configuration_notes(
    first: CheckpointLike, second: CheckpointLike, model: Path | None, root: str | None
) -> Iterator[str]:
    """Yield a note if the configuration ``model`` is not used, or that of one checkpoint is used for both."""
    from .opening import configuration_of

    without = [one for one in (first, second) if not configuration_of(path_of(one), root)]
    if model is not None and not without:
        yield "both checkpoints have a config.json, so --model is not used"
    elif model is None and len(without) == 1:
        owner = second if without[0] is first else first
        yield (
            f"{escape(shown(path_of(without[0])))} has no config.json: its network is built with the configuration of "
            f"{escape(shown(path_of(owner)))}"
        )


def prove_each(
    sources: Pair[CheckpointLike], *, roots: Pair[str | None], model: Path | None = None, inputs: Path | None = None,
    seed: int = 0, task: str | None = None, memory: str | int | None = None, progress: Progress | None = None,
) -> Proof:  # fmt: skip
    """Do the same as ``prove``, but with a separate path of the state dict for each checkpoint (``roots``)."""
    import torch

    from .weights import other_shapes

    limit = memory_bytes(memory) or MEMORY
    with ExitStack() as stack, torch.inference_mode():
        networks = [stack.enter_context(closing(one)) for one in networks_of(sources, model, task=task, roots=roots)]
        if progress is not None:
            report(networks, progress)
        arguments, shared = _inputs(networks, inputs, seed)
        second = replace(arguments[1], hint=_ONE_RUNS)
        runs = [
            recorded_run(network, given, network.read, limit)
            for network, given in zip(networks, (arguments[0], second), strict=True)
        ]
        proof = compared(networks, arguments[0], runs, shared, limit)
    told = _folder_notes(folder_differences(*sources), proof, has_new_shapes=bool(other_shapes(networks)))
    return replace(proof, notes=(*proof.notes, *told))


def _folder_notes(notes: Sequence[str], proof: Proof, *, has_new_shapes: bool) -> Iterator[str]:
    """Yield the notes on differences of the two folders, worded to fit the verdict of ``proof``.

    If the outputs do not differ, the note on settings says that they do not change the outputs for these inputs. If, in
    addition, weights have new shapes (``has_new_shapes``), there is no note on settings, because they differ due to the
    shapes.
    """
    for note in notes:
        if proof.verdict == DIFFERENT or not note.startswith(SETTINGS_DIFFER):
            yield note
        elif not has_new_shapes:
            begin = next(one for one in SETTINGS_DIFFER if note.startswith(one))
            yield reworded(note, note.replace(begin, SETTINGS_UNSEEN, 1))


def networks_of(
    sources: Pair[CheckpointLike], model: Path | None, *, task: str | None, roots: Pair[str | None]
) -> Iterator[Network]:
    """Yield the open networks of two checkpoints; the arguments are those of ``prove_each``.

    Raises ConfigError if there is no configuration.
    """
    from .opening import configuration_of, no_configuration, open_network

    own = [configuration_of(path_of(source), root) for source, root in zip(sources, roots, strict=True)]
    named = str(model) if model is not None else next(filter(None, own), "")
    for source, configuration, root in zip(sources, own, roots, strict=True):
        if not (configuration or named):
            open_checkpoint(source, root).close()  # a source that does not exist has no configuration either
            hint = "Give the configuration: --model config.json, or a YAML file with model:."
            raise no_configuration(path_of(source), "the architecture of the model", hint)
        yield open_network(source, configuration or named, task=task, root=root)


def report(networks: list[Network], progress: Progress, *, runs: int = 0) -> None:
    """Make both networks report to ``progress`` how many parameters they have read.

    The total depends on what runs. For ``prove`` (``runs`` is 0), the parameters of the first network count twice,
    because it may run twice. For a loss barrier, ``runs`` networks run, on the line from the first network to the
    second. Each of them reads the parameters of both networks, except the first and the last, which are the two
    networks themselves.
    """
    total = 2 * parameters_of(networks[0]) + parameters_of(networks[1])
    if runs:
        total = 2 * (runs - 1) * parameters_of(networks[0])
    done = 0

    def read(number: int) -> None:
        nonlocal done
        done = min(done + number, total)
        progress(done, total)

    for network in networks:
        network.progress = read


def _inputs(networks: list[Network], path: Path | None, seed: int) -> tuple[list[Inputs], SharedTokens | None]:
    """Return the inputs for both networks, and the tokens that are in both vocabularies (a SharedTokens).

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
            f"the tokeniser next to {escape(network.path)} has other tokens than this GGUF file.",
            hint="Put the tokeniser of this model next to the GGUF file, or give tensors: --inputs FILE.safetensors.",
        )
