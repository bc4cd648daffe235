"""Masks of padding that attention gets: none without padding, otherwise one that the fast kernels of a GPU take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ckptsurgeon.trainer.tasks._masks import _unchecked

from .waves import LAYER_NORM, SMALL, batch_of, ctc_model_of, ctc_stand_in, ctc_task_for, model_of, task_for

pytest.importorskip("transformers")


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The mask of each attention."""
    seen: list[Tensor | None] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, attn_mask: Tensor | None = None, **given: Any) -> Any:
        seen.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    return seen


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("samples", "is_padded"), [((6400, 6400), False), ((6400, 5000), True)])
def test_fine_tuning(samples: tuple[int, int], is_padded: bool, training: bool, masks: list[Tensor | None]) -> None:
    model = ctc_model_of(attn_implementation="sdpa", **LAYER_NORM).train(training)
    task = ctc_task_for(model)
    task.loss(model, task.batch(*samples))
    check(masks, is_padded=is_padded)


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of transformers' own WavLM
@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "wav2vec2-conformer"])
def test_no_number_of_the_cpu_is_written_into_a_mask(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does it: on a GPU, writing it waits for all queued work."""
    from transformers import AutoConfig, AutoModelForCTC

    config = AutoConfig.for_model(**{**SMALL, "model_type": model_type, "vocab_size": 5, **LAYER_NORM})
    model = AutoModelForCTC.from_config(config).train()
    task = ctc_task_for(model)
    batch = task.batch(6400, 5000)
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", ctc_stand_in)
    with WrittenPlaces() as ours:
        task.loss(model, batch)
    with WrittenPlaces() as theirs:
        model(batch.inputs, attention_mask=torch.ones_like(batch.inputs, dtype=torch.long))
    assert ours.count == 0
    assert theirs.count == 1


@pytest.mark.parametrize(("samples", "is_padded"), [((6400, 6400), False), ((6400, 5000), True)])
def test_pretraining(samples: tuple[int, int], is_padded: bool, masks: list[Tensor | None]) -> None:
    model = model_of({**SMALL, **LAYER_NORM})
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    task = task_for(model)
    task.begin_step(model, 0)
    task.loss(model, batch_of(task, *samples))
    check(masks, is_padded=is_padded)


@pytest.mark.parametrize("given", [{}, {"allow_is_bidirectional_skip": True}, {"allow_is_bidirectional_skip": False}])
def test_a_model_may_say_itself_whether_its_mask_is_left_out(given: dict[str, bool]) -> None:
    def made(config: object, attention_mask: Tensor | None = None, allow_is_bidirectional_skip: bool = True) -> bool:
        return allow_is_bidirectional_skip

    assert _unchecked(made, None, attention_mask=torch.ones(1, 2), **given) is False
    assert _unchecked(made, None, attention_mask=None, **given) is given.get("allow_is_bidirectional_skip", True)


class WrittenPlaces(TorchDispatchMode):
    """Counts the writes to places that indices name; what a mask names is filled without a wait."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("aten::index_put"):
            self.count += any(one is not None and one.dtype != torch.bool for one in args[1])
        return func(*args, **(kwargs or {}))


def check(masks: list[Tensor | None], *, is_padded: bool) -> None:
    assert masks
    assert [mask is not None for mask in masks] == [is_padded] * len(masks)
    assert all(mask.stride(-1) == 1 for mask in masks if mask is not None)
