"""Distributed checkpoints of Megatron-core: torch's own folders, with Megatron's keys and files beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import ckptsurgeon as cs

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = {
    "embedding.word_embeddings.weight": torch.randn(6, 4),
    "decoder.layers.self_attention.linear_qkv.weight": torch.randn(2, 12, 4),
    "decoder.layers.mlp.experts.experts.linear_fc1.weight": torch.randn(2, 3, 8, 4),
    "decoder.final_layernorm.weight": torch.randn(4).bfloat16(),
}
OTHERS = {
    "optimizer.state.exp_avg.decoder.final_layernorm.weight": torch.randn(4),
    "optimizer.state.fp32_param.decoder.final_layernorm.weight": torch.randn(4),
    "chained_0.optimizer.distributed.dp_group_idx_0": torch.randn(4),
    "rng_state/shard_0.0_1.1": torch.randn(2),
    "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2": {"scale": 1.0},
}


def save(path: str, settings: Any = None) -> None:
    dcp.save({**WEIGHTS, **OTHERS}, checkpoint_id=path)
    torch.save({"iteration": 10, "args": object}, f"{path}/common.pt")
    said = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
    Path(path, "metadata.json").write_text(json.dumps(said if settings is None else settings))


def test_the_weights_are_read_and_all_else_is_named(ckpt: Any) -> None:
    save("d")
    with cs.open_checkpoint("d") as checkpoint:
        assert set(checkpoint) == set(WEIGHTS)
        assert all(torch.equal(checkpoint.tensor(key), value) for key, value in WEIGHTS.items())
    done = ckpt("convert", "d", "-o", "out.safetensors")
    said = "left out 5 entries: 3 of the optimizer, 1 of random generators, 1 _extra_state"
    assert (done.code, said in " ".join(done.err.split())) == (0, True), done.err
    assert ckpt("verify", "out.safetensors").code == 0


def test_the_iteration_that_a_run_names_is_read() -> None:
    save("run/iter_0000010")
    Path("run/latest_checkpointed_iteration.txt").write_text("10")
    with cs.open_checkpoint("run") as checkpoint:
        assert (checkpoint.format, set(checkpoint)) == ("torch distributed", set(WEIGHTS))
    cs.apply(cs.convert("run"), "out.safetensors")
    assert cs.verify("out.safetensors").ok


@pytest.mark.parametrize("settings", [[], {"sharded_backend": "zarr"}, "torch_dist", {}])
def test_other_folders_keep_all_entries(settings: Any) -> None:
    save("d", settings)
    with cs.open_checkpoint("d") as checkpoint:
        assert set(checkpoint) > set(WEIGHTS)
