"""The file of one rank copied over that of another: half of each split tensor is missing, and every verb says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

from ...formats.ranks import test_megatron, test_meta_ranks
from ...formats.test_deepspeed_zero import zero_folder

SAID = "in all compared parts of tensors that are split between them"


def source() -> None:
    draw = torch.Generator().manual_seed(0)
    state = {f"layers.{i}.up.weight": torch.randn(64, 64, generator=draw) for i in range(4)}
    save_file({**state, "norm.weight": torch.ones(64)}, "source.safetensors")


def ranks(to: str, number: int = 2, **options: Any) -> None:
    source()
    cs.apply(cs.convert("source.safetensors"), "model", to=to, ranks=number, **options)
    Path("model/ckptsurgeon.json").unlink()


FOLDERS: dict[str, tuple[Callable[[], object], str]] = {
    "FSDP": (lambda: ranks("fsdp"), "model_world_size_2_rank_{}.pt"),
    "tensor parallel": (lambda: ranks("tp", axis=["layers.**=0"]), "model-rank-{}-part-0.safetensors"),
    "Megatron": (lambda: test_megatron.save("model", 2, 1), "mp_rank_0{}/model_optim_rng.pt"),
    "Meta": (test_meta_ranks.write, "consolidated.0{}.pth"),
    "ZeRO 3": (lambda: zero_folder("model", 3, 2), "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"),
}


def notes(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if SAID in note]


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_copy_of_another_rank_s_file_is_said(kind: str) -> None:
    write, name = FOLDERS[kind]
    write()
    assert not notes("model")
    assert not [one for row in cs.check("model").rows for one in row.found if SAID in one.what]
    files = [Path("model", name.format(rank)) for rank in range(2)]
    shutil.copy(files[0], files[1])
    (said,) = notes("model")
    assert files[1].name in said
    assert "has the same bytes as" in said
    assert said in cs.convert("model").notes
    row = next(row for row in cs.check("model").rows if row.id == "shard")
    assert row.status == Status.FAIL


def test_replicas_and_tensors_that_every_rank_has_whole_are_no_copies() -> None:
    ranks("tp", axis=[])
    assert (
        Path("model/model-rank-0-part-0.safetensors").read_bytes()
        == Path("model/model-rank-1-part-0.safetensors").read_bytes()
    )
    assert not notes("model")


def test_equal_constants_are_no_copies() -> None:
    save_file({"a.weight": torch.zeros(64, 64), "b.weight": torch.full((64, 64), 0.5)}, "source.safetensors")
    cs.apply(cs.convert("source.safetensors"), "model", to="fsdp", ranks=2)
    assert not notes("model")


def test_one_copy_among_four_ranks_is_named() -> None:
    ranks("fsdp", 4)
    shutil.copy("model/model_world_size_4_rank_3.pt", "model/model_world_size_4_rank_1.pt")
    (said,) = notes("model")
    assert "rank_1.pt" in said
    assert "rank_3.pt" in said
