"""The lineage of a run, a record of its origin: it is written at the start, and compared when the run is resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ...destinations._document import RELATIVE_TO, Document
from ...errors import ConfigError, FormatError
from ...storage.small_files import open_file, read_file
from ...storage.yaml_text import dump_yaml
from ...util.text import count, escape, listing
from ...util.version import __version__
from ...vocabulary.vocabulary import digest_of_tokens
from ..config.settings import ANNEALED, Settings
from ..data.loader import Batches
from ..data.sound import Clip
from ..folder.run_folder import RunFolder
from ..job.job import Job
from ..state.optimizer import lr_factor
from ..state.training_state import PATIENCE
from ..tasks._load import task_file
from .known_settings import known_settings
from .result import plain_json

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = [
    "KEPT",
    "OVERFITTING",
    "check_data",
    "check_unchanged",
    "config_text",
    "data_digests",
    "edited_config_note",
    "lineage_of",
    "metadata_of",
    "read_lineage",
    "record_steps",
]


def data_digests(job: Job) -> dict[str, str]:
    """Return digests of the data of a run, by name, without data that the run does not use.

    The names are ``tokens`` (the token list), ``segmenter`` (the tokeniser), ``train`` and ``dev`` (their clips in
    order), ``lm`` (the language model for decoding) and ``task`` (the file with the user's own task).
    """
    home = os.path.dirname(os.path.abspath(job.document.path))
    found = {"tokens": digest_of_tokens(job.tokens)} if job.tokens else {}
    for name, source in (("train", job.train), ("dev", job.dev)):
        if isinstance(source, Batches):
            found[name] = _digest(_line(clip, home) for clip in source.split.clips)
    segmenter = job.settings.data.segmenter
    if segmenter is not None:
        found["segmenter"] = hashlib.sha256(read_file(os.path.join(home, segmenter))).hexdigest()
    if job.settings.lm is not None:
        with open_file(os.path.join(home, job.settings.lm)) as file:
            found["lm"] = hashlib.file_digest(file, "sha256").hexdigest()
    task = task_file(job.settings.task, home)
    if task and os.path.isfile(task):
        found["task"] = hashlib.sha256(read_file(task)).hexdigest()
    return found


def _line(clip: Clip, home: str) -> str:
    path = os.path.relpath(os.path.abspath(clip.path), home) if clip.path else clip.where
    return json.dumps([path, clip.text, clip.seconds, clip.begin_s, *(clip.cell or ())])


def _digest(lines: Iterable[str]) -> str:
    made = hashlib.sha256()
    for line in lines:
        made.update(line.encode() + b"\n")
    return made.hexdigest()


def check_data(job: Job, old: Mapping[str, str], run: str) -> Iterator[str]:
    """Yield notes on harmless changes of the data since ``run`` was started; ``old`` has the digests at its start.

    Raises ConfigError if clips, tokens or the tokeniser changed.
    """
    new = data_digests(job)
    for name in old:
        if new.get(name) == old[name]:
            continue
        if name in ("task", "lm"):
            yield f"{escape(str(getattr(job.settings, name)))} has changed since {escape(run)} was started"
            continue
        what = {"tokens": "has other tokens", "segmenter": "cuts texts differently"}.get(
            name, f"has other clips for {name}"
        )
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


LINEAGE = "lineage.json"
OVERFITTING = "overfit_one_batch"
KEPT = "kept_sha256"
"""The field of the lineage with the SHA-256 of config.yaml in the run folder."""
FREE = ("save_every", "keep", "data.workers", "data.cache", "epochs", "loggers")
"""Settings that may change when a run is resumed, because the weights do not depend on them.

``epochs`` only sets ``steps``.
"""
NEARLY_FREE = ("threads", "compile", "gradient_checkpointing")
"""Settings that may change, with a note, when a run is resumed: they change only rounding, or the values of dropout."""


def lineage_of(job: Job, plan: Plan | None, folder: RunFolder, sets: Sequence[str]) -> dict[str, Any]:
    """Return the lineage of a run, that is, its starting point, as a dict for JSON.

    Paths are relative to the run folder.
    """
    return {
        "kind": "ckpt.lineage",
        "version": 1,
        "ckptsurgeon": __version__,
        "config": os.path.relpath(os.path.abspath(job.document.path), os.path.abspath(folder.path)),
        "config_sha256": hashlib.sha256(job.document.text.encode()).hexdigest(),
        "model_sha256": _model_sha256(job.document),
        "sets": list(sets),
        "settings": plain_json(asdict(job.settings)),
        "seed": job.settings.seed,
        "device": job.device.type,
        "processes": job.ranks.size,
        "target": {"kind": job.target.kind, "tensors": len(job.target.tensors), "ran": list(job.target.ran)},
        "data": data_digests(job),
        "init": job.init.lineage(folder.path) if job.init is not None else None,
        "plan_sha256": plan.sha256() if plan is not None else None,
    }


def metadata_of(lineage: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of the lineage that is written into the safetensors metadata of a saved model."""
    kept = ("ckptsurgeon", "config_sha256", "seed", "init", "plan_sha256")
    return {"lineage": json.dumps({name: lineage[name] for name in kept}, ensure_ascii=True)}


def config_text(job: Job, folder: str) -> str:
    """Return the text of config.yaml in the run folder: the configuration with every setting, including defaults.

    ``folder`` is the folder of the original configuration, relative to the run folder. The paths in the text are
    relative to ``folder``.
    """
    content = job.document.content
    if not isinstance(content, dict):
        return job.document.text
    rest = {name: value for name, value in content.items() if name != RELATIVE_TO}
    document = {RELATIVE_TO: folder, **rest, "train": _listed(asdict(replace(job.settings, epochs=None)))}
    return "# the configuration as it was used, defaults included\n" + dump_yaml(document)


def _listed(value: Any) -> Any:
    """Return settings (a dict) with lists in place of tuples, because YAML has no tuples."""
    if isinstance(value, Mapping):
        return {name: _listed(one) for name, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def read_lineage(folder: RunFolder) -> dict[str, Any]:
    """Return the lineage of a run, the record of its origin; raises SourceError or FormatError if it is not valid."""
    found = folder.read_json(LINEAGE)
    if found.get("kind") != "ckpt.lineage" or found.get("version") != 1:
        raise FormatError(
            f"{escape(folder.of(LINEAGE))} was not written by ckpt train, or was written by a newer version of it."
        )
    return found


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
    if lineage["model_sha256"] != _model_sha256(job.document):
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
    if settings.schedule in ("constant", *ANNEALED):
        return [f"steps was {before}, is {steps}"]
    rates = (settings.lr * lr_factor(replace(settings, steps=many), max(done - 1, 0)) for many in (before, steps))
    was, now = (f"{rate:.3g}" for rate in rates)
    return [
        f"steps was {before}, is {steps}: from step {done} on, the learning rate follows the {settings.schedule} "
        f"schedule over {steps} steps, {now} instead of {was}"
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


def _model_sha256(document: Document) -> str:
    text = document.text if not document.model else json.dumps(plain_json(document.model), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
