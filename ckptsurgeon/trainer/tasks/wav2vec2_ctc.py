"""Fine-tunes a model that was pre-trained on waveforms, with a CTC head: wav2vec 2.0, HuBERT, WavLM, data2vec.

The model is a ``…ForCTC`` of transformers. https://arxiv.org/abs/2006.11477, section 3.2: the feature encoder is frozen
(``train.freeze``), and frames are masked as the model's configuration says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError
from ..config.settings import Settings
from ..data.sound import Clip
from ._conv_frontend import ConvFrontend, check_features, normalise_wave
from ._ctc_model import CTCOutput, check_outputs
from ._masks import masks_on_cpu
from ._task import Batch, Task
from .ctc import CTC

__all__ = ["TASK", "Wav2Vec2CTC"]


class Wav2Vec2CTC(CTC):
    """The task of fine-tuning a model of transformers with a CTC head on waveforms.

    The loss is divided by the number of labels of all clips that are long enough for CTC.
    """

    by_blocks = True

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        check_features(settings)
        self._hearing: ConvFrontend | None = None

    def meet(self, model: nn.Module) -> None:
        """Read the sizes of the model's convolutions, to count frames; raises ConfigError if there is no CTC head."""
        if not hasattr(model, "lm_head"):
            raise ConfigError(
                f"the task wav2vec2_ctc trains a model with a CTC head, but this is {type(model).__name__}.",
                hint="Give the class: model: {transformers: config.json, architecture: Wav2Vec2ForCTC}.",
            )
        self._hearing = ConvFrontend(model)

    def fits(self, clip: Clip) -> bool:
        """Return whether the model makes enough frames of a clip for the CTC loss of its transcript."""
        assert self._hearing is not None
        frames = self._hearing.frames(round(clip.seconds * self.settings.features.rate))
        return bool(frames >= self.labels.frames_needed(self.labels.encode(clip.text)))

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return a clip's normalised wave (``input``), its ``label``, its length in ``seconds`` and its ``name``."""
        made = super().example(clip)
        return {**made, "input": normalise_wave(made["input"])}

    def said(self, model: nn.Module, batch: Batch) -> CTCOutput:
        """Return the model's output for a batch. Lengths and masks are made on the CPU, to avoid waiting."""
        assert self._hearing is not None
        hearing, samples, lengths = self._hearing, batch.inputs.shape[1], batch.cpu_lengths
        mask = hearing.attention_mask(batch.inputs, batch.lengths) if batch.is_padded else None
        frames = hearing.frame_mask(lengths, hearing.frames(samples, with_adapter=False))
        with masks_on_cpu(getattr(model, "base_model", model), frames):
            scores: Tensor = model(batch.inputs, **({} if mask is None else {"attention_mask": mask})).logits
        check_outputs(scores, self.labels)
        log_probs = scores.float().log_softmax(-1)
        return CTCOutput(log_probs, hearing.frames(batch.lengths), None, hearing.frames(lengths))


TASK: type[Task] = Wav2Vec2CTC
