"""Trains the modules of a ``hyperparams.yaml`` with the forward pass and the loss of a recipe's Brain.

``train.task: train.py:ASR`` is the Brain's file and class. ``compute_forward`` and ``compute_objectives`` are called as
in the Brain's ``fit`` (speechbrain/core.py). ckptsurgeon itself makes the batches, optimizer, checkpoints and log.
"""

from __future__ import annotations

import ast
import bisect
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...destinations._brain_modules import BrainModules, has_statistics
from ...errors import ConfigError
from ...util.text import escape, listing
from ..config.settings import Settings
from ..data.labels import Labels
from ..data.loader import epoch_batches
from ..data.sound import Clip
from ..system.random_state import preserve_cpu_random_state
from ._sounds import TranscribedTask
from ._task import Batch, Loss, Task

__all__ = ["TASK", "SpeechBrain", "brain_task"]

FORWARD, OBJECTIVES = "compute_forward", "compute_objectives"
CALLED = (FORWARD, OBJECTIVES, "on_stage_start")
"""The methods of a Brain that the task calls."""
INDICES = ("bos_index", "eos_index")
"""Entries of hyperparams.yaml: the index of the first token in ``tokens_bos``, and of the last in ``tokens_eos``."""


def brain_task(brain: type) -> type[Task]:
    """Return the class of a task that trains with the forward pass and the loss of a recipe's class ``brain``."""
    return type(brain.__name__, (SpeechBrain,), {"brain": brain, "__module__": brain.__module__})


class SpeechBrain(TranscribedTask):
    """The task of training with a recipe's Brain: its loss trains the model, and its metrics evaluate the model.

    The loss of a Brain is a mean over the examples of a batch.
    """

    brain: ClassVar[Any] = None
    metric = "loss"
    needs_blank = False
    read_by = "Decode it with SpeechBrain: give the weights to the pretrainer of its hyperparams.yaml."

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        if self.brain is None:
            raise ConfigError(
                "the task speechbrain needs the Brain of a recipe, which has the loss.",
                hint="Write train.task: FILE:CLASS, such as train.py:ASR.",
            )
        if settings.features.kind != "waves":
            raise ConfigError(
                f"a Brain computes features itself, but train.features.kind is {settings.features.kind}.",
                hint="Write train.features: {kind: waves}.",
            )
        super().__init__(settings, tokens)
        self._brains: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
        self._lengths: Sequence[float] = ()
        self._ends: list[int] = []
        self._epoch = 1

    def fits(self, clip: Clip) -> bool:
        """Return True: the Brain itself handles clips that are too short for their text."""
        return True

    def begin_step(self, model: nn.Module, step: int) -> None:
        """Set the Brain's epoch (``epoch_counter.current``), on which its loss may depend."""
        before, self._epoch = self._epoch, self._epoch_of(step * self.settings.accumulate)
        if self._epoch != before:
            self._start(self._brain_of(model), "TRAIN")

    def _epoch_of(self, number: int) -> int:
        """Return the epoch (counted from 1) of the batch ``number`` (counted from 0 over the whole run)."""
        self._lengths = self._lengths or self.split("train").lengths
        size = self.batch_size()
        if size.seconds is None:
            return 1 + number // ceil(len(self._lengths) / size.clips)
        while not self._ends or self._ends[-1] <= number:
            epoch = len(self._ends)
            batches = epoch_batches(self._lengths, size, seed=self.settings.seed, epoch=epoch)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(batches))
        return 1 + bisect.bisect_right(self._ends, number)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its examples."""
        brain = self._brain_of(model)
        mean = self._mean(brain, batch, "TRAIN")
        return Loss(mean.sum() * len(batch.names), len(batch.names), {})

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss over examples, and the Brain's metrics; error rates are from 0 to 1, not in percent."""
        brain = self._brain_of(model)
        self._start(brain, "VALID")
        total, items = 0.0, 0
        for batch in batches:
            total += float(self._mean(brain, batch, "VALID").sum()) * len(batch.names)
            items += len(batch.names)
        return {"loss": total / max(items, 1), **_figures(brain)}

    def _mean(self, brain: Any, batch: Batch, stage: str) -> Tensor:
        stages = _stages()
        given = BrainBatch(batch, self.labels, brain.hparams)
        found = brain.compute_objectives(brain.compute_forward(given, stages[stage]), given, stages[stage])
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = f"{found.numel()} numbers" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"{OBJECTIVES} of {type(brain).__name__} returns {what}, not a loss, which is one number."
            )
        return found

    def _start(self, brain: Any, stage: str) -> None:
        counter = getattr(brain.hparams, "epoch_counter", None)
        if counter is not None:
            counter.current = self._epoch
        brain.on_stage_start(_stages()[stage], self._epoch)

    def _brain_of(self, model: nn.Module) -> Any:
        """Return a Brain with the modules of ``model``, and the entries of hyperparams.yaml that its methods use.

        Raises ConfigError if ``model`` does not have the modules of a hyperparams.yaml.
        """
        if model not in self._brains:
            if not isinstance(model, BrainModules):
                raise ConfigError(
                    f"{escape(self.settings.task)} is a Brain of SpeechBrain. It trains the modules of a "
                    f"hyperparams.yaml, but the model is {type(model).__name__}.",
                    hint="Write model: {speechbrain: hyperparams.yaml}, without the field entry.",
                )
            _check_state(model)
            device = next(model.parameters()).device
            wanted = [name for name in (*entries_used(self.brain), *INDICES) if name in model.entry_names]
            with preserve_cpu_random_state():
                made = model.make_entries(list(dict.fromkeys(wanted)))
                made = {name: one for name, one in made.items() if one is not None}
                for name, one in made.items():
                    made[name] = one.to(device) if isinstance(one, nn.Module) else self._tokenizer_in(one)
                brain = self.brain(modules=dict(model), hparams=made, run_opts={"device": str(device)})
            brain.modules = model
            for name in TOKENIZERS:
                if not hasattr(brain, name):
                    setattr(brain, name, made.get(name) or Tokenizer(self.labels))
            self._brains[model] = brain
            self._start(brain, "TRAIN")
        return self._brains[model]

    def _tokenizer_in(self, one: Any) -> Any:
        """Return ``one``, an entry of hyperparams.yaml; a ``Tokenizer`` for an empty SentencePiece processor.

        Such a processor is empty because only the recipe's ``main`` loads its model, and ``main`` is not run here.
        """
        is_empty = type(one).__name__ == "SentencePieceProcessor" and not one.serialized_model_proto()
        return Tokenizer(self.labels) if is_empty else one


def _check_state(modules: nn.Module) -> None:
    """Raise ConfigError for a module whose statistics are not in its state dict: a checkpoint would lack them."""
    for name, module in modules.named_modules():
        if has_statistics(module):
            raise ConfigError(
                f"{escape(name)} ({type(module).__name__}) collects statistics outside its state dict, so a "
                "checkpoint would lack them.",
                hint="To save them, set the number of features of the module, for example 80: "
                f"model: {{..., statistics: {{{escape(name)}: 80}}}}.",
            )


TOKENIZERS = ("tokenizer", "label_encoder")
"""Attributes of a Brain that are usually set by its recipe's ``main``; here, the task sets them."""


class Tokenizer:
    """Decodes token indices by ``train.data.tokens``, with the methods of SentencePiece and of label encoders."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels

    def decode_ids(self, ids: Sequence[int]) -> str:
        """Return the text of token indices."""
        return self._labels.decode([int(one) for one in ids])

    def decode_ndim(self, ids: Any) -> Any:
        """Return the tokens with the indices ``ids``, in lists that are nested as ``ids`` is."""
        if isinstance(ids, (list, tuple)) or (isinstance(ids, Tensor) and ids.dim()):
            return [self.decode_ndim(one) for one in ids]
        return self._labels.tokens[int(ids)]

    def get_piece_size(self) -> int:
        """Return the number of tokens."""
        return len(self._labels)


class Padded(NamedTuple):
    """Padded data, and their lengths as shares of the longest, as in ``speechbrain.dataio.batch.PaddedData``."""

    data: Tensor
    lengths: Tensor


TOKENS = re.compile(r"(?:tokens|(?:phn|char|wrd|word|token)_encoded)(_bos|_eos|_list)?")
TEXTS = ("wrd", "words", "txt", "text", "transcript", "transcription", "phn", "char")
SIGNALS = ("sig", "signal", "wav")
LISTS = ("phn_list", "char_list", "wrd_list")


class BrainBatch:
    """A batch with the attributes that recipes use: ``sig``, ``tokens``, ``tokens_bos``, ``phn_encoded``, ``wrd``."""

    def __init__(self, batch: Batch, labels: Labels, hparams: Any) -> None:
        self._batch, self._labels, self._hparams = batch, labels, hparams

    def __getattr__(self, name: str) -> Any:
        found = TOKENS.fullmatch(name)
        if found is not None:
            return self._tokens(found[1] or "")
        if name in SIGNALS:
            return Padded(self._batch.inputs, _relative(self._batch.lengths, self._batch.inputs.shape[1]))
        if name == "id":
            return list(self._batch.names)
        if name in TEXTS:
            return [self._labels.decode(ids) for ids in self._ids()]
        if name in LISTS:
            return [[self._labels.tokens[one] for one in ids] for ids in self._ids()]
        raise ConfigError(
            f"the Brain uses batch.{escape(name)}, which a batch of ckpt does not have.",
            hint=f"A batch has id; {listing(SIGNALS, 9)}, which are the same tensor; {listing(LISTS, 9)}; "
            f"{listing(TEXTS, 9)}; and tokens, phn_encoded, char_encoded and wrd_encoded, each of these four also with "
            "_bos, _eos or _list appended.",
        )

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to(self, *_: Any, **__: Any) -> BrainBatch:
        """Return the batch itself, which is on the right device already."""
        return self

    def __len__(self) -> int:
        return len(self._batch.names)

    def _ids(self) -> list[list[int]]:
        lengths = self._batch.label_lengths.tolist()
        return [row[:length] for row, length in zip(self._batch.labels.tolist(), lengths, strict=True)]

    def _tokens(self, form: str) -> Any:
        labels, lengths = self._batch.labels, self._batch.label_lengths
        if form == "_list":
            return self._ids()
        if form:
            number = getattr(self._hparams, f"{form[1:]}_index", None)
            if number is None:
                raise ConfigError(
                    f"the Brain uses tokens{form}, but hyperparams.yaml has no {form[1:]}_index.",
                    hint=f"Add {form[1:]}_index: NUMBER, the index of that token, to hyperparams.yaml.",
                )
            column = labels.new_full((len(labels), 1), number)
            if form == "_bos":
                labels = torch.cat([column, labels], 1)
            else:
                labels = torch.cat([labels, torch.zeros_like(column)], 1).scatter(1, lengths[:, None], column)
            lengths = lengths + 1
        return Padded(labels, _relative(lengths, labels.shape[1]))


def _relative(lengths: Tensor, longest: int) -> Tensor:
    return lengths.float() / max(longest, 1)


def _stages() -> Mapping[str, Any]:
    """Return the members of SpeechBrain's enum ``Stage``, such as TRAIN, by name."""
    from speechbrain.core import Stage  # type: ignore[import-not-found, unused-ignore]

    return {one.name: one for one in Stage}


def _figures(brain: Any) -> dict[str, float]:
    """Return the value of each metric of a Brain, such as ``wer_metric``, after an evaluation."""
    found = {}
    for name, one in vars(brain).items():
        if callable(getattr(one, "summarize", None)) and getattr(one, "scores", None):
            said = one.summarize()
            rate, mean = (said.get("error_rate"), said.get("average")) if isinstance(said, Mapping) else (None, None)
            value = mean if rate is None else rate / 100
            if value is not None:
                found[re.sub(r"_(metrics?|stats|computer)$", "", name)] = float(value)
    return found


# The entries of hyperparams.yaml that a Brain uses, found in the code of its methods.


def entries_used(brain: type) -> list[str]:
    """Return the names of the hyperparams.yaml entries that a Brain uses, as ``self.hparams.NAME``.

    The names are found in the source code of the methods in ``CALLED``, and of the Brain's other methods that they
    call.
    """
    names: list[str] = []
    waiting, seen = list(CALLED), set[str]()
    while waiting:
        method = waiting.pop()
        if method in seen or getattr(brain, method, None) is None:
            continue
        seen.add(method)
        for node in ast.walk(_code(getattr(brain, method))):
            if isinstance(node, ast.Attribute):
                if _is_hparams(node.value):
                    names.append(node.attr)
                elif isinstance(node.value, ast.Name) and node.value.id == "self":
                    waiting.append(node.attr)
            elif isinstance(node, ast.Call):
                names += _asked_for(node)
    return list(dict.fromkeys(["epoch_counter", *sorted(names)]))


def _code(method: Callable[..., Any]) -> ast.AST:
    if not inspect.isfunction(method) or method.__module__.startswith("speechbrain."):
        return ast.Module([], [])
    return ast.parse(textwrap.dedent(inspect.getsource(method)))


def _is_hparams(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "hparams") or (
        isinstance(node, ast.Name) and node.id == "hparams"
    )


def _asked_for(call: ast.Call) -> Iterator[str]:
    """Yield NAME of a call like ``hasattr(self.hparams, NAME)`` or ``getattr(self.hparams, NAME)``."""
    if isinstance(call.func, ast.Name) and call.func.id in ("hasattr", "getattr") and len(call.args) > 1:
        target, name = call.args[:2]
        if _is_hparams(target) and isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


TASK: type[Task] = SpeechBrain
