"""Opens the inputs of a plan again, and checks that they have not changed since the plan was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint, path_of
from ...destinations.hf.files import ADAPTER, CONFIG
from ...engine.inputs import PlanInputs
from ...errors import CheckpointError, ConfigError, PlanError, SourceError
from ...formats.base.header import FilePrint
from ...planning.plan.files import PlanSource
from ...planning.plan.plan import Plan
from ...planning.plan.receipt import OutputNote
from ...planning.quantised import check_codes
from ...planning.target import TargetSpec
from ...storage.json_text import read_json
from ...storage.read.local import ConsumedFile
from ...storage.read.uri import leads_out, scheme_of
from ...storage.small_files import read_file
from ...tensors.quantised.encoding import NO_CODES
from ...util.did_you_mean import did_you_mean
from ...util.text import escape, listing
from ..model_folder.documents import VOCABULARIES
from ..model_folder.folder import ModelFolder
from ..model_folder.tokenizer.tokenizer_files import ADDED
from ..transplant.vocabulary import vocabulary_of_plan
from .argument_types import CheckpointLike, Path
from .inputs import file_print, memory_print
from .operations import operate

if TYPE_CHECKING:
    pass

__all__ = [
    "changed_model_files",
    "check_model_files",
    "code_of",
    "find_sources",
    "inputs_of",
    "read_plan",
    "reopen",
    "with_model_files_pinned",
    "with_settings_pinned",
]

# Fingerprints of the other files in the sources' folders: these files must not change before the plan is applied.

LARGEST = 256 << 20
"""The largest file, in bytes, that is read to find out whether it has changed; a larger one counts as changed."""


def with_model_files_pinned(plan: Plan, folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan with the fingerprints of the files that were read from the folders of its sources.

    config.json and adapter_config.json are always recorded. Applying the plan fails if one of these files has changed.
    ``folders`` are the folders of the sources, in the same order.
    """
    held, is_compared = [], any(folder.vocabulary for folder in folders)
    for source, folder in zip(plan.sources, folders, strict=False):
        with suppress(CheckpointError):  # too large: the code that needs the file reports it
            folder.fingerprint(CONFIG, ADAPTER)
        read = {one.name: one for one in (*source.beside, *folder.prints)}
        held.append(replace(source, beside=(*read.values(), *(_lacking(folder) if is_compared else ()))))
    return replace(plan, sources=(*held, *plan.sources[len(held) :]))


def _lacking(folder: ModelFolder) -> Iterator[FilePrint]:
    """Yield a fingerprint for each vocabulary file that does not exist, but would be used if it did.

    These fingerprints have no digest. Because of them, applying the plan fails if such a file has been added since the
    plan was made.
    """
    if not folder.files or scheme_of(folder.path):
        return
    rank = VOCABULARIES.index(folder.vocabulary) if folder.vocabulary else len(VOCABULARIES)
    there = {one.name for one in folder.files}
    names = (*VOCABULARIES[:rank], *((ADDED,) if folder.vocabulary and not folder.has_all_tokens else ()))
    yield from (FilePrint(name, 0, "") for name in names if name not in there)


def with_settings_pinned(plan: Plan, folder: ModelFolder) -> Plan:
    """Return the plan of an edit with the fingerprints of those files that the plan changes, such as config.json.

    ``folder`` is the folder of the source. Applying the plan fails if one of these files has changed. No fingerprints
    are needed for files that are copied unchanged: they are checked when they are copied to the folder of the output.
    """
    changed = {one.name for one in plan.target.companions if one.text}
    beside = tuple(one for one in folder.prints if one.name in changed)
    first, *rest = plan.sources
    return replace(plan, sources=(replace(first, beside=beside), *rest)) if beside else plan


def check_model_files(source: PlanSource, checkpoint: Checkpoint) -> None:
    """Raise PlanError if a recorded file in a source's folder has changed, or was added or removed, after the plan."""
    for name, how in _changed(source, checkpoint):
        path = os.path.join(checkpoint.around.uri if checkpoint.around is not None else source.path, name)
        raise PlanError(f"{escape(path)} {how} the plan was made.", hint="Make a new plan.")


def changed_model_files(sources: Sequence[PlanSource], found: Mapping[int, Checkpoint]) -> Iterator[OutputNote]:
    """Yield a note for each recorded file in a source's folder that has changed, or was added or removed.

    The files are compared with those that were there when the output was written. ``found`` has the open sources that
    still exist, by their index in ``sources``.
    """
    for index, checkpoint in found.items():
        for name, how in _changed(sources[index], checkpoint):
            yield OutputNote(name, f"in the folder of {escape(sources[index].name)}, {how} the output was written")


def _changed(source: PlanSource, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield (name, what happened to it) for the recorded files in a source's folder that are not as recorded."""
    for file in source.beside:
        found = _digest(checkpoint, file)
        if found != file.sha256:
            changed = "has changed since" if file.sha256 else "did not exist when"
            yield file.name, changed if found else "is missing, but existed when"


def _digest(checkpoint: Checkpoint, file: FilePrint) -> str:
    """Return the current SHA-256 of the recorded ``file`` in a checkpoint's folder; '' if it is missing.

    Returns "another" for a file that counts as changed without a comparison of digests: its size differs, it has more
    than ``LARGEST`` bytes, or it did not exist when the plan was made.
    """
    folder = checkpoint.around
    if folder is None or leads_out(os.path.join(folder.uri, file.name)):
        return ""
    try:
        with closing(folder.file(file.name)) as beside:
            if beside.size != file.size or file.size > LARGEST or not file.sha256:
                return "another"
            return hashlib.sha256(beside.read(0, beside.size)).hexdigest()
    except SourceError:
        return ""


PLAN_BYTES = 512 << 20
"""The largest plan file that is read, in bytes: more than a plan of a million steps needs."""


def read_plan(path: Path) -> Plan:
    """Return the plan in a JSON file; raises SourceError if it cannot be read, ConfigError if it is not valid."""
    try:
        data = read_json(read_file(path, PLAN_BYTES))
    except OSError as error:
        said = f"the plan {escape(os.fspath(path))} cannot be read: {error.strerror}."
        raise SourceError(said, hint=did_you_mean(os.fspath(path))) from error
    except ValueError as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else escape(str(error))
        raise ConfigError(
            f"the plan {escape(os.fspath(path))} is not valid JSON: {why}.",
            hint="Write a plan with -n --json, as in ckpt average A B -n --json > plan.json. A recipe needs the "
            "suffix .yaml.",
        ) from error
    return Plan.from_json(data)


def code_of(plan: Plan) -> tuple[str, ...]:
    """Return the names of the user's code that runs when a plan is applied; () if none runs.

    It is the code of the destination's model class, if this class is built to draw initial values.
    """
    from ...destinations._load import code_named

    config = plan.target.config
    return code_named(config) if config and _draws(plan) else ()


def _draws(plan: Plan) -> bool:
    """Return whether a plan builds the destination's class to draw initial values.

    A destination that is a checkpoint keeps its own values instead.
    """
    return any(step.draws for step in plan.steps) and all(one.role != "destination" for one in plan.sources)


def inputs_of(plan: Plan) -> PlanInputs:
    """Return the open inputs of a plan, opened again if they were closed; raises PlanError if an input has changed."""
    from ...destinations._load import target_with

    planned = plan.inputs if isinstance(plan.inputs, PlanInputs) else None
    if planned is not None and not any(source.closed for source in planned.sources):
        return planned
    _check_reopenable(plan)
    opened: list[Checkpoint] = []
    try:
        for source in plan.sources:
            with _hinting(source.path):
                opened.append(reopen(source))
            _check_prints(source, opened[-1])
            _check_validators(source, opened[-1])
            check_model_files(source, opened[-1])
        for file in plan.target.files:
            with _hinting(file.name):
                now = file_print(file.name)
            if (now.size, now.sha256) != (file.size, file.sha256):
                raise PlanError(f"{escape(file.name)} has changed since the plan was made.", hint="Make a new plan.")
        change = vocabulary_of_plan(plan)
        target = None
        if _draws(plan):
            weights = not plan.arguments.get("no_constructor_weights")
            task = plan.arguments.get("task")
            target = target_with(
                plan.target.config, change, task, constructor_weights=weights, overrides=plan.target.overrides
            )
        _check_target(plan, target)
        inputs = replace(planned or PlanInputs(), sources=tuple(opened), target=target)
        keeper = plan.keeper(opened)
        codes = [one.codes_before_operations for one in opened]
        check_codes(plan, codes, keeper.codes if keeper is not None else NO_CODES)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    return inputs


@contextmanager
def _hinting(path: str) -> Iterator[None]:
    """Add to the hint of an error in the block that paths are relative to the working directory, if ``path`` is gone.

    ``path`` is a path in a plan.
    """
    try:
        yield
    except CheckpointError as error:
        if not os.path.isabs(path) and not scheme_of(path) and not os.path.lexists(path):
            error.add_hint("Paths in a plan are relative to the working directory.")
        raise


def _check_reopenable(plan: Plan) -> None:
    """Raise PlanError if an input of the plan cannot be opened again because it was in memory."""
    gone = [source.name for source in plan.sources if source.memory]
    if gone:
        raise PlanError(
            f"the plan was made from tensors in memory ({listing(gone)}), which no longer exist.",
            hint="Apply the plan in the process that made it, or make a plan from files.",
        )
    if any(source.role == "destination" and not source.path for source in plan.sources):
        raise PlanError("the plan loads weights into a live module, so it has no output file.", hint="Use load_into.")


def reopen(source: PlanSource, given: CheckpointLike | None = None) -> Checkpoint:
    """Open a source of a plan again, with the same root, the same wrappers removed, and the same operations.

    ``given`` is a path, a dict of tensors or a checkpoint to open instead of the recorded path.
    """
    root = source.root or "."
    found = open_checkpoint(source.path if given is None else given, root, unwrap=False)
    checkpoint = found.unwrapped(stripped=source.stripped)
    try:
        return operate([checkpoint], source.operations)[0].checkpoint
    except BaseException:
        checkpoint.close()
        raise


def _check_prints(source: PlanSource, checkpoint: Checkpoint) -> None:
    """Raise PlanError if a source's files, or its tensors in memory, have changed since the plan was made."""
    if source.memory:
        _check_memory(source, memory_print(checkpoint))
        return
    now = {file.name: file for file in checkpoint.files}
    for file in source.files:
        if why := _change(file, now.get(file.name)):
            raise _input_changed(source, file, why)


def _check_memory(source: PlanSource, found: FilePrint) -> None:
    (file,) = source.files or (found,)
    if found.size != file.size:
        raise PlanError(f"its tensors have {found.size:,} bytes now, not {file.size:,}.")
    if source.files != (found,):  # a digest of all three: which of them differs is not known
        raise PlanError("its tensors have the recorded number of bytes, but their keys, dtypes or shapes have changed.")


def _change(file: FilePrint, found: FilePrint | None) -> str:
    """Return how a file differs from its recorded fingerprint ``file``; "" if no difference is found.

    ``found`` is the present fingerprint, None if the file is missing.
    """
    if found is None:
        return "the file is missing"
    if found.size != file.size:
        return f"it has {found.size:,} bytes now, not {file.size:,}"
    if found.sha256 != file.sha256:
        return "its header is different"
    if file.mtime_ns is not None and found.mtime_ns != file.mtime_ns:
        return "it was written again later, with the same size and header"
    return ""


def _check_validators(source: PlanSource, checkpoint: Checkpoint) -> None:
    """Raise PlanError if the commit or the strong ETag of a remote file has changed since the plan was made."""
    now = {file.name: file.validator for file in checkpoint.files}
    for file in source.files:
        if file.validator and now.get(file.name, "") != file.validator:
            raise _input_changed(source, file, "its commit or ETag is different")


def _input_changed(source: PlanSource, file: FilePrint, why: str) -> PlanError:
    path = os.path.join(source.path, file.name).rstrip("/")
    return PlanError(f"{escape(path)} has changed since the plan was made: {why}.", hint="Make a new plan.")


def _check_target(plan: Plan, target: TargetSpec | None) -> None:
    for step in plan.steps if target is not None else ():
        wanted = target.tensors.get(step.key) if target is not None else None
        if step.draws and (wanted is None or wanted.shape != step.shape):
            raise PlanError(
                f"{escape(plan.target.config)} has changed since the plan was made: its tensor {escape(step.key)} is "
                "missing or has another shape.",
                hint="Make a new plan.",
            )


def find_sources(
    sources: Sequence[PlanSource], folder: str, moved: Mapping[str, CheckpointLike] | None, stack: ExitStack
) -> tuple[dict[int, Checkpoint], dict[int, str]]:
    """Open the sources of an output that still exist and have not changed; ``stack`` closes them.

    Paths of sources are relative to ``folder``, the folder of the output. ``moved`` maps names of sources to new paths
    or to tensors; None if the command has no option ``--source``, which the reasons would advise. Returns two dicts,
    {index of a source: open source} and {index of a source: reason why it is not open}. Raises ConfigError for an
    unknown name in ``moved``, SourceError if a new path does not exist.
    """
    has_option, moved = moved is not None, moved or {}
    names = {source.name for source in sources}
    for name in moved:
        if name not in names:
            raise ConfigError(
                f"--source: the output has no source with the name {escape(name)}.",
                hint=f"Use one of {', '.join(sorted(names))}.",
            )
    found: dict[int, Checkpoint] = {}
    absent: dict[int, str] = {}
    for index, source in enumerate(sources):
        if "://" in source.path and source.name not in moved:  # a URL in a file is fetched only on request
            fetched = f"; --source '{source.name}={source.path}' fetches it"
            absent[index] = f"{source.name} is remote{fetched if has_option else ''}"
            continue
        if source.memory and source.name not in moved:
            compared = f"; --source '{source.name}=FILE' compares the output with a file of the same tensors"
            absent[index] = f"{source.name} was in memory{compared if has_option else ''}"
            continue
        given = moved[source.name] if source.name in moved else os.path.join(folder, source.path)
        try:
            checkpoint = stack.enter_context(reopen(source, given))
            _check_prints(replace(source, path=path_of(given)), checkpoint)
        except SourceError as error:
            if source.name in moved:
                raise
            is_there = os.path.exists(os.path.join(folder, source.path))
            gone = f"is no longer at its path ({source.path})"
            absent[index] = f"{source.name}: {error.message.rstrip('.')}" if is_there else f"{source.name} {gone}"
        except CheckpointError as error:
            absent[index] = f"{source.name} is a different file now: {error.message.rstrip('.')}"
        else:
            if any(isinstance(file, ConsumedFile) for file in checkpoint.open_files().values()):
                absent[index] = f"the files of {source.name} were deleted while the output was written (--consume)"
            else:
                found[index] = checkpoint
    return found, absent
