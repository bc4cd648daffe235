"""Multi-latent attention over ranks of Megatron, and experts: the parts that Megatron-core itself gives to each rank.

`fixtures/record_megatron_ranks.py` recorded them, with Megatron's own modules.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "megatron_ranks"
NETWORKS = {"deepseek": {"q_lora_rank": 10}, "deepseek.v2": {"q_lora_rank": None}, "glm-moe": {}}
LATENT = {"multi_latent_attention": True, "kv_lora_rank": 6, "qk_pos_emb_head_dim": 4}
GROUPS = {"group_query_attention": True, "num_query_groups": 2}
DOWN = ("linear_q_down_proj.weight", "linear_kv_down_proj.weight")
Tensors = dict[str, torch.Tensor]


def parts_of(network: str) -> list[Tensors]:
    """The tensors of each rank."""
    return [load_file(RECORDED / network / f"rank_{rank}.safetensors") for rank in range(2)]


def save(network: str, parts: list[Tensors], **fields: Any) -> None:
    """Write the folders of the ranks; ``fields`` are arguments of the run."""
    kind = GROUPS if network == "glm-moe" else {**LATENT, **NETWORKS[network]}
    said = {"swiglu": True, "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1, **kind, **fields}
    for rank, tensors in enumerate(parts):
        Path(f"run/mp_rank_{rank:02d}").mkdir(parents=True)
        state = {"args": argparse.Namespace(**said), "checkpoint_version": 3.0, "model": tensors}
        torch.save(state, f"run/mp_rank_{rank:02d}/model_optim_rng.pt")


def assert_whole(network: str) -> None:
    """Assert that the folder of ranks has the tensors of the whole network."""
    wanted = load_file(RECORDED / network / "whole.safetensors")
    with cs.open_checkpoint("run") as checkpoint:
        assert set(checkpoint) == set(wanted)
        for key, value in wanted.items():
            assert torch.equal(checkpoint.tensor(key), value), key


@pytest.mark.parametrize("network", NETWORKS)
def test_the_parts_that_megatron_gives_to_ranks_are_joined(network: str) -> None:
    parts = parts_of(network)
    split = {key for key, value in parts[0].items() if not torch.equal(value, parts[1][key])}
    assert split
    save(network, parts)
    assert_whole(network)


@pytest.mark.parametrize("network", ["deepseek", "deepseek.v2"])
def test_first_matrices_of_transformer_engine_are_whole_on_each_rank(network: str) -> None:
    whole = load_file(RECORDED / network / "whole.safetensors")
    parts = [
        {key: whole[key] if key.endswith(DOWN) else value for key, value in one.items()} for one in parts_of(network)
    ]
    save(network, parts)
    assert_whole(network)


def test_grouped_experts_of_transformer_engine_are_joined() -> None:
    def grouped(tensors: Tensors) -> Tensors:
        """The names of Transformer Engine, which ends the key with the number of an expert."""
        pattern = r"local_experts\.(\d+)\.(linear_fc\d)\.weight"
        return {re.sub(pattern, r"\2.weight\1", key): value for key, value in tensors.items()}

    save("glm-moe", [grouped(one) for one in parts_of("glm-moe")])
    wanted = grouped(load_file(RECORDED / "glm-moe" / "whole.safetensors"))
    with cs.open_checkpoint("run") as checkpoint:
        assert set(checkpoint) == set(wanted)
        assert all(torch.equal(checkpoint.tensor(key), value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kv_lora_rank": None}, "each of which has 5 rows: no arguments say how many rows it has"),
        ({"kv_lora_rank": 7}, "each of which has 5 rows: the arguments give it 11 rows"),
        ({"q_lora_rank": 15}, "each of which has 5 rows: the arguments give it 15 rows"),
    ],
)
def test_first_matrices_with_other_rows_than_the_arguments_say_are_an_error(fields: Any, said: str) -> None:
    save("deepseek", parts_of("deepseek"), **fields)
    with pytest.raises(cs.FormatError, match=re.escape(said)):
        cs.open_checkpoint("run")


def test_whole_matrices_that_differ_between_ranks_are_an_error() -> None:
    whole = load_file(RECORDED / "deepseek" / "whole.safetensors")
    parts = [
        {key: whole[key] + rank * key.endswith(DOWN) if key.endswith(DOWN) else value for key, value in one.items()}
        for rank, one in enumerate(parts_of("deepseek"))
    ]
    save("deepseek", parts)
    with pytest.raises(cs.FormatError, match="has other values of decoder"):
        cs.open_checkpoint("run")
