"""The moments of a sharded model are read by one process that has the whole model, with every torch."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.distributed import checkpoint

from ckptsurgeon.trainer.parallel.ranks import SINGLE_PROCESS
from ckptsurgeon.trainer.state.sharded_state import load_moments, save_moments, state_without_moments

from . import toy

LOAD = checkpoint.load


def load_of_torch_2_6(
    state_dict: object, *, checkpoint_id: object = None, storage_reader: object = None, planner: object = None,
    process_group: object = None,
) -> None:  # fmt: skip
    LOAD(state_dict, checkpoint_id=checkpoint_id)


@pytest.mark.costly
@pytest.mark.filterwarnings("ignore:torch.distributed is ", "ignore:TypedStorage", "ignore:Detected")
@pytest.mark.parametrize("load", [LOAD, load_of_torch_2_6])
def test_one_process_reads_them(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "load", load)
    assert load is LOAD or "no_dist" not in inspect.signature(checkpoint.load).parameters
    loop = toy.loop(ema=0.9)
    loop.run(until=3)
    state = loop.state
    save_moments("moments", state.model, state.optimizer, state.ema, SINGLE_PROCESS)
    small = state_without_moments(state.optimizer)
    found, average = load_moments("moments", small, state.model, state.optimizer, SINGLE_PROCESS)
    kept = state.optimizer.inner.state_dict()["state"]
    assert found["state"].keys() == kept.keys()
    for index, entries in kept.items():
        assert all(torch.equal(found["state"][index][name], value) for name, value in entries.items())
    assert state.ema is not None
    assert all(torch.equal(average[key], value) for key, value in state.ema.tensors.items())
