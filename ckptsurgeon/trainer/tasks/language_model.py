"""Trains a causal language model: each token of a text is predicted from the tokens before it.

The model is a ``…ForCausalLM`` of transformers. Texts are packed: they are joined, with the model's end token between
them, and cut into rows of ``data.context`` tokens without padding. A row may contain parts of several texts, and each
token is predicted from all tokens before it in its row, as in GPT-2 and nanoGPT.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError, SourceError
from ...storage.small_files import open_file
from ...util.text import count, escape, listing
from ..config.settings import Settings
from ..data.labels import HALF_LETTER
from ..data.loader import BatchSize, epoch_batches
from ..data.overlap import overlap_notes
from ..data.segmenter import Segmenter
from ._masks import unchecked_positions
from ._task import Batch, Loss, Task

__all__ = ["TASK", "LanguageModel", "PackedRows"]

IGNORED = -100
"""The label of positions after the end of the last row, which the loss ignores."""
LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".json", ".parquet", ".arrow", ".gz", ".zst", ".zip")
"""Endings of the names of files that are certainly not plain text."""


class LanguageModel:
    """The task of a language model: to predict the next token.

    The loss, which is also the metric, is in nats per predicted token.
    """

    metric = "loss"

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        data = settings.data
        if data.segmenter is None:
            raise ConfigError(
                "the task language_model needs the tokeniser of the model.",
                hint="Set train.data.segmenter to the file of the tokeniser, such as base/tokenizer.json.",
            )
        self._settings, self._segmenter = settings, Segmenter(data.segmenter)
        self._end: int | None = None
        self._size = 0
        self._splits: dict[str, PackedRows] = {}
        self._overlaps: list[str] = []

    def meet(self, model: nn.Module) -> None:
        """Read the end token and the vocabulary size of a model.

        Raises ConfigError if the model has no output layer, or if the settings give the size of a batch in seconds.
        """
        if self._settings.batch_seconds is not None:
            raise ConfigError(
                "train.batch_seconds: texts have no length in seconds.", hint="Write train.batch_size instead."
            )
        config: Any = getattr(model, "config", None)
        output: Any = getattr(model, "get_output_embeddings", lambda: None)
        if config is None or output() is None:
            raise ConfigError(
                f"the task language_model trains a causal model of transformers, but this is {type(model).__name__}.",
                hint="Give the class: model: {transformers: config.json, architecture: LlamaForCausalLM}.",
            )
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        end = getattr(text, "eos_token_id", None)
        self._end = end[0] if isinstance(end, list) and end else end if isinstance(end, int) else None
        self._size = int(text.vocab_size)

    def splits(self) -> dict[str, PackedRows]:
        """Return the rows of each split; raises SourceError and ConfigError for files that cannot be used."""
        if not self._splits:
            data, digests = self._settings.data, dict[str, list[bytes]]()
            for name in ("train", "dev", "test"):
                if name == "train" or getattr(data, name):
                    self._splits[name], digests[name] = self._split(name, getattr(data, name))
            self._overlaps = overlap_notes(digests, "text")
        return self._splits

    def _split(self, name: str, paths: Sequence[Any]) -> tuple[PackedRows, list[bytes]]:
        """Return the rows of a split, and digests of its texts that are not blank; the texts are not kept."""
        texts = self._texts(name, paths)
        written = (text.encode() for text in texts if text.strip())
        return self._rows(name, texts), [hashlib.blake2b(text, digest_size=16).digest() for text in written]

    def _texts(self, name: str, paths: Sequence[Any]) -> list[str]:
        if not paths or not all(isinstance(path, str) for path in paths):
            raise ConfigError(
                f"train.data.{name} must be the path of a text file, or a list of such paths.",
                hint=f"Write, for example, {name}: texts.txt.",
            )
        table = next((path for path in paths if path.lower().endswith(TABLES)), None)
        if table is not None:
            raise ConfigError(
                f"train.data.{name}: {escape(table)} is neither a plain text file nor a .jsonl file.",
                hint='Write each text as a line {"text": "…"} of a .jsonl file.',
            )
        return [text for path in paths for text in _texts(path)]

    def _rows(self, name: str, texts: Sequence[str]) -> PackedRows:
        ids: list[int] = []
        for row in self._segmenter.ids(texts):
            ids += row
            if self._end is not None:
                ids.append(self._end)
        if len(ids) < 2:
            raise ConfigError(
                f"train.data.{name} has only {count(len(ids), 'token')}: there is no next token to predict.",
                hint="Give files with text.",
            )
        if max(ids) >= self._size:
            raise ConfigError(
                f"train.data.{name}: the tokeniser makes the token id {max(ids)}, but the model's vocabulary has "
                f"{count(self._size, 'entry', 'entries')}.",
                hint="Set train.data.segmenter to the tokeniser of this model.",
            )
        unknown = ids.count(self._segmenter.unknown_id) if self._segmenter.unknown_id is not None else 0
        remarks = [
            *([f"{unknown} of the tokens are the unknown token"] if unknown else []),
            *self._lost_letters(texts),
            *_blank_texts(texts),
        ]
        return PackedRows(
            name, np.asarray(ids, dtype=np.int32), self._settings.data.context, self._settings.batch_size,
            texts=len(texts), remarks=remarks, shuffled=name == "train",
        )  # fmt: skip

    def _lost_letters(self, texts: Sequence[str]) -> list[str]:
        """Return a remark if the tokeniser leaves out letters of the texts."""
        lost = [letters for text in texts if (letters := self._segmenter.lost_letters(text))]
        if not lost:
            return []
        numbers = Counter[str]()
        for letters in lost:
            numbers.update(letters)
        names = [f"{escape(letter)!r}" for letter, _ in numbers.most_common()]
        there = f"{count(numbers.total(), 'character')} in {count(len(lost), 'text')}"
        return [f"the tokeniser has no token for {there}, and leaves them out: {listing(names, where='')}"]

    def notes(self) -> list[str]:
        """Return a line for each split, and lines if splits share texts or no end token is between texts."""
        made = [rows.says() for rows in self.splits().values()]
        several = any(rows.texts > 1 for rows in self.splits().values())
        return [
            *made,
            *self._overlaps,
            *(
                ["the model has no eos_token_id: no token is put between texts"]
                if self._end is None and several
                else []
            ),
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch: the cross-entropy of the next tokens, as a sum over the tokens."""
        total = nn.functional.cross_entropy(
            self._logits(model, batch).flatten(0, 1), batch.labels.flatten(), reduction="sum", ignore_index=IGNORED,
            label_smoothing=self._settings.label_smoothing,
        )  # fmt: skip
        return Loss(total, batch.label_lengths.sum(), {"cross_entropy": total.detach()})

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        with unchecked_positions():
            logits: Tensor = model(input_ids=batch.inputs, use_cache=False).logits
        return logits.float()

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per token, in nats, if all tokens were equally likely."""
        return math.log(self._size)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the loss per token, in nats, and the perplexity, its exponential."""
        total, tokens = 0.0, 0
        for batch in batches:
            logits = self._logits(model, batch).flatten(0, 1)
            total += float(
                nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="sum", ignore_index=IGNORED)
            )
            tokens += int(batch.label_lengths.sum())
        loss = total / max(tokens, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


class PackedRows:
    """A batch source with rows of ``context`` tokens; the label of each token is the token that follows it.

    If ``shuffled`` is true, the order of the rows depends on seed and epoch. ``ids`` (int32) are the tokens of all
    texts, joined. ``texts`` is the number of texts, and ``remarks`` are parts of the line about the split. Every token
    except the first is predicted once in an epoch.
    """

    def __init__(
        self, name: str, ids: np.ndarray[Any, np.dtype[np.int32]], context: int, batch_size: int, *, texts: int,
        remarks: Sequence[str] = (), shuffled: bool,
    ) -> None:  # fmt: skip
        self.name, self.texts, self.batch_size, self._remarks = name, texts, batch_size, remarks
        self._ids, self._context, self._shuffled = torch.from_numpy(ids), context, shuffled
        self._begins = range(0, len(ids) - 1, context)

    def says(self) -> str:
        """Return a line about the split: the numbers of texts, tokens and rows, and what is wrong with the texts."""
        tokens = f"{count(len(self._ids), 'token')} in {count(len(self._begins), 'row')} of {self._context}"
        return "; ".join([f"{self.name}: {count(self.texts, 'text')}, {tokens}", *self._remarks])

    def texts_digest(self) -> str:
        """Return the SHA-256 of all tokens, by which a resumed run notices other texts."""
        return hashlib.sha256(self._ids.numpy().astype("<i4", copy=False).data).hexdigest()

    def size(self, epoch: int) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self._begins) // self.batch_size)

    def read(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from the ``start``-th on."""
        lengths, size = [1.0] * len(self._begins), BatchSize(self.batch_size)
        rows = range(len(self._begins))
        order = (
            epoch_batches(lengths, size, seed=seed, epoch=epoch) if self._shuffled else size.cut(list(rows), lengths)
        )
        for places in order[start:]:
            yield self._batch(places)

    def _batch(self, places: Sequence[int]) -> Batch:
        pieces = [self._ids[self._begins[place] :][: self._context + 1] for place in places]
        lengths = torch.tensor([len(piece) - 1 for piece in pieces])
        inputs = torch.zeros(len(pieces), int(lengths.max()), dtype=torch.int64)
        labels = torch.full_like(inputs, IGNORED)
        for row, piece in enumerate(pieces):
            inputs[row, : len(piece) - 1], labels[row, : len(piece) - 1] = piece[:-1], piece[1:]
        names = tuple(f"{self.name}, token {self._begins[place]}" for place in places)
        return Batch(inputs, lengths, labels, lengths, 0.0, names)


def _blank_texts(texts: Sequence[str]) -> list[str]:
    blank = sum(not text.strip() for text in texts)
    return [f"{count(blank, 'text')} {'has' if blank == 1 else 'have'} nothing but spaces"] if blank else []


def _texts(path: str) -> Iterator[str]:
    """Yield the texts of a file: for .jsonl and .ndjson, the field ``text`` of each line; else the whole file.

    Blank lines are skipped. Raises SourceError if the file cannot be read, and ConfigError if it is not UTF-8 or a line
    is invalid.
    """
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8") as file:
            try:
                if not path.lower().endswith(LINES):
                    yield file.read()
                    return
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _text_of(line, f"{path}:{number}")
            except UnicodeDecodeError as error:
                place = file.buffer.tell() - len(error.object) + error.start  # lines are decoded in chunks
                raise ConfigError(
                    f"{escape(path)} is not UTF-8: {error.reason} at byte {place}.", hint="Save the file as UTF-8."
                ) from error
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error


def _text_of(line: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{escape(where)} is not JSON: {escape(str(error), 100)}.") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{escape(where)} has no field text with a string.", hint='Write each line as {"text": "…"}.')
    half = HALF_LETTER.search(text)
    if half is not None:
        raise ConfigError(
            f"{escape(where)}: the text contains {escape(half[0])}, half of a letter in UTF-16.",
            hint="Write the whole letter.",
        )
    return text


TASK: type[Task] = LanguageModel
