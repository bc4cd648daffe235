"""How norms compute is found by trying them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ckptsurgeon.destinations.norm_forms import norm_forms
from ckptsurgeon.planning.target import TargetSpec

transformers = pytest.importorskip("transformers", minversion="5")

from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402


class SumNorm(nn.Module):
    """Divides by the sum of magnitudes, as no known norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(24)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.abs().sum(-1, keepdim=True) + self.eps)


class TwoNorm(SumNorm):
    """Needs a second tensor."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x * gate)


@pytest.mark.parametrize(
    ("make", "kind", "offset", "epsilon"),
    [
        (lambda: LlamaRMSNorm(24, eps=1e-5), "rms", 0.0, 1e-5),
        (lambda: T5LayerNorm(24, eps=1e-6), "rms", 0.0, 1e-6),
        (lambda: nn.RMSNorm(24, eps=1e-6), "rms", 0.0, 1e-6),
        (lambda: Gemma3RMSNorm(24, eps=1e-6), "rms", 1.0, 1e-6),
        (lambda: nn.LayerNorm(24), "mean", 0.0, 1e-5),
        (lambda: nn.LayerNorm(24, bias=False), "mean", 0.0, 1e-5),
        (lambda: OlmoLayerNorm(24), "bare", 0.0, None),
        (lambda: nn.LayerNorm(24, elementwise_affine=False), "bare", 0.0, 1e-5),
        (SumNorm, "", 0.0, 1e-6),
        (TwoNorm, "", 0.0, 1e-6),
    ],
)
def test_the_form_of_a_norm(make: Callable[[], nn.Module], kind: str, offset: float, epsilon: float | None) -> None:
    network = TargetSpec("module", "network", {}, build=lambda: nn.Sequential(nn.Linear(4, 24), make()))
    form = norm_forms(network)["1"]
    assert (form.kind, form.offset, form.epsilon, form.size) == (kind, offset, epsilon, 24)


def test_weight_norm_is_no_norm_of_activations() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert not norm_forms(TargetSpec("module", "network", {}, build=lambda: nn.Sequential(normed)))
