"""Base classes of tasks whose examples are sounds: their splits, examples and batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...util.text import count, escape, percent, shape_text
from ..config.joined_errors import joined
from ..config.settings import Settings
from ..data.inputs import ClipInputs
from ..data.labels import Labels, UnknownLetterError
from ..data.loader import Batches, BatchSize
from ..data.overlap import clip_id, overlap_notes
from ..data.segmenter import Segmenter
from ..data.sound import ARRAY, Clip
from ..data.split import Split, read_split
from ._ctc_search import ctc_search, described
from ._task import Batch, ClipTask, Progress

__all__ = ["MeasuredTask", "SoundTask", "TranscribedTask"]


class SoundTask(ABC):
    """A task whose examples are clips of manifests. A subclass defines how the text of a clip becomes a label.

    ``decodings`` are the values of ``train.decoding`` that the task supports. ``texts`` is true if clips need
    transcripts.
    """

    texts = True
    decodings: tuple[str, ...] = ("ctc",)

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        if settings.decoding not in self.decodings:
            raise ConfigError(
                f"train.decoding is {settings.decoding}: the task {escape(settings.task)} {_lack(settings.decoding)}",
                hint="Use the task hybrid, which has a decoder."
                if settings.decoding != "ctc_beam"
                else "Use a task with CTC, such as ctc, or leave train.decoding out.",
            )
        self.settings = settings
        self.inputs = ClipInputs(settings)
        self._splits: dict[str, Split] = {}

    @abstractmethod
    def label(self, clip: Clip) -> Tensor:
        """Return the label of a clip, such as the token indices of its text, as a tensor (length,) or 0-d."""

    def check(self, clips: Sequence[Clip]) -> None:  # noqa: B027
        """Raise ConfigError, with file and line, for clips from which a model cannot learn.

        This default does nothing.
        """

    def fits(self, clip: Clip) -> bool:
        """Return whether a clip is long enough for its label."""
        return True

    def splits(self) -> dict[str, Batches]:
        """Return, by name, the batches of train, and of dev and test if the settings have manifests for them.

        Raises ConfigError if a manifest or a transcript is wrong, and SourceError if a sound is missing.
        """
        data, faults = self.settings.data, list[CheckpointError]()
        for name in ("train", "dev", "test"):
            if name not in self._splits and (name == "train" or getattr(data, name)):
                try:
                    self._splits[name] = self.split(name)
                except CheckpointError as error:
                    faults.append(error)
        if faults:
            raise joined(faults)
        # The batches are not stored in self: a data loader in a reference cycle ends its workers only after seconds.
        return {name: self._batches(split) for name, split in self._splits.items()}

    def split(self, name: str) -> Split:
        """Return the clips of the split ``name``: train, dev or test."""
        check = cast(Any, self.check) or (lambda clips: None)
        return read_split(name, self.settings.data, check=check, fits=self.fits, texts=self.texts)

    def batch_size(self) -> BatchSize:
        """Return the size of a batch, in clips or in seconds."""
        return BatchSize(self.settings.batch_size, self.settings.batch_seconds)

    def _batches(self, split: Split) -> Batches:
        settings = self.settings
        task = cast(ClipTask, self)  # the subclasses have the loss
        unmeasured = next((clip for clip in split.clips if not clip.seconds), None)
        if settings.batch_seconds is not None and unmeasured is not None:
            raise ConfigError(
                f"train.batch_seconds: {escape(unmeasured.where)} has no length in seconds.",
                hint="Write train.batch_size instead.",
            )
        return Batches(
            task, split, size=self.batch_size(), workers=settings.data.workers or 0,
            shuffled=split.name == "train", inputs=self.inputs,
        )  # fmt: skip

    def prepare(self, progress: Progress | None = None) -> list[str]:
        """Fill the cache of features for all splits; return a note on each split.

        Raises ConfigError if the settings have no folder for the cache.
        """
        if self.settings.data.cache is None:
            raise ConfigError("there is no folder for computed features.", hint="Set train.data.cache to a folder.")
        lines = []
        for name, batches in self.splits().items():
            made = batches.fill(partial(progress, name) if progress is not None else None)
            arrays = sum(clip.path.endswith(ARRAY) for clip in batches.split.clips)
            unread = f"; {count(arrays, 'array')} (.npy) not read" if arrays else ""
            lines.append(f"{batches.split.says()}; {count(made, 'clip')} computed{unread}")
        return lines

    def notes(self) -> list[str]:
        """Return a line for each split: clips, minutes, left-out clips with the reasons, the padding of ``train``.

        Further lines say that splits share clips, or that clips are longer than a batch.
        """
        splits = self.splits()
        padded = f"; padding {percent(splits['train'].padding(), 1)}" if splits["train"].split.seconds else ""
        lines = [f"{one.split.says()}{padded if name == 'train' else ''}" for name, one in splits.items()]
        clips = {
            name: [clip_id(clip) for clip in split.clips] for name, split in self._splits.items() if not split.made_by
        }
        return [*lines, *overlap_notes(clips, "clip"), *self._longer_than_a_batch(splits["train"].split)]

    def _longer_than_a_batch(self, split: Split) -> list[str]:
        """Return a note if clips are longer than ``batch_seconds``, the length that no batch should exceed."""
        seconds = self.settings.batch_seconds
        longer = sum(length > seconds for length in split.lengths) if seconds is not None else 0
        if not longer:
            return []
        return [
            f"train.batch_seconds is {seconds:g}, but {count(longer, 'clip')} of {split.name} "
            f"{'is' if longer == 1 else 'are'} longer, up to {max(split.lengths):.2f} s: each is a batch of its own"
        ]

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return the input and label of a clip, its length in seconds, and its name (its line in the manifest)."""
        return {"input": self.inputs(clip), "label": self.label(clip), "seconds": clip.seconds, "name": clip.where}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Return a batch of examples, padded with zeros at the end."""
        inputs, lengths = _padded([one["input"] for one in examples], [one["name"] for one in examples])
        labels, label_lengths = _padded([one["label"] for one in examples], [one["name"] for one in examples])
        seconds = sum(one["seconds"] for one in examples)
        return Batch(inputs, lengths, labels, label_lengths, seconds, tuple(one["name"] for one in examples))


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape_text(tuple(tensor.shape))}"


def _padded(tensors: Sequence[Tensor], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return tensors padded with zeros to (batch, longest, …), and their lengths (batch,); 0-d tensors become (batch,).

    Raises ConfigError if tensors differ in more than their length; ``names`` are the clips' names, for its message.
    """
    first = tensors[0]
    for tensor, name in zip(tensors, names, strict=True):
        if tensor.shape[1:] != first.shape[1:] or tensor.dim() != first.dim() or tensor.dtype != first.dtype:
            raise ConfigError(
                f"{name} is {_described(tensor)}, but {names[0]} is {_described(first)}: only the first dimension, the "
                "length, may differ.",
                hint="Give all examples of a batch the same dtype and the same other dimensions.",
            )
    if first.dim() == 0:
        return torch.stack(list(tensors)), torch.ones(len(tensors), dtype=torch.int64)
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    padded = first.new_zeros(len(tensors), int(lengths.max()), *first.shape[1:])
    for row, tensor in zip(padded, tensors, strict=True):
        row[: len(tensor)] = tensor
    return padded, lengths


class TranscribedTask(SoundTask):
    """A task whose labels are the token indices of texts; ``needs_blank`` is true if the token list needs a blank."""

    needs_blank = True

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        if not tokens:
            raise ConfigError(
                f"the task {escape(settings.task)} needs a token list.",
                hint="Set train.data.tokens to a token list: an alphabet.txt, a tokens.txt, or bytes.",
            )
        path = settings.data.segmenter
        segmenter = Segmenter(path) if path is not None else None
        self.labels = Labels(tokens, needs_blank=self.needs_blank, segmenter=segmenter)

    def notes(self) -> list[str]:
        """Return the notes on each split, and a note if texts are cut into word pieces without the tokeniser."""
        if not self.labels.is_guessed:
            return super().notes()
        guess = (
            "texts are cut into the longest pieces, not as the tokeniser cuts them: "
            "set train.data.segmenter to the tokeniser's file"
        )
        return [*super().notes(), guess]

    def label(self, clip: Clip) -> Tensor:
        """Return the token indices of a clip's text."""
        return torch.tensor(self._ids(clip), dtype=torch.int64)

    def _ids(self, clip: Clip) -> list[int]:
        try:
            return self.labels.encode(clip.text)
        except UnknownLetterError as error:
            raise self._unknown({clip.where: error}) from None

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ConfigError for transcripts that are empty or have unknown letters; the error's details list them."""
        faults = []
        empty = [clip.where for clip in clips if not clip.text.strip()]
        if empty:
            more = f", and {len(empty) - 1} more are" if len(empty) > 1 else ""
            faults.append(
                ConfigError(
                    f"{empty[0]}: the transcript is empty{more}.", hint="Write the transcript, or remove the line.",
                    details=[f"{where}: the transcript is empty" for where in empty],
                )
            )  # fmt: skip
        unknown, letters = {}, set()
        for clip in clips:
            try:
                self.labels.encode(clip.text)
            except UnknownLetterError as error:
                unknown[clip.where] = error
                letters |= {error.letter, *self.labels.unknown_letters(clip.text)}
        if unknown:
            faults.append(self._unknown(unknown, letters))
        if faults:
            raise joined(faults)

    def _unknown(self, unknown: Mapping[str, UnknownLetterError], letters: Collection[str] = ()) -> ConfigError:
        where, first = next(iter(unknown.items()))
        more = (
            f" (in all, {count(len(unknown), 'transcript')} with unknown letters: {' '.join(sorted(letters))})"
            if len(unknown) > 1
            else ""
        )
        return ConfigError(
            f"{where}: the letter {_shown(first.letter)} is not in the token list{escape(more)}.",
            hint=first.hint or "Add the letter to the token list, or correct the transcript.",
            details=[f"{place}: {_shown(error.letter)}" for place, error in unknown.items()],
        )

    def fits(self, clip: Clip) -> bool:
        """Return whether a clip has enough frames of features for CTC.

        If the model subsamples the frames, its output may still be too short.
        """
        return self.inputs.frames(clip) >= self.labels.frames_needed(self.labels.encode(clip.text))


class MeasuredTask(TranscribedTask):
    """A task with CTC that evaluates each clip separately.

    So several processes can share an evaluation, and the run can save the decoded text of each clip.
    """

    decodings: tuple[str, ...] = ("ctc", "ctc_beam")

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        self._search = ctc_search(settings, self.labels) if settings.decoding == "ctc_beam" else None

    def notes(self) -> list[str]:
        """Return the notes on the data, and a note on the beam search if texts are decoded by it."""
        if self._search is None:
            return super().notes()
        how = f"{described(self.settings)} (train.decoding: {self.settings.decoding})"
        return [*super().notes(), f"texts for error rates are decoded by {how}"]

    def decoded(self, log_probs: Tensor, lengths: Tensor) -> list[list[int]] | None:
        """Return the tokens of each clip that a beam search finds; None if CTC decodes frame by frame.

        ``log_probs`` (clips, frames, tokens) are the outputs of CTC, ``lengths`` (clips,) the numbers of frames without
        padding.
        """
        return self._search.read(log_probs, lengths) if self._search is not None else None

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Return a row (a dict) for each clip of a batch; ``figures`` computes the metrics from such rows."""

    @abstractmethod
    def figures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the metrics, such as loss and error rates, over the rows of many clips, by name."""

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the metrics, such as loss and error rates, over all clips of the batches, by name."""
        return self.figures([row for batch in batches for row in self.measure(model, batch)])


def _lack(decoding: str) -> str:
    return "has no CTC, which a beam search needs." if decoding == "ctc_beam" else "has no attention decoder."


def _shown(letter: str) -> str:
    return f"{escape(letter)!r} (U+{ord(letter):04X})"
