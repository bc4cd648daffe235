"""``verify``: compares an output with what made it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
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
from .inputs.reopening import changed_beside, find_sources, read_plan

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
    """Check an output against its recipe (and ``plan``): checksums, then every copied and computed tensor bit for bit.

    ``sources`` gives new places to sources by name, or what they are now: of tensors in memory, whose name is
    ``<dict>``, nothing else tells. ``plugin`` is the file of a merge method of your own. Tensors whose
    source is gone are NOT COMPARED, and said to be. ``sample`` is how many merged tensors are computed again, all where
    it is None. With a ``key`` (the file of a public one, or of a private one) every file must be as it
    was signed by that, and no other may be in the folder. An output so damaged that it cannot be opened is a failed
    verification. Raises SourceError when it is missing, ConfigError when there is neither recipe nor plan.
    """
    from ..analysis.verify.expected import expected_of_plan, expected_of_recipe
    from ..analysis.verify.verify import verify_output
    from ..engine.context import MergeContext
    from ..methods.merge._registry import load_plugin
    from ..planning.recipe_text import parse_recipe

    planned = read_plan(plan) if plan is not None and not isinstance(plan, Plan) else plan
    plugins = load_plugin(os.fspath(plugin)) if plugin is not None else ()
    context = MergeContext(plugins=plugins, memory=sys.maxsize, device="")  # as much as it took, and with numpy
    with ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(open_checkpoint(output, unwrap=False))
        except FormatError as error:  # so badly damaged that it cannot be opened
            return Verification(path_of(output), 0, 0, 0, failed=(Failure("", str(error)),))
        folder = os.path.dirname(os.path.abspath(path_of(output).rstrip("/")))
        if checkpoint.recipe is not None:
            try:
                recipe = parse_recipe(checkpoint.recipe)
            except VerifyError as error:
                return Verification(path_of(output), 0, 0, 0, failed=(Failure("", str(error)),))
            named = recipe.sources
            found, absent = find_sources(named, folder, sources or {}, stack)
            expected = expected_of_recipe(recipe, found, absent, context)
        elif planned is not None:
            named = planned.sources
            found, absent = find_sources(named, "", sources or {}, stack)
            expected = expected_of_plan(planned, found, absent, context)
        else:
            raise ConfigError(
                f"{escape(path_of(output))} carries no recipe: ckptsurgeon did not write it.",
                hint="Hold it against a plan with --plan.",
            )
        result = verify_output(
            checkpoint, expected, plan=planned, sample=sample, key_file=os.fspath(key or ""), progress=progress
        )
        return replace(result, notes=(*result.notes, *changed_beside(named, found), *_of_codes(checkpoint)))


def _of_codes(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield what quantised tensors lack, and what the settings beside them say otherwise."""
    name = escape(checkpoint.path)
    yield from (Note(checkpoint.path, said.removeprefix(f"{name}: ")) for said in checkpoint.quantisation_notes)
