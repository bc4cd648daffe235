"""``check``: looks for faults in a checkpoint, before it is shipped or trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from ..analysis.check.checked_sums import checked_sums, recipe_sums
from ..analysis.check.measuring.byte_scales import with_byte_scales
from ..analysis.check.measuring.one_pass import measure
from ..analysis.check.measuring.pickled_scales import pickled_scales
from ..analysis.check.report import DAMAGED, CheckReport
from ..analysis.check.running import all_checks, run_checks, skipped_ids
from ..analysis.check.subject import ClassFacts, Subject, WeightSize
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import CheckpointLike, path_of
from ..storage.read.uri import shown
from .checking.opening import Opened, open_to_check
from .checking.without_folder import embeddings_of, heads_of, no_adapter, with_zero_runs, without_folder
from .inputs.argument_types import Progress, checked

__all__ = ["check"]

CLASS = "class-tensors"
FILES = ("file-size", "index-keys", "offsets", "shards")
"""The checks that explain why a file cannot be opened."""
INDEX = ("index", "index size", "missing shard", "shard contents", "shard keys")
"""The rules of FormatErrors on an index: if only an index is invalid, the shards can still be checked."""


@checked
def check(
    path: CheckpointLike,
    *,
    base: CheckpointLike | None = None,
    root: str | None = None,
    skip: Collection[str] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Look for faults in a checkpoint, and return PASS, WARN, FAIL or NOT RUN for each check.

    Every value is read once, in bounded memory. If the checkpoint is an adapter, ``base`` is the model that it belongs
    to. ``root`` is the dotted path of the state dict, if a file has several; ``skip`` has the ids of checks to leave
    out. ``progress`` is called with (bytes read, bytes in total). For tensors in memory, only names, shapes and values
    are checked; checks of files are NOT RUN. Damaged or missing files are reported as faults if the header of at least
    one file can be read; otherwise SourceError or FormatError is raised. Raises ConfigError for an unknown id, and
    for a ``base`` if the checkpoint is not an adapter.
    """
    left = skipped_ids([skip] if isinstance(skip, str) else skip)
    with closing(open_to_check(path, root)) as opened:
        subject = _subject(path_of(path), opened, base, progress)
        if CLASS in left:  # otherwise the check of ties would build the class, too, which takes seconds
            subject = replace(subject, look_at_class=partial(ClassFacts, "skipped"))
        report = run_checks(subject, left)
    if opened.fault is None or _is_explained(subject):
        return report
    if opened.fault.rule not in INDEX:
        raise opened.fault
    return run_checks(replace(subject, unexplained=opened.fault.message.removesuffix(".")), left)


def _decoded_sizes(checkpoint: Checkpoint) -> Mapping[str, WeightSize]:
    from .checking.decoded_weights import decoded_sizes  # imports the decoders

    return decoded_sizes(checkpoint)


def _code_bits(checkpoint: Checkpoint) -> Mapping[str, int]:
    from .checking.decoded_weights import code_bits  # imports the decoders

    return code_bits(checkpoint)


def _odd_scales(checkpoint: Checkpoint, decoded: Collection[str]) -> Mapping[str, Sequence[str]]:
    from .checking.decoded_weights import odd_scales_of  # imports the decoders

    return odd_scales_of(checkpoint, decoded)


def _is_explained(subject: Subject) -> bool:
    """Return whether one of the checks in ``FILES`` fails: its findings explain why the checkpoint cannot be opened.

    These checks are run even if the user skips them.
    """
    others = [one.id for one in all_checks() if one.id not in FILES]
    return not run_checks(subject, others).ok


def _import_checks() -> None:
    """Import the modules that are needed only after all values have been read; other threads read values meanwhile."""
    from ..checkpoint import all_quantisation_notes  # noqa: F401
    from .model_folder.codes import described_shapes  # noqa: F401
    from .model_folder.layers import holes  # noqa: F401

    all_checks()


def _subject(path: str, opened: Opened, base: CheckpointLike | None, progress: Progress | None) -> Subject:
    """Return the facts that the checks examine; to measure the values, the whole checkpoint is read."""
    checkpoint = opened.checkpoint
    if checkpoint is None:
        return Subject(shown(path), "safetensors", {}, {}, opened.shards, opened.index, fault=DAMAGED)
    embeddings = embeddings_of(checkpoint)
    measured = measure(checkpoint, with_byte_scales(checkpoint), embeddings, progress, meanwhile=_import_checks)
    sums = checked_sums(checkpoint, measured)
    coded = [(key, end, one.method) for one in checkpoint.codes.tensors for end, key in one.parts.items()]
    subject = Subject(
        shown(path),
        checkpoint.format,
        checkpoint,
        measured,
        opened.shards,
        opened.index,
        strays=opened.strays,
        parts={key: end for key, end, _ in coded},
        methods={key: method for key, _, method in coded},
        codes=frozenset(one.codes for one in checkpoint.codes.tensors if one.codes),
        pickled_scales=pickled_scales(checkpoint) if checkpoint.codes else {},
        decoded=(decoded := _decoded_sizes(checkpoint) if checkpoint.codes else {}),
        odd=_odd_scales(checkpoint, decoded) if checkpoint.codes else {},
        code_bits=_code_bits(checkpoint) if checkpoint.codes else {},
        embeddings=embeddings,
        heads=heads_of(checkpoint),
        checksums=sums.number,
        bad_checksums=sums.bad,
        damaged=sums.keys,
        file=_only_file(checkpoint),
        recipe=recipe_sums(checkpoint, measured),
        in_memory=checkpoint.in_memory,
        fault="" if opened.fault is None else DAMAGED,
    )
    if opened.fault is not None:
        return subject
    if checkpoint.folder is None:
        if base is not None:
            raise no_adapter(shown(path))
        return with_zero_runs(without_folder(subject, checkpoint), checkpoint)
    from .checking.with_folder import with_folder

    return with_zero_runs(with_folder(subject, checkpoint, base), checkpoint)


def _only_file(checkpoint: Checkpoint) -> str:
    """Return the name of the file of a checkpoint; '' if there are several."""
    names = {file.name for file in checkpoint.open_files().values()}
    return names.pop() if len(names) == 1 else ""
