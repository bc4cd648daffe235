"""``average``: makes one checkpoint from several checkpoints of the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, path_of
from ..engine.inputs import PlanInputs
from ..errors import ConfigError, FormatError
from ..planning.average import decay_weights, ema_weights, plan_average, running_weights
from ..planning.encoding_checks import with_possible_codes_said
from ..planning.plan.plan import Plan
from ..planning.transplant.by_place import PLACE, is_of_tokens
from ..util.text import escape
from .inputs.argument_types import CheckpointLike, checked, plain_arguments
from .inputs.encoding import as_stored, check_encoding, encoding_notes, read_as
from .inputs.inputs import KeptOpen, names_of, plan_source, source_notes, view_of
from .inputs.kept_codes import keeping_codes
from .inputs.metadata import check_metadata, with_metadata
from .inputs.older_names import older_names_said
from .inputs.reopening import with_model_files_pinned
from .inputs.sampled_parts import SAME, twice_notes, unrelated_notes
from .inputs.stored_recipes import counted_notes
from .model_folder.checks import with_sources_said, without_repeats
from .model_folder.codes.output_settings import with_settings
from .model_folder.config_differences import with_config_said
from .model_folder.merged import merged_folder
from .model_folder.quantised import folder_of
from .model_folder.recorded_tokens import with_other_lists_said
from .model_folder.rows_by_place import AVERAGED, check_place, checked_rows

__all__ = ["average"]


@checked
def average(
    sources: Sequence[CheckpointLike],
    *,
    ema: float | None = None,
    decay: str | None = None,
    running: str | None = None,
    int_buffers: str = "last",
    vocab: str | None = None,
    encoding: str = "keep",
    unwrap: bool = False,
    root: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Plan:
    """Plan the average of checkpoints of one model: the mean or, with a decay ``ema``, the exponential moving average.

    ``decay`` ("linear", "1-sqrt" or "cosine") is for checkpoints of a run with a constant learning rate: the weights of
    the average replace a decay of the learning rate (https://arxiv.org/abs/2507.17634). With ``running``, the sources
    are two running averages of one run, such as icefall's ``model_avg``. The output is then the average over the steps
    between them. ``running`` is the entry of their files with the number of steps (``batch_idx_train``). Only one of
    ``ema``, ``decay`` and ``running`` can be given; with any of them, ``sources`` must be in order, the oldest first.

    Floating and complex tensors are averaged in double precision and keep the dtype of the first checkpoint. Integers
    and booleans, which have no mean, come from the "last" or the "first" checkpoint, or are the "max" of all
    (``int_buffers``). Folders whose tokenisers differ are averaged only if ``vocab`` is "place": then row n of each
    embedding is averaged with row n of the other embeddings, whatever their tokens. Quantised checkpoints are decoded
    for the average; the mean is quantised like the first checkpoint, or stored as plain numbers if ``encoding`` is
    "dequantize". ``metadata`` sets entries of the metadata, as in ``convert``. ``unwrap`` removes a wrapper's prefix,
    such as ``module.``, from all keys; ``root`` is the dotted path of the state dict in each file (``model.ema``).

    Raises ConfigError for fewer than two checkpoints, and for files without the entry ``running``; PlanError if keys,
    shapes or kinds of numbers differ; and the errors of ``open_checkpoint``.
    """
    if metadata:
        check_metadata(metadata)
    check_encoding(encoding)
    check_place(vocab, "row n is always averaged with row n.", AVERAGED)
    paths = list(map(path_of, sources))
    weights = _weights(ema, decay, running, len(paths))
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        for place, source in enumerate(sources, 1):
            try:
                opened.append(open_checkpoint(source, root, unwrap=unwrap, called=f"source {place}"))
            except FormatError as error:
                if error.rule == "several checkpoints":
                    error.add_hint("To average several, give the path of each.")
                raise
            opened[-1] = read_as(opened[-1], encoding)
        if running is not None:
            weights = running_weights([_steps_of(one, running) for one in opened])
        stored = as_stored(opened, encoding)
        views = [view_of(plan_source(n, c), c) for n, c in zip(names_of(paths), opened, strict=True)]
        with older_names_said(sources, root):
            plan = plan_average(
                views,
                weights=weights,
                int_buffers=int_buffers,
                arguments={
                    **plain_arguments(
                        int_buffers=int_buffers, vocab=vocab, unwrap=unwrap, root=root, encoding=encoding
                    ),
                    **_said(ema, decay, running),
                },
                metadata=stored[0].metadata if stored else {},
                notes=_notes(opened, encoding, unwrap=unwrap),
            )
        plan, opened[:] = keeping_codes(plan, opened, encoding)
        plan = with_possible_codes_said(plan, [one.codes for one in opened])
        plan = with_settings(plan, opened, 0)
        plan = _with_files(plan, stored, opened[0], by_place=vocab == PLACE)
    plan = with_metadata(plan, metadata) if metadata else plan
    return replace(plan, inputs=PlanInputs(tuple(opened), None))


def _notes(opened: Sequence[Checkpoint], encoding: str, *, unwrap: bool) -> list[str]:
    """Return the notes on the checkpoints to average; ``encoding`` and ``unwrap`` are the arguments of ``average``."""
    return [
        *source_notes(opened, unwrap=unwrap),
        *twice_notes(opened),
        *(unrelated_notes(opened[0], opened[1:], SAME) if opened else ()),
        *counted_notes(opened),
        *encoding_notes(opened, encoding),
    ]


def _with_files(plan: Plan, stored: Sequence[Checkpoint], first: Checkpoint, *, by_place: bool) -> Plan:
    """Return ``plan`` with config.json and tokeniser for an output folder, and notes on the files of the sources.

    ``stored`` are the sources as they are stored, and ``first`` is the first source, decoded if it is quantised. Raises
    PlanError if row n of an embedding belongs to different tokens in the sources, unless ``by_place`` is set.
    """
    folders = [folder_of(one) for one in stored]
    plan = with_sources_said(with_config_said(plan, folders), stored, folders)
    plan = without_repeats(merged_folder(plan, folders[0], folders), first)
    plan = checked_rows(plan, folders, remedy=AVERAGED, allowed=by_place)
    if not by_place and any(is_of_tokens(step.key, len(step.shape)) for step in plan.steps):
        plan = with_other_lists_said(plan, stored)
    return with_model_files_pinned(plan, folders)


def _weights(ema: float | None, decay: str | None, running: str | None, number: int) -> tuple[float, ...]:
    """Return the weights of ``number`` checkpoints; () for equal weights, and if ``running`` is given.

    The weights for ``running`` are computed later, from entries of the files.

    Raises ConfigError if several of the options are given, or one is not valid.
    """
    given = {"--ema": ema, "--decay": decay, "--running": running}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(
            f"{' and '.join(names)} cannot be used together.",
            hint="Use only one of them: each determines the weights of the checkpoints.",
        )
    if number < 2:
        return ()
    if decay is not None:
        return decay_weights(decay, number)
    return ema_weights(ema, number) if ema is not None else ()


def _steps_of(checkpoint: Checkpoint, name: str) -> int:
    """Return the number of training steps that the entry ``name`` of a checkpoint's file records.

    Raises ConfigError if the file has no entry of this name, or if the entry is not a whole number.
    """
    value = next((one.value for one in checkpoint.extras if one.key == name), None)
    if type(value) is not int:
        raise ConfigError(
            f"--running {escape(name)}: {escape(checkpoint.path)} has no entry {escape(name)} with a whole number.",
            hint="Name the entry that counts the training steps; ckpt inspect lists the entries of a file. In "
            "checkpoints of icefall it is batch_idx_train.",
        )
    return value


def _said(ema: float | None, decay: str | None, running: str | None) -> dict[str, float | str]:
    given = {"ema": ema, "decay": decay, "running": running}
    return {name: value for name, value in given.items() if value is not None}
