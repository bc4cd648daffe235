"""``inspect`` and ``init_config``: describe a checkpoint, and make a destination configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ..analysis.inspection import Inspection, TokenRows, inspection_of
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, place_of
from ..checkpoint.shard_notes import consumed_notes
from ..checkpoint.zero_notes import seen_zero_notes
from ..errors import ConfigError
from ..planning.keys.pattern import KeyPattern
from ..planning.keys.pattern_hints import unmatched
from ..planning.keys.renaming import KeyMatcher
from ..planning.keys.spelling import quoted
from ..planning.opaque_tensor_errors import opaque_error
from ..storage.read.base import File
from ..storage.read.uri import open_source
from ..util.text import escape
from .inputs.argument_types import CheckpointLike, Path, Patterns, checked
from .inputs.dequantising import weights_of, with_stated_shapes
from .lora.adapter_files import described_adapter

if TYPE_CHECKING:
    from ..analysis.model_summary import ModelSummary
    from .model_folder.folder import ModelFolder

__all__ = ["init_config", "initial_config", "inspect", "token_rows"]


@checked
def inspect(
    path: CheckpointLike,
    *,
    root: str | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    stats: bool = False,
    model_class: bool = False,
) -> Inspection:
    """Describe a checkpoint from its headers: every tensor, its ties, other entries of the file, an adapter's settings.

    For the folder of a model, notes report other files of the folder that contradict the weights. The field ``tokens``
    has the number of tokens and the number of embedding rows.

    ``include`` and ``exclude`` select keys. ``stats`` reads the values of the selected tensors, and decodes quantised
    tensors (``decoded``). With ``model_class``, keys and shapes are also compared with those of the transformers class
    in config.json, if transformers is installed; this takes seconds. Raises the errors of ``open_checkpoint``, and
    PatternError for a pattern that matches nothing.
    """
    with open_checkpoint(path, root) as checkpoint:
        from .model_folder.checks import contradictions  # imported after opening, because the import is slow
        from .model_folder.folder import model_folder

        folder = None if checkpoint.folder is None else model_folder(checkpoint)
        found = inspection_of(checkpoint, include, exclude, stats=stats, weights=weights_of(checkpoint))
        notes = (*checkpoint.odd_scale_notes, *seen_zero_notes([checkpoint], said=checkpoint.notes))
        if checkpoint.codes and not stats:
            from .inputs.sampled_scales import sampled_scale_notes

            notes = sampled_scale_notes(checkpoint)
        notes = (*notes, *contradictions(checkpoint, folder), *consumed_notes(checkpoint.open_files().values()))
        if folder is not None and is_of_diffusers(checkpoint, folder):
            from .checking.pipelines import pipeline_notes  # imports the layouts of networks

            notes += tuple(pipeline_notes(checkpoint))
        if model_class:
            from .class_check import comparison_notes

            notes += (*comparison_notes(checkpoint),)
        if checkpoint.header.stored:
            from .gguf.outputs import source_notes

            notes += source_notes(checkpoint)
        tokens = None if folder is None else token_rows(checkpoint, folder)
        model = model_summary(checkpoint, folder)
        codes = with_stated_shapes(checkpoint, found.codes)
        return replace(
            found,
            codes=codes,
            adapter=described_adapter(checkpoint),
            tokens=tokens,
            model=model,
            notes=(*found.notes, *notes),
        )


def is_of_diffusers(checkpoint: Checkpoint, folder: ModelFolder) -> bool:
    """Return whether a checkpoint is a pipeline of diffusers, or the folder of one of its networks."""
    return checkpoint.format.startswith("diffusers pipeline") or "_class_name" in folder.config


def model_summary(checkpoint: Checkpoint, folder: ModelFolder | None) -> ModelSummary | None:
    """Return the summary of a model from the metadata of its file (GGUF, whisper.cpp), or from its config.json.

    If there is neither, the summary has the family and the sizes that keys and shapes show; None if they show no
    layers, for a single shard of a model, and for an adapter. For an adapter with the config.json of its base, the
    summary does not count the adapter's weights.
    """
    from ..analysis.model_summary import summary_of_config, summary_of_metadata, with_weights

    codes = with_stated_shapes(checkpoint, checkpoint.codes)
    of_file = summary_of_metadata(checkpoint.format, checkpoint.metadata) is not None or checkpoint.header.stored
    config = {} if of_file or folder is None else folder.config
    found = summary_of_config(config) if config else None
    is_adapter = described_adapter(checkpoint) is not None
    if found is not None:
        return found if is_adapter else with_weights(found, checkpoint, checkpoint.ties, codes)
    if is_adapter:
        return None
    from ..analysis.model_by_keys import summary_of_file

    return summary_of_file(checkpoint, codes)


def token_rows(checkpoint: Checkpoint, folder: ModelFolder) -> TokenRows | None:
    """Return the number of tokens in a folder's tokeniser, and the number of rows for tokens in the weights.

    If several tensors have a row for each token, such as embedding and output layer, the largest number of rows is
    returned. Returns None if one of the two numbers is not known.
    """
    from .model_folder.codes.logical_tensors import logical_tensors
    from .model_folder.weights.embedding_checks import of_tokens
    from .model_folder.weights.row_checks import token_count
    from .model_folder.weights.shape_checks import DescribedTensor

    tokens = 0 if checkpoint.elsewhere else token_count(folder, folder)
    if not tokens:
        return None
    tensors = [DescribedTensor(key, info.dtype, info.shape) for key, info in checkpoint.items()]
    found = of_tokens(logical_tensors(tensors, folder.config, checkpoint.codes), folder)
    if not found:
        return None
    most = max(found, key=lambda one: one.shape[0])
    return TokenRows(folder.vocabulary, tokens, most.key, most.shape[0])


@checked
def init_config(
    path: CheckpointLike,
    *,
    root: str | None = None,
    task: str | None = None,
    output: Path | None = None,
    force: bool = False,
    wait: float | None = None,
) -> str:
    """Return a destination configuration for a checkpoint or a toolkit's configuration.

    If ``output`` is given, the configuration is also written to this file. The text is YAML, or JSON if ``output`` ends
    in ``.json``; ``wait`` is as in ``apply``.

    For a checkpoint, the configuration lists every tensor. Headers contain no initialisers, so each tensor gets the
    initialiser that its name and shape suggest; review these initialisers. If name and shape suggest none, as for
    buffers and parts of quantised tensors, the initialiser is ``like``, which keeps the values of the checkpoint. The
    notes of ``inspect`` are comments at the beginning of YAML. For a toolkit's configuration (ESPnet's
    ``config.yaml``), the result refers to that file, and lists the parameters that it freezes in ``train:``. ``task``
    is the ESPnet task, if the configuration fits several tasks. Raises ConfigError for ``root`` with a configuration,
    or ``task`` with a checkpoint; OutputError if the output exists and ``force`` is not set; and the errors of
    ``open_checkpoint``.
    """
    return initial_config(path, root=root, task=task, output=output, force=force, wait=wait)[0]


def initial_config(
    path: CheckpointLike,
    *,
    root: str | None = None,
    task: str | None = None,
    output: Path | None = None,
    force: bool = False,
    wait: float | None = None,
) -> tuple[str, list[str]]:
    """Return the text that ``init_config`` returns, and the notes on the checkpoint.

    Arguments and errors are those of ``init_config``. A toolkit's configuration has no notes. JSON has no comments, so
    lines that would be comments in YAML are notes, too.
    """
    from ..destinations._load import is_configuration
    from .inputs.inputs import notes_on
    from .model_folder.checks import contradictions

    source, target = place_of(path), None if output is None else os.fspath(output)
    if is_configuration(source):
        if root is not None:
            raise ConfigError("--root is only for checkpoints, and this is a configuration.", hint="Leave --root out.")
        document, said = _adopted(source, target, task)
        with closing(cast("File", open_source(source))) as file:
            text = _written(document, said, target, [file], force=force, wait=wait)
            return text, said if _is_json(target) else []
    if task is not None:
        raise ConfigError("--task is only for configurations of ESPnet.", hint="Leave --task out.")
    with open_checkpoint(path, root) as checkpoint:
        document = {"model": _declared(checkpoint, target)}
        notes = [*notes_on(checkpoint, 1), *contradictions(checkpoint)]
        kept = (
            [f"tensors with init: like keep the values of {escape(checkpoint.path)}"]
            if "values" in document["model"]
            else []
        )
        said = [*kept, *(f"note: {note}" for note in notes)]
        text = _written(document, said, target, checkpoint.open_files().values(), force=force, wait=wait)
        return text, [*notes, *(kept if _is_json(target) else ())]


def _declared(checkpoint: Checkpoint, output: str | None) -> dict[str, Any]:
    from ..destinations._declare import declare

    opaque = [key for key, info in checkpoint.items() if info.opaque]
    if opaque:
        info = checkpoint[opaque[0]]
        what = "cannot be described in a configuration"
        leave = f"First leave this tensor out: ckpt filter --exclude {escape(opaque[0])}."
        raise opaque_error(opaque[0], checkpoint.path, info, what, verb="init", leave=leave, details=opaque)
    coded = {key for one in checkpoint.codes.tensors for key in one.keys}
    return declare(checkpoint, checkpoint.ties, coded, {} if checkpoint.in_memory else _values(checkpoint, output))


def _values(checkpoint: Checkpoint, output: str | None) -> dict[str, str]:
    """Return the fields ``values`` and ``root`` of the configuration: path of the checkpoint, path of its state dict.

    The path of the checkpoint is relative to the folder of the output. ``root`` is left out if it is empty.
    """
    path = checkpoint.path
    if "://" not in path:
        path = os.path.relpath(path, os.path.dirname(output or "") or os.curdir)
    return {"values": path, **({"root": checkpoint.root} if checkpoint.root else {})}


def _adopted(path: str, output: str | None, task: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return a destination configuration that refers to a toolkit's configuration, and comment lines for its beginning.

    ``path`` is the path of the toolkit's configuration.
    """
    from ..destinations._load import adopt

    document, target = adopt(path, os.path.dirname(output or ""), task)
    train = document.get("train", {})
    said = [f"ran {code}" for code in target.ran]
    if "freeze" in train:
        train["freeze"] = [_pattern(name, list(target.tensors)) for name in train["freeze"]]
    if "data" in train:
        said.append("train.data has paths of files that you must provide: the manifests and the model's token list")
    elif train:
        frozen = ", ".join(train["freeze"])
        said.append(
            "ckpt train has no task for this model, so the section train: is left out; the toolkit's configuration "
            f"freezes {frozen}"
        )
        del document["train"]
    return document, said


def _pattern(name: str, keys: list[str]) -> str:
    """Return the pattern for ``name``, an entry of ESPnet's ``freeze_param``: a key, or a module with all its keys.

    Raises PatternError if it matches none of ``keys``.
    """
    text = quoted(name)
    pattern = KeyPattern.given(text, "freeze_param ")
    if not KeyMatcher([pattern]).hits(keys)[0]:
        raise unmatched(f"freeze_param {escape(name)}", pattern, keys, "destination")
    return text


def _is_json(output: str | None) -> bool:
    """Return whether a configuration is written as JSON, not YAML."""
    return output is not None and output.lower().endswith(".json")


def _written(
    document: dict[str, Any],
    said: Sequence[str],
    output: str | None,
    inputs: Iterable[File],
    *,
    force: bool,
    wait: float | None,
) -> str:
    from ..storage.yaml_text import dump_yaml

    if _is_json(output):
        text = json.dumps(document, indent=2) + "\n"
    else:
        text = "".join(f"# {line}\n" for line in said) + dump_yaml(document)
    if output is not None:
        from ..storage.write.staged_file import write_text

        write_text(output, text, inputs=inputs, force=force, wait=wait)
    return text
