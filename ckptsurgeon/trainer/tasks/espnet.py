"""Trains a model of ESPnet by the model's own loss, for tasks from speech to text: recognition, translation.

``forward(speech, speech_lengths, text, text_lengths)`` returns the mean loss of a batch, the mean of each metric by
name, and the number of examples (espnet2/train/abs_espnet_model.py).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...util.text import listing
from ..config.settings import Settings
from ..data.sound import Clip
from ._ctc_model import check_outputs
from ._sounds import TranscribedTask
from ._task import Batch, Loss, Task

__all__ = ["TASK", "ESPnet"]

INPUTS = ("speech", "speech_lengths", "text", "text_lengths")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
PADDING = -1
"""The value with which ESPnet's collate function pads texts (espnet2/train/collate_fn.py)."""


class ESPnet(TranscribedTask):
    """The task of training a model of ESPnet by the model's own loss; loss and metrics are means over examples.

    ``train.metric`` is the metric (``acc``, ``cer_ctc`` or another) that decides which model is best; the default is
    the loss.
    """

    metric = "loss"
    higher = ("acc", "acc_asr", "acc_mt", "acc_st", "bleu")

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        if settings.features.kind != "waves":
            raise ConfigError(
                f"a model of ESPnet computes features itself, but train.features.kind is {settings.features.kind}.",
                hint="Write train.features: {kind: waves}.",
            )
        super().__init__(settings, tokens)

    def meet(self, model: nn.Module) -> None:
        """Raise ConfigError if the model lacks ESPnet's interface, or if its token list differs from the data's."""
        taken = inspect.signature(model.forward).parameters
        if lacking := [name for name in INPUTS if name not in taken]:
            raise ConfigError(
                f"the task espnet trains models with ESPnet's interface, but the forward of {type(model).__name__} has "
                f"no parameter {listing(lacking, where='')}.",
                hint="For other models, use one of the tasks ctc, hybrid and wav2vec2_ctc.",
            )
        needed = [name for name, one in taken.items() if one.default is one.empty and one.kind in _NAMED]
        if others := [name for name in needed if name not in INPUTS]:
            raise ConfigError(
                f"the forward of {type(model).__name__} also needs {listing(others, where='')}"
                ", which the task espnet does not pass.",
                hint="Train the model with ESPnet's own recipe.",
            )
        own: Any = getattr(model, "token_list", None)
        if isinstance(own, (list, tuple)) and tuple(own) != self.labels.tokens:
            raise ConfigError(
                f"the token list of the model ({len(own)} tokens) differs from train.data.tokens "
                f"({len(self.labels)} tokens).",
                hint="Use the same list in ESPnet's token_list and in train.data.tokens.",
            )

    def fits(self, clip: Clip) -> bool:
        """Return True, because ESPnet's models themselves handle clips that are too short for their text."""
        return True

    def _run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Any], Any]:
        """Return the mean loss and the metrics of a batch, and the number of examples over which both are means.

        Raises ConfigError if the model returns something else than (loss, metrics, weight).
        """
        places = torch.arange(batch.labels.shape[1], device=batch.labels.device)
        text = batch.labels.masked_fill(places[None] >= batch.label_lengths[:, None], PADDING)
        found = model(speech=batch.inputs, speech_lengths=batch.lengths, text=text, text_lengths=batch.label_lengths)
        if not isinstance(found, tuple) or len(found) != 3 or not isinstance(found[0], Tensor):
            raise ConfigError(
                f"the model returns {type(found).__name__}, not (loss, metrics, weight) as models of ESPnet do."
            )
        return found

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its examples."""
        mean, stats, weight = self._run(model, batch)
        items = _first(weight)
        numbers = {name: value for name, value in stats.items() if isinstance(value, Tensor) and value.numel() == 1}
        parts = {name: value.detach().float().reshape(()) * items for name, value in numbers.items()}
        return Loss((mean * items).sum(), items, parts)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss, and the mean of each metric of the model over the examples that have this metric."""
        sums: dict[str, list[float]] = {}
        for batch in batches:
            mean, stats, weight = self._run(model, batch)
            items = float(_first(weight))
            figures = {name: _number(value) for name, value in stats.items()} | {"loss": _number(mean)}
            for name, value in figures.items():
                if value is not None:
                    total = sums.setdefault(name, [0.0, 0.0])
                    total[0] += value * items
                    total[1] += items
        return {name: total / items if items else math.nan for name, (total, items) in sums.items()}

    @torch.no_grad()
    def read(self, model: nn.Module, batch: Batch) -> list[str]:
        """Return the text of each clip by CTC, frame by frame; raises ConfigError for a model without CTC.

        Each clip is encoded alone, as in ESPnet's Speech2Text, because padding changes the outputs of ESPnet's
        frontends. The model's ``encode`` returns the encoder's outputs and their lengths. If inner layers have CTC,
        too, it returns a pair (outputs, outputs of inner layers) in place of the outputs. ``ctc.log_softmax`` makes
        log-probabilities of the outputs (espnet2/asr/espnet_model.py, espnet2/asr/ctc.py).
        """
        encode, ctc = getattr(model, "encode", None), cast(Any, getattr(model, "ctc", None))
        if encode is None or not hasattr(ctc, "log_softmax"):
            raise ConfigError(
                f"{type(model).__name__} has no CTC (ctc_weight 0), and decoding with its decoder is not supported.",
                hint="For ESPnet's Speech2Text, convert the weights: ckpt convert run/best.safetensors -o best.pth.",
            )
        texts = []
        for wave, length in zip(batch.inputs, batch.lengths, strict=True):
            outputs, _ = encode(wave[None, :length], length[None])
            scores = ctc.log_softmax(outputs[0] if isinstance(outputs, tuple) else outputs)
            check_outputs(scores, self.labels)
            texts.append(self.labels.decode(self.labels.collapse(scores[0].argmax(-1).tolist())))
        return texts


def _first(weight: Any) -> Any:
    """Return ``weight``, which a model of ESPnet has returned, as a number or a 0-d tensor; it may be a tensor (1,)."""
    return weight.reshape(-1).sum() if isinstance(weight, Tensor) else weight


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


TASK: type[Task] = ESPnet
