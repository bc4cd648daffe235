"""Runs CTC models of different interfaces, and computes their losses, decoded texts and error rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..config.imports import require_package
from ..data.labels import Labels
from ._task import Batch

__all__ = [
    "CTCOutput",
    "check_outputs",
    "clip_rows",
    "ctc_losses",
    "error_figures",
    "run_model",
    "too_short_clips",
    "uniform_losses",
]


class CTCOutput(NamedTuple):
    """A CTC model's output: log-probabilities (batch, frames, tokens), and the number of frames of each clip.

    ``decoder`` has the logits of the attention decoder, None if the model has no decoder. ``cpu_lengths`` are the same
    as ``lengths``, but on the CPU, if the model computes them there: reading ``lengths`` may wait for the GPU.
    """

    log_probs: Tensor
    lengths: Tensor
    decoder: Tensor | None
    cpu_lengths: Tensor | None = None


def run_model(model: nn.Module, batch: Batch, labels: Labels, *previous: Tensor, rate: int) -> CTCOutput:
    """Return the output of a model for a batch; waveforms in the batch have ``rate`` samples a second.

    ``previous`` is only given for a model with an attention decoder: the target tokens before each position (teacher
    forcing).

    A model may return a pair (log-probabilities, lengths), or an object with the attributes ``ctc`` (or ``log_probs``,
    ``logits``) and ``lengths``. If a model makes one output frame of each input frame, it may return only
    log-probabilities. Logits are accepted in place of log-probabilities, because all outputs are normalised.

    A model may have a method ``output_lengths``, which computes the output lengths from the input lengths. The method
    is called with lengths on the CPU, to avoid a GPU synchronisation. Raises ConfigError if the model returns anything
    else.
    """
    _check_inputs(getattr(model, "module", model), batch.inputs, rate)
    found: Any = model(batch.inputs, batch.lengths, *previous)
    scores = next((getattr(found, name) for name in ("ctc", "log_probs", "logits") if hasattr(found, name)), None)
    lengths = getattr(found, "lengths", None)
    if scores is None and isinstance(found, tuple) and len(found) >= 2:
        scores, lengths = found[:2]
    on_cpu: Any = getattr(getattr(model, "module", model), "output_lengths", None)
    cpu_lengths = None if on_cpu is None else on_cpu(batch.cpu_lengths)
    if isinstance(found, Tensor) and found.shape[:2] == batch.inputs.shape[:2]:
        scores, lengths, cpu_lengths = found, batch.lengths, batch.cpu_lengths
    if not isinstance(scores, Tensor) or not isinstance(lengths, Tensor) or scores.dim() != 3:
        raise ConfigError(
            f"the model returns {type(found).__name__}, not log-probabilities (batch, frames, tokens) and lengths.",
            hint="Let forward return (log_probs, lengths), or an object with the attributes log_probs and lengths.",
        )
    check_outputs(scores, labels)
    return CTCOutput(scores.float().log_softmax(-1), lengths, getattr(found, "decoder", None), cpu_lengths)


def check_outputs(scores: Tensor, labels: Labels) -> None:
    """Raise ConfigError if a model does not have one output for each token."""
    if scores.shape[2] != len(labels):
        raise ConfigError(
            f"the model has {scores.shape[2]} outputs, but the token list has {len(labels)} tokens with its blank.",
            hint="Use the same list in the model section and in train.data.tokens; for a model of transformers, write "
            f"vocab_size: {len(labels)}.",
        )


def _check_inputs(model: nn.Module, inputs: Tensor, rate: int) -> None:
    """Raise ConfigError if a bundled model gets inputs of a wrong kind or size; other models are not checked."""
    if inputs.dim() == 3 and hasattr(model, "frontend"):
        raise ConfigError(
            "the model computes features from waveforms, but its inputs are features.",
            hint="Write train.features: {kind: waves}.",
        )
    heard = getattr(getattr(model, "frontend", None), "rate", rate)
    if heard != rate:
        raise ConfigError(
            f"the model needs waveforms with {heard} samples a second, but train.features.rate is {rate}.",
            hint=f"Write train.features: {{kind: waves, rate: {heard}}}.",
        )
    wanted = getattr(model, "n_input", None)
    if not isinstance(wanted, int):
        return
    if inputs.dim() == 2:
        raise ConfigError(
            f"the model needs features (n_input {wanted}), but its inputs are waveforms.",
            hint="Write train.features: {kind: log_mel}, with size x stack = n_input.",
        )
    if inputs.shape[2] != wanted:
        raise ConfigError(
            f"the model needs frames of {wanted} features (n_input), but train.features makes {inputs.shape[2]} "
            "(size x stack).",
            hint=f"Write n_input: {inputs.shape[2]} under model, or a size and stack whose product is {wanted}.",
        )


def ctc_losses(output: CTCOutput, batch: Batch, blank: int) -> Tensor:
    """Return the CTC loss (batch,) of each clip; 0 for a clip with too few frames for its labels.

    ``output`` is the model's output for the batch. In a deterministic run on a GPU, the CPU computes the loss, because
    torch has no deterministic backward pass of CTC on a GPU. Lengths are passed on the CPU, because torch reads them
    there.
    """
    log_probs, lengths = output.log_probs, output.lengths if output.cpu_lengths is None else output.cpu_lengths
    given = [log_probs.transpose(0, 1), batch.labels, lengths, batch.cpu_label_lengths]
    if torch.are_deterministic_algorithms_enabled():
        given = [one.cpu() for one in given]
    losses = nn.functional.ctc_loss(given[0], given[1], given[2], given[3], blank, reduction="none", zero_infinity=True)
    return losses.to(log_probs.device)


def uniform_losses(output: CTCOutput, batch: Batch, blank: int) -> Tensor:
    """Return the CTC loss (batch,) that each clip would have if all tokens were equally likely in every frame."""
    tokens = output.log_probs.shape[2]
    uniform = torch.full_like(output.log_probs, -math.log(tokens))
    return ctc_losses(output._replace(log_probs=uniform), batch, blank)


def too_short_clips(lengths: Tensor, batch: Batch) -> Tensor:
    """Return a mask (batch,) of clips with too few frames for CTC: one for each label, and one between equal labels."""
    places = torch.arange(batch.labels.shape[1], device=batch.labels.device)
    inside = places[None] < batch.label_lengths[:, None]
    repeats = ((batch.labels[:, 1:] == batch.labels[:, :-1]) & inside[:, 1:]).sum(1)
    return lengths < batch.label_lengths + repeats


def clip_rows(
    output: CTCOutput, batch: Batch, labels: Labels, decoded: Sequence[Sequence[int]] | None = None
) -> list[dict[str, Any]]:
    """Return a row (dict) for each clip of a batch: name, reference text, decoded text, number of frames and of blanks.

    ``decoded`` are the decoded tokens of each clip. If it is None, the text is decoded from CTC's most likely token of
    each frame.
    """
    rows = []
    best = output.log_probs.argmax(-1).cpu()
    for clip, (path, frames, ids, size) in enumerate(
        zip(best, output.lengths.tolist(), batch.labels.cpu(), batch.label_lengths.tolist(), strict=True)
    ):
        likeliest = path[:frames].tolist()
        tokens = labels.collapse(likeliest) if decoded is None else decoded[clip]
        rows.append(
            {
                "clip": batch.names[clip], "reference": labels.decode(ids[:size].tolist()),
                "hypothesis": labels.decode(tokens), "frames": frames, "blanks": likeliest.count(labels.blank),
            }
        )  # fmt: skip
    return rows


def error_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics over rows of clips: letter and word error rate, share of blanks, number of too short clips."""
    jiwer = require_package("jiwer")
    right, read = [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
    frames = sum(row["frames"] for row in rows)
    return {
        "cer": float(jiwer.cer(right, read)), "wer": float(jiwer.wer(right, read)),
        "blanks": sum(row["blanks"] for row in rows) / max(frames, 1),
        "too_short": float(sum(row["too_short"] for row in rows)),
    }  # fmt: skip
