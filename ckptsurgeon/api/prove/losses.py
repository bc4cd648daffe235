"""The loss of a network: for labels, for the next token, or the distance to the outputs of two other networks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from .blocks import tensors_in
from .decoder_inputs import MASK as DECODER_MASK
from .inputs import Inputs

__all__ = ["CAUSAL", "IGNORED", "LABELS", "EvaluatedLoss", "check_labels", "loss_for", "takes_labels"]

LABELS, IDS = "labels", "input_ids"
"""The arguments of ``forward`` with the labels and with the tokens."""
MASKS = ("attention_mask", DECODER_MASK)
"""The arguments of ``forward`` that are 0 for padding."""
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of transformers' classes that predict the next token."""
IGNORED = -100
"""The label of positions that transformers' losses ignore."""
CLASSES = re.compile(
    r"(LMHeadModel|For(CausalLM|MaskedLM|ConditionalGeneration|\w*Classification|CTC|MultipleChoice))$"
)
"""The names of transformers' classes whose last axis of logits has an entry for each token or class."""

OF_LABELS = "the model's own loss for the labels in the inputs"
OF_TOKENS = "cross-entropy of the next token, in nats: the mean over all tokens of the inputs"
OF_PREDICTIONS = (
    "mean of KL(A ‖ network) and KL(B ‖ network), in nats: how far its predictions are from those of A and B, as there "
    "are no labels"
)
OF_OUTPUTS = (
    "mean of the squared differences to the outputs of A and of B, each divided by the mean square of these outputs, "
    "as there are no labels"
)


def takes_labels(module: nn.Module) -> bool:
    """Return whether ``forward`` has an argument for labels."""
    return LABELS in inspect.signature(module.forward).parameters


@dataclass
class EvaluatedLoss:
    """Computes the loss from the output of a network; ``said`` is the name of the loss.

    If ``compares`` is true, ``references`` are the outputs of the two networks with which all outputs are compared.
    """

    said: str
    arguments: Mapping[str, Tensor]
    references: list[Tensor] = field(default_factory=list)

    @property
    def compares(self) -> bool:
        """Whether the loss is a distance to ``references``, which the caller must add first."""
        return self.said in (OF_PREDICTIONS, OF_OUTPUTS)

    def of(self, output: Any) -> float:
        """Return the loss of an output of ``forward``; raises ConfigError if it has none."""
        if self.said == OF_LABELS:
            found = getattr(output, "loss", None)
            if not isinstance(found, Tensor):
                raise ConfigError(
                    "the network has no loss for these labels.", hint="Leave the labels out, or give other inputs."
                )
            return float(found)
        main = main_output(output)
        if self.said == OF_TOKENS:
            return self._of_tokens(main)
        terms = [self._divergence(one, main) if self.said == OF_PREDICTIONS else _square(one, main)
                 for one in self.references]  # fmt: skip
        return sum(terms) / len(terms)

    def _of_tokens(self, logits: Tensor) -> float:
        ids, mask = self.arguments[IDS], self.arguments.get(MASKS[0])
        labels = ids if mask is None or mask.shape != ids.shape else ids.masked_fill(mask == 0, IGNORED)
        wanted = labels[:, 1:].reshape(-1)
        if not bool((wanted != IGNORED).any()):
            raise ConfigError("the inputs have no next token: each text is one token.", hint="Give longer texts.")
        given = logits[:, -ids.shape[1] :][:, :-1].double()
        return float(functional.cross_entropy(given.reshape(-1, given.shape[-1]), wanted, ignore_index=IGNORED))

    def _divergence(self, reference: Tensor, logits: Tensor) -> float:
        first, second = (one.double().log_softmax(-1) for one in (reference, logits))
        each = (first.exp() * (first - second)).sum(-1)
        masks = [self.arguments[name] for name in MASKS if name in self.arguments]
        real = next((one.bool() for one in masks if one.shape == each.shape), None)
        return float((each if real is None else each[real]).mean())


def _square(reference: Tensor, output: Tensor) -> float:
    first, second = reference.double(), output.double()
    size = float(first.square().mean())
    return float((first - second).square().mean()) / (size or 1.0)


def main_output(output: Any) -> Tensor:
    """Return the logits of an output, or else its first floating-point tensor; raises ConfigError if it has none."""
    found = next(iter(tensors_in(output)), None)
    if found is None:
        raise ConfigError("the network has no output of numbers.", hint="Give the configuration of another network.")
    return found.detach()


def check_labels(labels: Tensor, *, is_causal: bool) -> None:
    """Raise ConfigError if all labels are ignored; a causal language model has no prediction for the first label."""
    used = labels[:, 1:] if is_causal and labels.dim() > 1 else labels
    if used.is_floating_point() or bool((used != IGNORED).any()):
        return
    raise ConfigError(
        f"the inputs have no label: all are {IGNORED}, which the loss ignores"
        + (", or the first of their text." if is_causal else "."),
        hint="Give other labels, or leave the labels out.",
    )


def loss_for(module: nn.Module, inputs: Inputs, *, drawn: bool) -> EvaluatedLoss:
    """Return the loss for networks of the same class as ``module``; ``drawn`` is true if ``inputs`` are random.

    It is the model's own loss if the inputs have labels, and the cross-entropy of the next token for causal language
    models with tokens that are not random. For other networks it is the distance to outputs of two networks. Raises
    ConfigError if there are labels, but the loss ignores all of them.
    """
    name, arguments = type(module).__name__, inputs.arguments
    if LABELS in arguments:
        check_labels(arguments[LABELS], is_causal=name.endswith(CAUSAL))
        return EvaluatedLoss(OF_LABELS, arguments)
    if name.endswith(CAUSAL) and not drawn and arguments.get(IDS, torch.empty(0)).dim() == 2:
        return EvaluatedLoss(OF_TOKENS, arguments)
    config: Any = getattr(module, "config", None)
    is_one_of_classes = getattr(config, "problem_type", None) in (None, "single_label_classification")
    classes = CLASSES.search(name) and is_one_of_classes and getattr(config, "num_labels", 2) > 1
    return EvaluatedLoss(OF_PREDICTIONS if classes else OF_OUTPUTS, arguments)
