"""Computes the diagonal of the empirical Fisher information of a network: the mean of squared gradients of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CheckpointError, ConfigError
from ...util.text import escape, human_bytes
from ..prove.inputs import Inputs
from ..prove.losses import CAUSAL, IGNORED, LABELS, takes_labels
from .gram_matrices import LayerWeights, weights_of

if TYPE_CHECKING:
    from ..prove.network import Network

__all__ = ["FISHER", "Fisher", "fisher_of"]

FISHER = "fisher"
"""The last part of the keys of Fisher information."""


@dataclass(frozen=True)
class Fisher:
    """Fisher information as {key: values}, and the facts that the file records about it."""

    values: Mapping[str, Tensor]
    said: Mapping[str, Any]


def fisher_of(network: Network, inputs: Inputs, chosen: frozenset[str], *, seed: int, limit: int) -> Fisher:
    """Return the Fisher information of the parameters whose keys are ``chosen``.

    All weights, and gradients and sums for the chosen parameters, are in memory. Raises ConfigError if all these take
    more than ``limit`` bytes, or if the network does not run, or has no loss on these inputs.
    """
    weights = weights_of(network)
    owners = _owners(network.module)
    wanted = {name for name in owners.values() if weights.keys.get(name) in chosen}
    _check_memory(network, owners, wanted, limit)
    loss = _Loss(network, inputs, seed)
    parameters = _loaded(network, owners, wanted)
    sums = {name: torch.zeros_like(one) for name, one in parameters.items() if one.requires_grad}
    number = 0
    with _running(network), torch.enable_grad():
        for example in _examples(inputs):
            value = loss.of(example, number)
            value.backward()  # type: ignore[no-untyped-call]
            for name, total in sums.items():
                gradient = parameters[name].grad
                if gradient is not None:
                    total += gradient.detach().square()
                    parameters[name].grad = None
            number += 1
    for name, total in sums.items():
        total /= number
        if not bool(total.isfinite().all()):
            raise ConfigError(
                f"the gradients of {escape(name)} have values that are NaN, infinite, or too large to square.",
                hint="Look for damaged weights with ckpt check, or give other inputs.",
            )
    values = {f"{weights.keys[name]}.{FISHER}": total for name, total in sums.items()}
    return Fisher(values, {"loss": loss.said, "examples": number, **_listed(weights, owners, wanted)})


def _owners(module: nn.Module) -> dict[str, str]:
    """Return {each name of a parameter: its first name}; a tied parameter has several names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(one), name) for name, one in module.named_parameters(remove_duplicate=False)}


def _listed(weights: LayerWeights, owners: Mapping[str, str], wanted: set[str]) -> dict[str, Any]:
    """Return the entries ``lacking`` and ``tied`` of the record in the file.

    ``lacking`` are the keys of the checkpoint's tensors without Fisher information. ``tied`` maps a tied key to the key
    under which the common information is stored. ``owners`` is the result of ``_owners``, and ``wanted`` has the names
    of the parameters with information.
    """
    lacking = {key for name in owners.values() if name not in wanted for key in _keys_of(weights, name)}
    tied = {
        weights.keys[name]: weights.keys[owner]
        for name, owner in owners.items()
        if owner in wanted and weights.keys.get(name, weights.keys[owner]) != weights.keys[owner]
    }
    return {"lacking": sorted(lacking), "tied": tied}


def _keys_of(weights: LayerWeights, name: str) -> tuple[str, ...]:
    return (weights.keys[name],) if name in weights.keys else weights.made.get(name, ())


def _check_memory(network: Network, owners: Mapping[str, str], wanted: set[str], limit: int) -> None:
    parameters = dict(network.module.named_parameters())
    need = sum(one.numel() * (12 if name in wanted else 4) for name, one in parameters.items())
    least = sum(one.numel() * 4 for one in parameters.values())
    if need > limit:
        raise ConfigError(
            f"Fisher information takes {human_bytes(need)} of memory for weights, gradients and sums, and more for "
            f"activations; the limit is {human_bytes(limit)}.",
            hint=f"Allow more memory, --memory {need}B{', or choose tensors with --include' if least < limit else ''}.",
        )


def _loaded(network: Network, owners: Mapping[str, str], wanted: set[str]) -> dict[str, nn.Parameter]:
    """Load all weights into the network; return {first name: parameter} of all parameters.

    ``owners`` is the result of ``_owners``: a tied parameter has several names, but is returned only once. Only the
    parameters named in ``wanted`` get gradients. Raises ConfigError if the checkpoint lacks weights.
    """
    made: dict[str, nn.Parameter] = {}
    for name, owner in owners.items():
        if owner not in made:
            value = network.read([owner]).get(owner)
            if value is None:
                raise ConfigError(f"{escape(network.path)} lacks the weights {escape(owner)}.")
            made[owner] = nn.Parameter(value, requires_grad=owner in wanted)
        path, _, last = name.rpartition(".")
        setattr(network.module.get_submodule(path), last, made[owner])
    return made


@contextmanager
def _running(network: Network) -> Iterator[None]:
    """Turn any exception of the network in the ``with`` block into a ConfigError; downloads are off."""
    from ...destinations.hf.model import offline

    try:
        with offline():
            yield
    except CheckpointError:
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the gradients of {escape(network.path)} cannot be computed: {escape(said, 300).rstrip('.')}.",
            hint="Give inputs that fit the network: --inputs FILE.safetensors.",
        ) from error


def _examples(inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs of each example: one row of each argument.

    An argument whose number of rows differs from that of the first argument is used whole in each example.
    """
    first = next(iter(inputs.arguments.values()))
    number = len(first) if first.dim() else 1
    for row in range(number):
        yield Inputs(
            {
                name: value[row : row + 1] if value.dim() and len(value) == number else value
                for name, value in inputs.arguments.items()
            },
            inputs.said,
        )


class _Loss:
    """The loss of an example: the model's own loss, or the loss for labels drawn at random from its predictions.

    The model's own loss is used if the inputs have labels, or if the model predicts the next token. Otherwise, labels
    are drawn from the model's own predictions, as in https://arxiv.org/abs/2111.09832.
    """

    def __init__(self, network: Network, inputs: Inputs, seed: int) -> None:
        self._network, self._module = network, network.module
        self._chance = torch.Generator().manual_seed(seed)
        self._is_causal = (
            takes_labels(self._module)
            and type(self._module).__name__.endswith(CAUSAL)
            and "input_ids" in inputs.arguments
        )
        if LABELS in inputs.arguments:
            self.said = "the model's own loss for the labels in the inputs"
        elif self._is_causal:
            self.said = "the model's own loss for the next token, the mean over the tokens of an example"
        else:
            self.said = f"the negative log-likelihood of labels drawn from the model's own prediction with seed {seed}"

    def of(self, example: Inputs, number: int) -> Tensor:
        """Return the loss of an example; raises ConfigError if there is none, or if it is not finite.

        ``number`` is the index of the example in the inputs.
        """
        arguments = example.arguments_for(self._module)
        mask = arguments.get("attention_mask")
        if self._is_causal and LABELS not in arguments:
            labels = arguments["input_ids"]
            arguments[LABELS] = labels if mask is None else labels.masked_fill(mask == 0, IGNORED)
        output = self._module(**arguments)
        found = getattr(output, "loss", None) if LABELS in arguments else self._drawn(output, mask)
        if not isinstance(found, Tensor) or found.grad_fn is None or not bool(torch.isfinite(found)):
            self._check_outputs(output, number)
            raise ConfigError(
                f"{escape(self._network.path)} has no finite loss for example {number + 1} of the inputs.",
                hint="Give longer texts, or labels: an entry labels in FILE.safetensors.",
            )
        return found

    def _check_outputs(self, output: Any, number: int) -> None:
        """Raise ConfigError if the outputs for example ``number`` are not finite, whatever its labels are."""
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and not bool(torch.isfinite(logits).all()):
            raise ConfigError(
                f"the outputs of {escape(self._network.path)} for example {number + 1} of the inputs are NaN or "
                "infinite.",
                hint="Look for damaged weights with ckpt check, or give other inputs.",
            )

    def _drawn(self, output: Any, mask: Tensor | None) -> Tensor | None:
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() < 2 or logits.shape[-1] < 2:
            raise ConfigError(
                f"{escape(self._network.path)} predicts no classes from which labels could be drawn.",
                hint="Give labels: an entry labels in the file of --inputs (FILE.safetensors).",
            )
        flat = logits.float().reshape(-1, logits.shape[-1])
        labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=self._chance)[:, 0]
        if mask is not None and mask.shape == logits.shape[:-1]:
            labels = labels.masked_fill(mask.reshape(-1) == 0, IGNORED)
        return functional.cross_entropy(flat, labels, ignore_index=IGNORED)
