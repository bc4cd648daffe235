"""``verify``: compares an output with its recipe and sources."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, path_of
from ..checkpoint.zero_notes import seen_zero_notes
from ..errors import CheckpointError, ConfigError, FormatError, VerifyError
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import Failure, OutputNote, Verification
from ..storage.read.uri import scheme_of
from ..util.note_kind import NoteKind
from ..util.notes import Note, without_prefix
from ..util.text import escape
from .inputs.argument_types import CheckpointLike, Path, Progress, checked
from .inputs.reopening import changed_model_files, find_sources, read_plan

__all__ = ["verify"]

_NUMBERS = re.compile(r"\d[\d,.]*|\b(?:has|have|is|are)\b|s\b")
"""Matches the numbers and words that differ between a note on one tensor and a note of the same kind on several."""


@checked
def verify(
    output: CheckpointLike,
    *,
    plan: Plan | Path | None = None,
    sources: Mapping[str, CheckpointLike] | None = None,
    plugin: Path | None = None,
    sample: int | None = None,
    key: Path | None = None,
    patch: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check an output against its recipe (and ``plan``): checksums, then each copied or computed tensor bit for bit.

    ``sources`` maps names of sources to a new path or to the tensors; sources that were in memory (``<dict>``) must be
    given in this way. ``plugin`` is a Python file with your own merge methods; this file is run. Tensors whose source
    does not exist any more are reported as NOT COMPARED. ``sample`` is the number of merged tensors to compute again;
    None is all. ``key`` is the file of a public or private key: then every file must have a valid signature by this
    key, and the folder must contain no other files. ``patch`` is the patch that made the output, or the last of
    several: then only the SHA-256 of each file is compared with the SHA-256 in the patch. If the output is too damaged
    to be opened, the verification has failed; no error is raised. Raises SourceError if the output is missing,
    ConfigError if there is neither recipe nor plan nor patch.
    """
    from ..analysis.verify.expected import expected_of_plan, expected_of_recipe
    from ..analysis.verify.verify import verify_output
    from ..engine.apply_settings import MergeContext
    from ..methods.merge._registry import load_plugin
    from ..planning.recipe import parse_recipe
    from ..planning.recipe_text import folder_of_recipe

    if patch is not None:
        others = {"--plan": plan, "--source": sources, "--plugin": plugin, "--sample": sample, "--key": key}
        return _of_patch(output, patch, [name for name, value in others.items() if value], progress)
    planned = read_plan(plan) if plan is not None and not isinstance(plan, Plan) else plan
    plugins = load_plugin(os.fspath(plugin)) if plugin is not None else ()
    context = MergeContext(plugins=plugins, memory=sys.maxsize, device="")  # the device "" means numpy
    with ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(open_checkpoint(output, unwrap=False))
        except FormatError as error:  # the output is too damaged to be opened
            return Verification(path_of(output), 0, 0, 0, failed=(Failure("", error.said),))
        if checkpoint.recipe is not None:
            try:
                recipe = parse_recipe(checkpoint.recipe)
            except VerifyError as error:
                return Verification(path_of(output), 0, 0, 0, failed=(Failure("", error.said),))
            named = recipe.sources
            folder = folder_of_recipe(path_of(output), (one.path for one in named))
            found, absent = find_sources(named, folder, sources or {}, stack)
            expected = expected_of_recipe(recipe, found, absent, context)
        elif planned is not None:
            named = planned.sources
            found, absent = find_sources(named, "", sources or {}, stack)
            expected = expected_of_plan(planned, found, absent, context)
        else:
            raise _trained(checkpoint) or _no_recipe(path_of(output))
        result = verify_output(
            checkpoint, expected, plan=planned, sample=sample, key_file=os.fspath(key or ""), progress=progress
        )
        of_model = tuple(_of_model(checkpoint))
        said = (
            *changed_model_files(named, found),
            *dict.fromkeys(_of_decoded(checkpoint, found.values())),  # once, if a source is open twice
            *of_model,
            *dict.fromkeys(_of_values(checkpoint, found.values())),
            *dict.fromkeys(_of_tokens(of_model, found.values())),
            *_of_zeros(checkpoint, found.values()),
        )
        return replace(result, notes=(*result.notes, *said))


def _trained(checkpoint: Checkpoint) -> ConfigError | None:
    """Return the error on weights that ``ckpt train`` wrote, None for others; it names the init that can be checked.

    Weights of a run have its lineage in their metadata, or in the lineage.json of the run's folder.
    """
    from .model_folder.recorded_tokens import run_of

    path = path_of(checkpoint)
    folder, lineage = ("", {}) if checkpoint.in_memory else run_of(path)
    if not lineage and not _is_lineage(checkpoint.metadata.get("lineage", "")):
        return None
    step = checkpoint.metadata.get("step", "")
    after = f" (step {escape(step)})" if step.isdigit() else ""
    found = lineage.get("init")
    init = found.get("path") if isinstance(found, dict) else None
    hint = "ckpt diff compares it with other weights."
    if isinstance(init, str):
        there = init if scheme_of(init) else os.path.relpath(os.path.join(folder, init))
        first, own = (escape(shlex.quote(one)) for one in (there, path))
        hint = f"ckpt verify {first} checks the init of the run; ckpt diff {first} {own} compares the two."
    return ConfigError(
        f"{escape(path)} has weights that ckpt train changed{after}: no recipe can compute them again, so there is "
        "nothing to verify bit for bit.",
        hint=hint,
    )


def _is_lineage(text: str) -> bool:
    """Return whether a string of a file's metadata is the lineage that ``ckpt train`` writes."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "config_sha256" in found and "ckptsurgeon" in found


def _no_recipe(path: str) -> ConfigError:
    """Return the error on an output without a recipe; it names the plan of a renaming in place, if it is there."""
    why, hint = "ckptsurgeon did not write it, or wrote it with ckpt patch apply", "Compare the output with"
    if plans := _plans_beside(path):
        plan = escape(shlex.quote(plans[-1]))
        why = f"its tensors were probably renamed in place, because the plan of such a change is there ({plan})"
        hint = f"--plan {plan} compares names, dtypes and shapes. Or compare the output with"
    return ConfigError(
        f"{escape(path)} has no recipe, so it cannot be verified: {why}.",
        hint=f"{hint} {'another' if plans else 'a'} plan (--plan FILE), or with the patch that made it (--patch FILE).",
    )


def _plans_beside(path: str) -> list[str]:
    """Return the paths of the plans that ``rename --in-place`` wrote for a local output, the newest last."""
    if scheme_of(path):
        return []
    is_folder = os.path.isdir(path)
    folder, name = (path, "") if is_folder else os.path.split(path)
    wanted = re.compile(rf"{'.*' if is_folder else re.escape(name)}\.rename(?:-(\d+))?\.json")
    try:
        found = [match for match in map(wanted.fullmatch, os.listdir(folder or ".")) if match]
    except OSError:
        return []
    return [os.path.join(folder, match[0]) for match in sorted(found, key=lambda match: int(match[1] or 1))]


def _of_patch(output: CheckpointLike, patch: Path, others: Sequence[str], progress: Progress | None) -> Verification:
    """Compare the files of an output with a patch; ``others`` are further options, which have no effect here.

    Raises ConfigError for such options, and for an output in memory.
    """
    from ..analysis.verify.patched import verify_patched
    from ..engine.patch.patch_file import open_patch
    from .inputs.fitting_notes import checkpoint_notes

    if others:
        raise ConfigError(
            f"--patch compares files with the patch only, so {others[0]} has no effect.",
            hint="Use --patch without other options, or leave --patch out.",
        )
    if not isinstance(output, (str, os.PathLike)):
        raise ConfigError(
            "--patch compares the bytes of files, but the output is in memory.", hint="Give the path of the output."
        )
    with closing(open_patch(os.fspath(patch))) as opened:
        found = verify_patched(os.fspath(output), opened, progress)
    with suppress(CheckpointError), open_checkpoint(output) as checkpoint:
        name = escape(checkpoint.path)
        said = (OutputNote(checkpoint.path, without_prefix(f"{name}: ", one)) for one in checkpoint_notes(checkpoint))
        return replace(found, recipe=checkpoint.recipe is not None, notes=(*found.notes, *said))
    return found


def _of_decoded(checkpoint: Checkpoint, sources: Iterable[Checkpoint]) -> Iterator[OutputNote]:
    """Yield notes on faults in the decoding of quantised sources, if the sources were probably decoded for the output.

    They were decoded if the output is not quantised, or if its scales are plausible: an average gets new scales.
    """
    from .inputs.sampled_scales import odd_scale_notes_on, sampled_scale_notes
    from .model_folder.codes.described_shapes import described_shape_notes
    from .model_folder.folder import model_folder

    for source in sources if not (checkpoint.codes and odd_scale_notes_on(checkpoint)) else ():
        one = source.stored or source
        if not one.codes:
            continue
        odd = source.odd_scale_notes or sampled_scale_notes(one)
        others = (*one.quantisation_notes, *described_shape_notes(one, model_folder(one).config))
        notes = (*odd, *(() if checkpoint.codes else others))  # these notes are also on the output if it is quantised
        place = _without_dots(one.path)
        yield from (OutputNote(place, without_prefix(f"{escape(one.path)}: ", said)) for said in notes)


def _without_dots(path: str) -> str:
    """Return a path without ``..``, for messages; unchanged if, due to a link, it would then name another file."""
    plain = path if "://" in path else os.path.normpath(path)
    return plain if os.path.realpath(plain) == os.path.realpath(path) else path


def _of_values(checkpoint: Checkpoint, sources: Iterable[Checkpoint]) -> Iterator[OutputNote]:
    """Yield the notes on values of the sources, except those that the output has, too.

    Without them, a fault of a source may stay hidden: values that are computed from it can look sound.
    """
    own = {_NUMBERS.sub("", said.rpartition(": ")[0]) for said in checkpoint.value_notes}
    for one in sources:
        for said in one.value_notes:
            if _NUMBERS.sub("", said.rpartition(": ")[0]) not in own:
                yield OutputNote(_without_dots(one.path), said)


def _of_tokens(said: Iterable[OutputNote], sources: Iterable[Checkpoint]) -> Iterator[OutputNote]:
    """Yield notes on local sources whose token list does not fit their embedding; a merged token list can hide this.

    Yields nothing if ``said``, the notes on the output's model, has such a note.
    """
    from .model_folder.folder import model_folder
    from .model_folder.weights.token_rows import token_pair_notes

    if any(isinstance(one.why, Note) and one.why.kind is NoteKind.TOKEN_PAIRS for one in said):
        return
    for one in sources:
        if not scheme_of(one.path):
            yield from (OutputNote(_without_dots(one.path), why) for why in token_pair_notes(one, model_folder(one)))


def _of_zeros(checkpoint: Checkpoint, sources: Iterable[Checkpoint]) -> Iterator[OutputNote]:
    """Yield notes on zeros that were read because a part of a file of the output, or of a source, may be missing."""
    for one in (checkpoint, *sources):
        for said in seen_zero_notes([one], said=one.notes):
            yield OutputNote(_without_dots(one.path), without_prefix(f"{escape(one.path)}: ", said))


def _of_model(checkpoint: Checkpoint) -> Iterator[OutputNote]:
    """Yield the notes of ``inspect`` on an output: quantised tensors, incomplete layers, and contradicting files.

    The output is also compared with the transformers class in its config.json.
    """
    from .class_check import class_notes
    from .inputs.sampled_scales import odd_scale_notes_on
    from .model_folder.checks import contradictions

    name = escape(checkpoint.path)
    notes = (
        *(note for note in checkpoint.notes if note not in checkpoint.header.notes),  # other files: see other_files
        *(odd_scale_notes_on(checkpoint) if checkpoint.codes else ()),
        *contradictions(checkpoint),
        *class_notes(checkpoint),
    )
    yield from (OutputNote(checkpoint.path, without_prefix(f"{name}: ", said)) for said in dict.fromkeys(notes))
