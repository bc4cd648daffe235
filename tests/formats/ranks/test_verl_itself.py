"""Folders that verl itself saved, and the models that its own merger makes of them: the same tensors, to the bit.

`fixtures/record_verl.py` (`make oracle-verl`) recorded them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.util.notes import is_serious
from tests.helpers.torch_versions import needs_mesh_layouts

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "verl"
pytestmark = pytest.mark.filterwarnings("ignore")
RUNS = {"fsdp1": 2, "fsdp2": 3, "replicated": 4, "tied": 2}
"""The runs and the number of their ranks."""


@pytest.mark.costly
@pytest.mark.parametrize("name", RUNS)
def test_a_conversion_makes_what_the_merger_of_verl_makes(name: str) -> None:
    wanted = load_file(RECORDED / f"{name}.safetensors")
    assert len(list(RECORDED.glob(f"{name}/model_world_size_{RUNS[name]}_rank_*.pt"))) == RUNS[name]
    with cs.open_checkpoint(RECORDED / name) as checkpoint:
        assert checkpoint.format == "fsdp ranks"
        assert [note for note in checkpoint.notes if is_serious(note)] == []
    cs.apply(cs.convert(str(RECORDED / name), dtype="bf16"), "out/", max_shard_size="1GB")
    assert cs.verify("out/").ok
    with cs.open_checkpoint("out/") as made:
        assert set(made) - set(wanted) == ({"lm_head.weight"} if name == "tied" else set())  # the merger leaves it out
        for key, value in wanted.items():
            assert torch.equal(made.tensor(key), value), key


@pytest.mark.parametrize("name", RUNS)
def test_the_output_has_the_configuration_of_verl(name: str) -> None:
    cs.apply(cs.convert(str(RECORDED / name)), "out/", max_shard_size="1GB")
    assert '"Qwen2ForCausalLM"' in Path("out/config.json").read_text()


def test_tied_weights_are_read_as_tied() -> None:
    with cs.open_checkpoint(RECORDED / "tied") as checkpoint:
        assert checkpoint.ties == {"lm_head.weight": "model.embed_tokens.weight"}
        assert checkpoint.tensor("lm_head.weight").shape == (37, 8)
    cs.apply(cs.convert(str(RECORDED / "tied")), "out.pth")
    with cs.open_checkpoint("out.pth") as made:
        assert made.ties == {"lm_head.weight": "model.embed_tokens.weight"}


@needs_mesh_layouts
def test_tensors_with_some_parts_in_common_are_not_tied() -> None:
    for rank in (0, 1):
        shutil.copy(RECORDED / f"tied/model_world_size_2_rank_{rank}.pt", f"model_world_size_2_rank_{rank}.pt")
    state = torch.load("model_world_size_2_rank_1.pt", weights_only=False)
    state["lm_head.weight"]._local_tensor = torch.ones(18, 8)
    torch.save(state, "model_world_size_2_rank_1.pt")
    with cs.open_checkpoint(".") as checkpoint:
        assert checkpoint.ties == {}
        head, embedding = checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight")
        assert torch.equal(head[:19], embedding[:19])
        assert torch.equal(head[19:], torch.ones(18, 8))
