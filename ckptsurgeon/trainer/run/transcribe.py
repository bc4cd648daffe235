"""Transcribes sounds with a model that ``ckpt train`` has trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...api.inputs.argument_types import Path, checked
from ...destinations._document import read_document
from ...destinations._load import target_with
from ...errors import CheckpointError, ConfigError, SourceError
from ...storage.folder_files import files_with
from ...util.did_you_mean import did_you_mean
from ...util.short_repr import Brief
from ...util.text import count, escape
from ..config.bounds import find_fault
from ..config.settings import Settings
from ..data.loader import BatchSize, sorted_batches
from ..data.sound import SUFFIXES, Clip, sound_seconds
from ..data.split import errors_as_one
from ..evaluation import evaluation_mode
from ..folder.run_folder import RunFolder
from ..job.assembly import read_settings, task_of
from ..job.init_checkpoint import read_init
from ..job.job import Job
from ..state.saved_model import saved_model
from ..system.device import autocast, choose_device, torch_settings
from ..tasks._task import Batch, Task, explain_task_errors
from .records import LINEAGE

__all__ = ["Transcript", "Transcripts", "transcribe"]

CONFIG = "config.yaml"
"""The name of the configuration in a run folder."""


@dataclass(frozen=True, repr=False)
class Transcript(Brief):
    """The transcript of a sound, and the length of the sound in seconds."""

    path: str
    seconds: float
    text: str


@dataclass(frozen=True, repr=False)
class Transcripts(Brief):
    """The transcripts of several sounds, in order, and the paths of the weights and configuration that were used."""

    weights: str
    config: str
    sounds: tuple[Transcript, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the transcripts as a dict for JSON."""
        return {
            "kind": "ckpt.transcribe", "version": 1, "weights": self.weights, "config": self.config,
            "sounds": [asdict(one) for one in self.sounds],
        }  # fmt: skip


@checked
def transcribe(
    checkpoint: Path, sounds: Path | Sequence[Path], *, config: Path | None = None, device: str | None = None,
    batch_size: int | None = None, beam: int | None = None, lm: Path | None = None, lm_weight: float | None = None,
    word_bonus: float | None = None,
) -> Transcripts:  # fmt: skip
    """Transcribe sounds (WAV, FLAC, Ogg) with the best weights of a run, or with a file of weights.

    ``checkpoint`` is a file of weights, or the folder of a run, which also contains the configuration. ``config`` is
    the configuration with which the file was trained (default: config.yaml in the folder of the file). Texts are
    decoded as in the evaluations of the run (``train.decoding``), unless ``beam`` or ``lm`` is given. ``beam`` is the
    number of hypotheses that a beam search keeps, ``lm`` the ARPA file of a language model. The score of a text is its
    log-probability by CTC, plus ``lm_weight`` times its natural log-probability by the language model, plus
    ``word_bonus`` for each word. ``batch_size`` sounds are transcribed together, by default as many as in training.

    A folder in ``sounds`` stands for the sounds in it, by their suffixes, without hidden files and subfolders.

    Raises SourceError if a file is missing or is not a sound, or if a folder has no sounds. Raises ConfigError if the
    task does not transcribe, if a sound is too short, or if the GPU runs out of memory. Raises the errors of
    ``load_into`` if the weights do not fit.
    """
    weights, where = _found(os.fspath(checkpoint), os.fspath(config) if config is not None else None)
    if isinstance(sounds, (str, os.PathLike)):
        sounds = [sounds]
    paths = [path for one in sounds for path in _sounds_of(os.fspath(one))]
    if not paths:
        raise ConfigError("no audio file is given.", hint="Give one or more files: WAV, FLAC or Ogg.")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    document = read_document(where, "configuration")
    given = {"beam": beam, "lm": lm, "lm_weight": lm_weight, "word_bonus": word_bonus}
    settings = _decoded(read_settings(document, ()), {name: one for name, one in given.items() if one is not None})
    clips = _clips(paths, settings.features.window_s)
    target = target_with(where, None)
    task, tokens = task_of(settings, document, target)
    if not (hasattr(task, "measure") or hasattr(task, "read")):
        raise ConfigError(
            f"the task {escape(settings.task)} of {escape(where)} cannot transcribe audio.",
            hint=getattr(task, "read_by", ""),
        )
    init = _init_of(where) if settings.lora.targets else None
    no_data: Any = None
    job = Job(document, settings, target, choose_device(device), task, no_data, tokens=tuple(tokens), init=init)
    size = min(batch_size or settings.batch_size, len(clips))
    with torch_settings(settings, job.device):
        model = _model(job, weights)
        try:
            texts = _texts(job, model, clips, size)
        except torch.OutOfMemoryError as error:
            hint = f"Pass --batch-size {size // 2} or less." if size > 1 else "Cut the longest sounds into parts."
            raise ConfigError(
                f"the GPU does not have enough memory for {count(size, 'sound')} at a time.", hint=hint
            ) from error
    made = [Transcript(clip.path, round(clip.seconds, 3), text) for clip, text in zip(clips, texts, strict=True)]
    return Transcripts(weights, where, tuple(made))


def _sounds_of(path: str) -> list[str]:
    """Return the paths of the sounds in a folder, sorted naturally, or ``path`` itself if it is not a folder.

    Raises SourceError if the folder has no sounds.
    """
    if not os.path.isdir(path):
        return [path]
    found, _ = files_with(SUFFIXES, path)
    if not found:
        raise SourceError(
            f"the folder {escape(path)} has no sounds ({', '.join(SUFFIXES)}).",
            hint="Give sound files, or the folder in which they are; subfolders are not searched.",
        )
    return found


def _decoded(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return settings in which the values ``given`` for beam, lm, lm_weight and word_bonus replace the run's values.

    ``decoding`` becomes ``ctc_beam`` if a language model is given, or if a beam is given for settings without beam
    search. Raises ConfigError for values that have no effect or do not fit.
    """
    lm = os.path.abspath(given["lm"]) if "lm" in given else settings.lm
    useless = [name for name in ("lm_weight", "word_bonus") if name in given and lm is None]
    if useless:
        raise ConfigError(
            f"{useless[0]} has no effect without a language model.", hint="Give the file of a language model with lm."
        )
    has_beam = settings.decoding in ("ctc_beam", "joint")
    changes = "lm" in given or ("beam" in given and not has_beam)
    decoding = "ctc_beam" if changes else settings.decoding
    made = replace(settings, **{**given, "lm": lm, "decoding": decoding})
    if why := find_fault(made):
        raise ConfigError(f"{why.removeprefix('train.')}.")
    return made


def _found(path: str, config: str | None) -> tuple[str, str]:
    """Return the paths of the weights and of their configuration; ``path`` is a run folder or a file of weights.

    Raises SourceError if there are no weights, and ConfigError if there is no configuration.
    """
    if not os.path.exists(path):
        raise SourceError(f"{escape(path)} does not exist.", hint=did_you_mean(path))
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    weights = RunFolder(path).best if os.path.isdir(path) else path
    if not os.path.exists(weights):
        raise SourceError(
            f"{escape(path)} contains no best weights of a run.", hint="Give the folder of a run, or a file of weights."
        )
    where = config if config is not None else os.path.join(folder, CONFIG)
    if not os.path.exists(where):
        raise ConfigError(
            f"there is no configuration for {escape(weights)}: {escape(where)} does not exist.",
            hint="Give the configuration with which the weights were trained: --config FILE.",
        )
    return weights, where


def _init_of(config: str) -> Any:
    """Return the initial weights of a run that trained adapters; the adapters are added to them.

    ``config`` is the path of the run's configuration. Raises ConfigError if the record of the run in the same folder is
    missing, or names no initial weights.
    """
    folder = RunFolder(os.path.dirname(config))
    known = folder.read_json(LINEAGE).get("init") if os.path.exists(folder.of(LINEAGE)) else None
    if known is None:
        raise ConfigError(
            f"{escape(config)} trains adapters, but no {LINEAGE} in its folder says which weights they belong to.",
            hint="Merge the adapter: ckpt lora merge INIT ADAPTER -o model.safetensors. Then transcribe with "
            "model.safetensors and --config FILE, where FILE is the configuration without train.lora.",
        )
    return read_init(os.path.normpath(os.path.join(folder.path, known["path"])))


def _clips(paths: Sequence[str], shortest: float) -> list[Clip]:
    """Return the clips of sounds, with their lengths; raises one error for all sounds that are not valid."""
    clips, wrong = list[Clip](), list[CheckpointError]()
    for path in paths:
        try:
            clips.append(_clip(path, shortest))
        except CheckpointError as error:
            wrong.append(error)
    if wrong:
        raise errors_as_one(wrong, len(paths))
    return clips


def _clip(path: str, shortest: float) -> Clip:
    clip = Clip(path, "", path, 0.0)
    seconds = sound_seconds(clip)
    if seconds < shortest:
        raise ConfigError(
            f"{escape(path)} is too short: it has {seconds:g} s, a frame needs {shortest:g} s.",
            hint="Leave this file out.",
        )
    return replace(clip, seconds=seconds)


def _model(job: Job, weights: str) -> torch.nn.Module:
    """Return the model with the weights in the file ``weights``; raises ConfigError if they do not fit the GPU."""
    try:
        return saved_model(job, weights)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU does not have enough memory for the weights {escape(weights)}.", hint="Use --device cpu."
        ) from error


@torch.no_grad()
def _texts(job: Job, model: torch.nn.Module, clips: Sequence[Clip], batch_size: int) -> list[str]:
    """Return the model's text of each clip; ``batch_size`` clips are transcribed together, the longest first.

    Raises one error for all clips that cannot be read; after the first such clip, the others are only read.
    """
    texts = [""] * len(clips)
    task: Task = job.task
    given: Any = task
    wrong = dict[int, CheckpointError]()
    with evaluation_mode(model), autocast(job.settings, job.device), explain_task_errors(job.settings.task):
        for places in sorted_batches([clip.seconds for clip in clips], BatchSize(batch_size)):
            examples = []
            for place in places:
                try:
                    examples.append(given.example(clips[place]))
                except CheckpointError as error:
                    wrong[place] = error
            if wrong:
                continue
            batch = given.collate(examples).to(job.device)
            for place, text in zip(places, _read(given, model, batch), strict=True):
                texts[place] = text
    if wrong:
        raise errors_as_one([wrong[place] for place in sorted(wrong)], len(clips))
    return texts


def _read(task: Any, model: torch.nn.Module, batch: Batch) -> list[str]:
    """Return the text of each clip of a batch, by the task's method ``read`` or, without it, ``measure``."""
    if hasattr(task, "read"):
        return list(task.read(model, batch))
    return [row["hypothesis"] for row in task.measure(model, batch)]
