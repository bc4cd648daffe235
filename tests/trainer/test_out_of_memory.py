"""A batch that does not fit: which one to try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.settings import Settings
from ckptsurgeon.trainer.system.device import explain_out_of_memory
from ckptsurgeon.trainer.tasks.wav2vec2_pretrain import Wav2Vec2Pretraining

from . import toy
from .waves import write


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (
            {"batch_size": 9, "accumulate": 3},
            "Try --set batch_size=5 --set accumulate=6 or --set gradient_checkpointing=true.",
        ),
        ({"batch_size": 1}, "Try --set gradient_checkpointing=true."),
        ({"batch_size": 1, "gradient_checkpointing": True}, "Train on shorter clips: train.data.max_s."),
    ],
)
def test_a_batch_that_does_not_fit_names_one_to_try(settings: dict[str, Any], hint: str) -> None:
    why = f"does not have enough memory for train.batch_size {settings['batch_size']}"
    with pytest.raises(cs.ConfigError, match=why) as error, explain_out_of_memory(Settings(**settings)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert error.value.hint == hint


@pytest.mark.parametrize(("size", "hint"), [(9, "Try --set batch_size=5."), (1, "Evaluate on the CPU: --device cpu.")])
def test_a_batch_that_is_only_evaluated_gets_no_advice_for_training(
    size: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptsurgeon.trainer.run.train.evaluate_shared", full)
    toy.write(batch_size=size)
    with pytest.raises(cs.ConfigError, match=f"does not have enough memory for train.batch_size {size}") as error:
        cs.train("toy.yaml", device="cpu", evaluate="dev")
    assert error.value.hint == hint


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["toy.yaml", "pre.yaml"], ids=["a user's task", "ours"])
def test_a_run_whose_batch_does_not_fit_leaves_nothing(
    kind: str, ckpt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch of all is tried before anything else is done, in evaluation mode."""
    if kind == "toy.yaml":
        Path("full.py").write_text(FULL)
        toy.write(task="full.py:Full")
    else:
        monkeypatch.setattr(Wav2Vec2Pretraining, "loss", full)
        write()
    done = ckpt("train", kind, "--device", "cpu")
    assert (done.code, "does not have enough memory for train.batch_size" in done.err) == (2, True), done
    assert not Path("run").exists()


FULL = """
import torch
from toy_task import Toy

class Full(Toy):
    def loss(self, model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")
"""


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")
