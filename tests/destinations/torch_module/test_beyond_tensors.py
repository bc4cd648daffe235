"""What load_state_dict does apart from copying tensors is not done, and said."""

from __future__ import annotations

from functools import partial
from logging import LogRecord
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ckptsurgeon as cs
from ckptsurgeon.destinations.torch_module.beyond_tensors import notes_beyond_tensors

from ...helpers.transformers_models import BERT, MIXTRAL, WAV2VEC2, model_of


class Scaled(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"scale": 2.0}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


class Loading(nn.Linear):
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)


def hook(*_: object) -> None:
    pass


def test_extra_state_is_not_loaded_and_said(logged: list[LogRecord]) -> None:
    theirs, ours = (nn.Sequential(Scaled(2, 2)) for _ in range(2))
    said = "1 extra state of modules is not loaded, as set_extra_state is not called: 0._extra_state"
    assert cs.load_into(ours, theirs).notes == (said,)
    assert [record.getMessage() for record in logged] == [said]
    with pytest.raises(cs.PlanError, match="strict=True: extra state of modules is not loaded: 0._extra_state"):
        cs.load_into(ours, nn.Sequential(nn.Linear(2, 2)), strict=True)


def test_extra_state_of_a_destination_is_not_in_the_output_and_said() -> None:
    theirs, ours = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(Scaled(2, 2))
    torch.save(ours.state_dict(), "ours.pth")
    said = "1 extra state of modules (get_extra_state) is not in the output: 0._extra_state"
    assert cs.transplant(theirs, ours).notes == (f"<Sequential>: {said}",)
    assert cs.transplant(theirs, "ours.pth").notes == (f"ours.pth: {said}",)
    assert cs.transplant(theirs, theirs).notes == ()


def test_a_checkpoint_without_the_extra_state_of_a_module_does_not_fit() -> None:
    plain, scaled = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(Scaled(2, 2))
    assert cs.fits(scaled, scaled).strict
    for first, second, owner in ((plain, scaled, "second"), (scaled, plain, "first")):
        fit = cs.fits(first, second)
        assert not fit.fits
        assert fit.uncopied == {"0._extra_state": f"extra state, which only {getattr(fit, owner)} has"}
        with pytest.raises(RuntimeError, match="0._extra_state"):
            second.load_state_dict(first.state_dict())


def _pre_hook(module: nn.Module) -> None:
    module.register_load_state_dict_pre_hook(partial(hook))


def _post_hook(module: nn.Module) -> None:
    module.register_load_state_dict_post_hook(hook)


@pytest.mark.parametrize("register", [_pre_hook, _post_hook])
def test_modules_with_own_hooks_are_named(register: Any, logged: list[LogRecord]) -> None:
    ours = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    register(ours[1])
    said = "a module has its own method or hook for load_state_dict, not called here: 1"
    assert cs.load_into(ours, ours.state_dict()).notes == (said,)
    assert [record.getMessage() for record in logged] == [said]


def test_extra_state_of_a_checkpoint_with_a_removed_prefix_fits() -> None:
    state = {f"module.{key}": value for key, value in nn.Sequential(Scaled(2, 2)).state_dict().items()}
    torch.save({"model": state, 3: "x"}, "ddp.pth")
    fit = cs.fits("ddp.pth", nn.Sequential(Scaled(2, 2)))
    assert not fit.uncopied


def test_a_hook_that_has_every_attribute_is_a_hook() -> None:
    ours = nn.Linear(2, 2)
    ours.register_load_state_dict_post_hook(MagicMock(__module__="mine"))
    assert len([*notes_beyond_tensors(ours)]) == 1


def test_modules_with_own_methods_are_named() -> None:
    (note,) = notes_beyond_tensors(nn.Sequential(Loading(2, 2), Loading(2, 2), nn.BatchNorm1d(2)))
    assert note == "2 modules have own methods or hooks for load_state_dict, not called here: 0, 1"


def test_a_buffer_without_values_is_named() -> None:
    ours = nn.Linear(2, 2)
    ours.register_buffer("freqs", torch.ones(2, device="meta"), persistent=False)
    assert list(notes_beyond_tensors(ours)) == ["a buffer that is in no checkpoint has no values (meta device): freqs"]


def test_nothing_is_said_of_modules_of_torch_and_transformers() -> None:
    attention = nn.TransformerEncoderLayer(4, 2, 8)
    assert not list(notes_beyond_tensors(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), attention)))
    pytest.importorskip("transformers")
    models = (BERT, "BertModel"), (MIXTRAL, "MixtralForCausalLM"), (WAV2VEC2, "Wav2Vec2ForCTC")
    assert not [note for fields, name in models for note in notes_beyond_tensors(model_of(fields, name))]
