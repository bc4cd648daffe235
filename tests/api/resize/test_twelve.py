"""Every operation on twelve architectures is tested, or has a reason; heads and layers that belong together stay so."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.resizing.cases import VOCABULARIES
from fixtures.resizing.twelve import POSITIONS, TWELVE, missing_cells

from ...helpers.depth import each_in_turn
from .test_another_type import Saved
from .test_resize import outputs, source
from .test_vocabulary import Models, check_kept, english

__all__ = ["english", "source"]

TABLES = {
    "bert": "max_position_embeddings", "whisper": "max_target_positions", "vit": "image_size",
    "clip": "text_config.max_position_embeddings",
}  # fmt: skip


def test_each_operation_on_each_architecture_has_a_test_or_a_reason() -> None:
    assert missing_cells() == []


@pytest.mark.costly
@each_in_turn("kind", POSITIONS)
def test_more_positions_are_a_matter_of_the_configuration(kind: str, source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source(kind), set={POSITIONS[kind]: 4096 * 4})
    assert f"no tensor depends on {POSITIONS[kind]}: changed only in config.json" in plan.notes
    cs.apply(plan, tmp_path / "out")
    assert torch.equal(outputs(source(kind), kind), outputs(tmp_path / "out", kind))


@pytest.mark.costly
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_positions_is_for_transplant(kind: str, source: Saved) -> None:
    with pytest.raises(cs.PlanError, match=r"it is not known how .*position.* change") as raised:
        cs.resize(source(kind), set={TABLES[kind]: 64})
    assert "transplant --on-mismatch" in str(raised.value.hint)


@pytest.mark.long
@pytest.mark.costly
@each_in_turn("kind", [kind for kind in TWELVE if kind in VOCABULARIES])
def test_a_vocabulary_is_trimmed(kind: str, english: Models, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("The sea shells of the dog\n")
    cs.apply(cs.resize(english(kind), trim=tmp_path / "corpus.txt"), tmp_path / "out")
    assert len(check_kept(english(kind), tmp_path / "out", kind)) < 340


def test_sinks_are_kept_with_their_heads(source: Saved, tmp_path: Path) -> None:
    """The sinks are parameters of the attention itself, which has the heads in its layers."""
    weights = load_file(source("gpt_oss") / "model.safetensors")
    key = "model.layers.1.self_attn"
    weights[f"{key}.q_proj.weight"][16:32] *= 9
    weights[f"{key}.q_proj.weight"][48:64] *= 9
    weights[f"{key}.sinks"][:] = torch.tensor([3.0, 1.0, 4.0, 2.0])
    (tmp_path / "in").mkdir()
    save_file(weights, tmp_path / "in/model.safetensors", {"format": "pt"})
    (tmp_path / "in/config.json").write_bytes((source("gpt_oss") / "config.json").read_bytes())
    cs.apply(cs.resize(tmp_path / "in", set={"num_attention_heads": 2}), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert after[f"{key}.sinks"].tolist() == [1.0, 2.0]
    assert torch.equal(after[f"{key}.q_proj.bias"][:16], weights[f"{key}.q_proj.bias"][16:32])


def test_influences_are_those_of_the_list_that_becomes_shorter(source: Saved, tmp_path: Path) -> None:
    """Whisper has two layers in the encoder, and two in the decoder."""
    folder, file = source("whisper"), tmp_path / "stats.safetensors"
    cs.apply(cs.stats(folder), file)
    with safe_open(file, "pt") as opened:
        metadata, values = opened.metadata(), load_file(file)
    for (side, number), influence in zip(
        [*product(("encoder", "decoder"), range(2))], (0.9, 0.1, 0.1, 0.9), strict=True
    ):
        values[f"model.{side}.layers.{number}.influence"].fill_(influence)
    save_file(values, file, metadata)
    for side, kept in (("encoder", 0), ("decoder", 1)):
        plan = cs.resize(folder, set={f"{side}_layers": 1}, layers="influential", by=file)
        cs.apply(plan, tmp_path / side)
        before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / side))
        name = f"model.{side}.layers.{{}}.fc1.weight"
        assert torch.equal(after[name.format(0)], before[name.format(kept)])
