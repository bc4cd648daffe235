"""Resumes a run: finds its folder, and compares configuration, data and settings with the record of its start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ...errors import ConfigError
from ...storage.small_files import read_file
from ...util.text import count, escape, listing
from ..config.settings import ANNEALED, Settings
from ..folder.run_folder import RunFolder, RunLock
from ..job.init_checkpoint import InitCheckpoint, read_init
from ..job.job import Job
from ..state.optimizer import lr_factor
from ..state.training_state import PATIENCE
from .known_settings import check_known_settings, known_settings
from .records import KEPT, LINEAGE, OVERFITTING, TEXTS_DIGEST, config_text, data_digests, model_sha256, read_lineage
from .result import plain_json
from .start import RunStart

__all__ = ["check_overfitting", "check_unchanged", "record_steps", "resume_start"]


FREE = ("save_every", "keep", "data.workers", "data.cache", "epochs", "loggers")
"""Settings that may change when a run is resumed, because the weights do not depend on them.

``epochs`` only sets ``steps``.
"""
NEARLY_FREE = ("threads", "compile", "gradient_checkpointing")
"""Settings that may change, with a note, when a run is resumed: they change only rounding, or the values of dropout."""


def resume_start(
    lock: RunLock, folder: RunFolder, config: str | None, *, sets: Sequence[str], controls: bool
) -> tuple[RunStart, tuple[str, ...]]:
    """Lock the folder of a run to resume; return the starting point of the run, and its ``--set`` strings.

    ``sets`` are the ``--set`` strings of this call; they are added to the recorded strings of the run. The initial
    weights are read only if ``controls`` is true, because ``--controls`` trains from them again. Raises ConfigError if
    the folder has no run, or if initial weights that are read were removed or have changed.
    """
    folder.last_step()
    known = read_lineage(folder)
    lock.take()
    notes = tuple(filter(None, (folder.relinked(), edited_config_note(folder, known))))
    if config is None:
        config = os.path.relpath(os.path.join(folder.path, known["config"]))
    check_known_settings(known, config, folder)
    begun = known["init"]["path"] if known["init"] is not None else None
    from_ = os.path.relpath(os.path.join(folder.path, begun)) if begun is not None else None
    init = _same_init(from_, known["init"]["files"]) if controls and from_ is not None else None
    return RunStart(config, init, notes, from_=from_, known=known), (*known["sets"], *sets)


def _same_init(path: str, files: Sequence[dict[str, object]]) -> InitCheckpoint:
    if not os.path.exists(path):
        raise ConfigError(
            f"--controls trains again from the initial weights of the run, but {escape(path)} is gone.",
            hint="Put the file back, or resume without --controls.",
        )
    init = read_init(path)
    if [(file["size"], file["sha256"]) for file in init.files] != [(file["size"], file["sha256"]) for file in files]:
        raise ConfigError(
            f"--controls trains again from the initial weights of the run, but {escape(path)} has changed since the "
            "run was started.",
            hint="Put the old file back, or resume without --controls.",
        )
    return init


def check_overfitting(lineage: Mapping[str, Any], asked: bool, folder: RunFolder) -> bool:
    """Return whether a resumed run trains on one batch only: so it is if it was started with --overfit-one-batch.

    Raises ConfigError if ``asked`` is true (the option is given again), but the run was started on all of its data.
    """
    began = bool(lineage.get(OVERFITTING, False))
    if asked and not began:
        raise ConfigError(
            f"{escape(folder.path)} was started without --overfit-one-batch: it trains on all of its data.",
            hint="Leave out --overfit-one-batch, or start another run: --run DIR.",
        )
    return began


def edited_config_note(folder: RunFolder, lineage: Mapping[str, Any]) -> str:
    """Return a note if config.yaml in the run folder was edited, because this has no effect; else ''."""
    path = folder.of("config.yaml")
    try:
        found = hashlib.sha256(read_file(path)).hexdigest()
    except OSError:
        return ""
    if found == lineage.get(KEPT, found):
        return ""
    return f"{escape(path)} was edited; --resume does not read it, and the run keeps its old settings"


def check_unchanged(job: Job, lineage: Mapping[str, Any], folder: RunFolder) -> list[str]:
    """Find the changes since the run was started; return a list with a note on each change.

    Raises ConfigError if the model, the data or a setting has changed in such a way that the run cannot be resumed.
    """
    if lineage["model_sha256"] != model_sha256(job.document):
        raise ConfigError(
            f"{escape(job.document.name)} describes another model than the one that {escape(folder.path)} trains.",
            hint="Start another run: --run DIR.",
        )
    old, new = known_settings(lineage), plain_json(asdict(job.settings))
    differing = _differing(old, new)
    if differing:
        raise ConfigError(
            f"{escape(folder.path)} was started with other settings: {listing(differing)}.",
            hint="Go on with the old settings, or start another run with --run.", details=differing,
        )  # fmt: skip
    own = [(name, old[name], new[name]) for name in NEARLY_FREE]
    pairs = [("device", lineage["device"], job.device.type), *own]
    changed = [
        f"{name} was {a}, is now {b}: the run continues, but its results will not be the same bit for bit"
        for name, a, b in pairs
        if a != b
    ]
    before = lineage.get("processes", 1)
    if before != job.ranks.size:
        by = count(before, "process", "processes")
        changed.append(
            f"the run had {by}, and now has {job.ranks.size}: the run continues, but its results will not be the "
            "same bit for bit"
        )
    more = _other_steps(job.settings, old["steps"], folder)
    return [*check_data(job, lineage.get("data", {}), folder.path), *changed, *more]


def _other_steps(settings: Settings, before: int, folder: RunFolder) -> list[str]:
    """Return a note if ``train.steps`` is not ``before``, the number of steps with which the run was started.

    Raises ConfigError if the run has done more steps than ``train.steps``. Also raises ConfigError if
    ``train.patience`` ended the run, because the resumed run would end immediately.
    """
    steps = settings.steps
    if steps == before:
        return []
    done = folder.last_step()
    if _lost_patience(folder):
        raise ConfigError(
            f"{escape(folder.path)} ended after {done} of {before} steps, since the metric did not improve in "
            f"{settings.patience} evaluations in a row (train.patience): with {steps} steps, the run would also end at "
            "once.",
            hint="Start another run with --run DIR, from the best weights of this run or without train.patience.",
        )
    if steps < done:
        raise ConfigError(
            f"the run in {escape(folder.path)} has already done {done} steps, more than train.steps, {steps}.",
            hint=f"Pass --steps {done} or more.",
        )
    if settings.schedule in ("constant", *ANNEALED) or steps == done:
        return [f"steps was {before}, is {steps}"]
    was, now = (f"{settings.lr * lr_factor(replace(settings, steps=many), done):.3g}" for many in (before, steps))
    instead = f", {now} instead of {was}" if done < before else f": {now} in this step"
    return [
        f"steps was {before}, is {steps}: from step {done + 1} on, the learning rate follows the {settings.schedule} "
        f"schedule over {steps} steps{instead}"
    ]


def _lost_patience(folder: RunFolder) -> bool:
    """Return whether ``train.patience`` ended the run, according to its last result."""
    if not os.path.exists(folder.of("result.json")):
        return False
    result = folder.read_json("result.json")
    return isinstance(result, dict) and result.get("ended") == PATIENCE


def record_steps(job: Job, lineage: Mapping[str, Any], folder: RunFolder, sets: Sequence[str]) -> None:
    """Record in the run folder the new number of steps of a resumed run, so that the next ``--resume`` uses it.

    The field ``prolonged`` of the lineage lists every such change: at which step, and the old and the new number of
    steps. ``sets`` are all ``--set`` strings of the run; the strings of this call come last. Of the strings of this
    call, only changes of ``steps`` are recorded. Raises OutputError.
    """
    before, steps = lineage["settings"]["steps"], job.settings.steps
    if steps == before:
        return
    known = lineage["sets"]
    text = config_text(job, os.path.relpath(os.path.abspath(job.document.folder), os.path.abspath(folder.path)))
    used = text.encode("utf-8", "surrogatepass")
    change = {"at": folder.last_step(), "from": before, "to": steps}
    folder.write_json(
        LINEAGE,
        {
            **lineage,
            "sets": [*known, *(one for one in sets[len(known) :] if one.startswith("steps="))],
            "settings": {**lineage["settings"], "steps": steps},
            "prolonged": [*lineage.get("prolonged", ()), change],
            KEPT: hashlib.sha256(used).hexdigest(),
        },
    )
    folder.write("config.yaml", used)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    flat_old, flat_new = _flat(old), _flat(new)
    free = (*FREE, *NEARLY_FREE, "steps")
    return [
        f"train.{name} was {flat_old.get(name)!r}, is {flat_new.get(name)!r}"
        for name in flat_new | flat_old
        if name not in free and flat_old.get(name) != flat_new.get(name)
    ]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inside = name in ("data", "features") and isinstance(value, dict)
        found |= {f"{name}.{key}": one for key, one in value.items()} if inside else {name: value}
    return found


_CAUSES = ("tokens", "segmenter")
"""The digests whose change changes others: another tokeniser makes other ids of the same texts."""


def check_data(job: Job, old: Mapping[str, str], run: str) -> Iterator[str]:
    """Yield notes on harmless changes of the data since ``run`` was started; ``old`` has the digests at its start.

    Other clips of test are harmless: the weights do not depend on them. Raises ConfigError if clips or texts of train
    or dev, tokens or the tokeniser changed.
    """
    new = data_digests(job)
    for name in sorted(old, key=lambda name: name not in _CAUSES):
        if new.get(name) == old[name]:
            continue
        if name in ("task", "lm"):
            yield f"{escape(str(getattr(job.settings, name)))} has changed since {escape(run)} was started"
            continue
        kind = "texts" if hasattr(getattr(job, name, None), TEXTS_DIGEST) else "clips"
        what = {"tokens": "has other tokens", "segmenter": "cuts texts differently"}.get(
            name, f"has other {kind} for {name}"
        )
        if name == "test":
            yield f"{escape(_named(job, name))} {what} than when {escape(run)} was started"
            continue
        raise ConfigError(
            f"{escape(_named(job, name))} {what} than when {escape(run)} was started.",
            hint="Restore the old data, or start another run with --run.",
        )


def _named(job: Job, name: str) -> str:
    """Return the value of the field ``name`` of ``train.data`` as text for a message.

    ``name`` is tokens, segmenter or a split.
    """
    given: Any = getattr(job.settings.data, name)
    if name == "segmenter":
        return str(given)
    if name == "tokens":
        return str(given or job.document.model.get("tokens", job.document.model.get("alphabet")))
    return ", ".join(one if isinstance(one, str) else f"train.data.{name}" for one in given)
