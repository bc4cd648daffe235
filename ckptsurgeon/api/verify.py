"""``verify``: compares an output with its recipe and sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.in_memory import path_of
from ..checkpoint.opening import open_checkpoint
from ..errors import ConfigError, FormatError, VerifyError
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import Failure, Note, Verification
from ..util.text import escape
from .inputs.argument_types import CheckpointLike, Path, Progress
from .inputs.reopening import changed_model_files, find_sources, read_plan

__all__ = ["verify"]


def verify(
    output: CheckpointLike,
    *,
    plan: Plan | Path | None = None,
    sources: Mapping[str, CheckpointLike] | None = None,
    plugin: Path | None = None,
    sample: int | None = None,
    key: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check an output against its recipe (and ``plan``): checksums, then each copied or computed tensor bit for bit.

    ``sources`` maps names of sources to a new path or to the tensors; sources that were in memory (``<dict>``) must be
    given in this way. ``plugin`` is a Python file with your own merge methods; this file is run. Tensors whose source
    does not exist any more are reported as NOT COMPARED. ``sample`` is the number of merged tensors to compute again;
    None is all. ``key`` is the file of a public or private key: then every file must have a valid signature by this
    key, and the folder must contain no other files. If the output is too damaged to be opened, the verification
    has failed; no error is raised. Raises SourceError if the output is missing, ConfigError if there is neither recipe
    nor plan.
    """
    from ..analysis.verify.expected import expected_of_plan, expected_of_recipe
    from ..analysis.verify.verify import verify_output
    from ..engine.context import MergeContext
    from ..methods.merge._registry import load_plugin
    from ..planning.recipe import folder_of_recipe
    from ..planning.recipe_text import parse_recipe

    planned = read_plan(plan) if plan is not None and not isinstance(plan, Plan) else plan
    plugins = load_plugin(os.fspath(plugin)) if plugin is not None else ()
    context = MergeContext(plugins=plugins, memory=sys.maxsize, device="")  # numpy, no limit
    with ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(open_checkpoint(output, unwrap=False))
        except FormatError as error:  # too damaged to open
            return Verification(path_of(output), 0, 0, 0, failed=(Failure("", error.said),))
        folder = folder_of_recipe(path_of(output))
        if checkpoint.recipe is not None:
            try:
                recipe = parse_recipe(checkpoint.recipe)
            except VerifyError as error:
                return Verification(path_of(output), 0, 0, 0, failed=(Failure("", error.said),))
            named = recipe.sources
            found, absent = find_sources(named, folder, sources or {}, stack)
            expected = expected_of_recipe(recipe, found, absent, context)
        elif planned is not None:
            named = planned.sources
            found, absent = find_sources(named, "", sources or {}, stack)
            expected = expected_of_plan(planned, found, absent, context)
        else:
            raise ConfigError(
                f"{escape(path_of(output))} has no recipe: ckptsurgeon did not write it.",
                hint="Compare it with a plan: --plan FILE.",
            )
        result = verify_output(
            checkpoint, expected, plan=planned, sample=sample, key_file=os.fspath(key or ""), progress=progress
        )
        said = (*changed_model_files(named, found), *_of_decoded(checkpoint, found.values()), *_of_model(checkpoint))
        return replace(result, notes=(*result.notes, *said))


def _of_decoded(checkpoint: Checkpoint, sources: Iterable[Checkpoint]) -> Iterator[Note]:
    """Yield the notes on quantised sources if the output is not quantised, because decoding may have gone wrong."""
    from .model_folder.codes.described_shapes import described_shape_notes
    from .model_folder.folder import model_folder

    for source in sources if not checkpoint.codes else ():
        one = source.stored or source
        notes = (*one.quantisation_notes, *described_shape_notes(one, model_folder(one).config)) if one.codes else ()
        yield from (Note(one.path, said.removeprefix(f"{escape(one.path)}: ")) for said in notes)


def _of_model(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield the notes of ``inspect`` on an output: quantised tensors, incomplete layers, and contradicting files.

    The output is also compared with the transformers class in its config.json.
    """
    from .class_check import class_notes
    from .model_folder.checks import contradictions

    name = escape(checkpoint.path)
    notes = (
        *checkpoint.quantisation_notes,
        *contradictions(checkpoint),
        *class_notes(checkpoint),
    )
    yield from (Note(checkpoint.path, said.removeprefix(f"{name}: ")) for said in notes)
