"""A size after which layers do not fit together is refused before anything is written, if the network's code says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.resize import layers_together, resize

transformers = pytest.importorskip("transformers", minversion="5")

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS", raising=False)


@pytest.fixture
def bitnet(tmp_path: Path) -> Path:
    """Return the folder of a BitNet, in which a norm as wide as the network reads the outputs of all heads."""
    return saved("BitNet", tmp_path / "bitnet")


def saved(name: str, folder: Path, **fields: Any) -> Path:
    config = getattr(transformers, f"{name}Config")(**SMALL, **fields)
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_heads_that_a_norm_does_not_fit_are_refused(bitnet: Path, tmp_path: Path, ckpt: Callable[..., Any]) -> None:
    given = [word for name, value in HEADS.items() for word in ("--set", f"{name}={value}")]
    done = ckpt("resize", bitnet, *given, "-o", tmp_path / "out")
    assert done.code == 4
    said = " ".join(done.err.split())
    assert "num_attention_heads, num_key_value_heads: the layers of the network would not fit together: " in said
    assert "model.layers.0.self_attn.attn_sub_norm: " in said
    assert "32" in said.partition("attn_sub_norm: ")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_heads_that_grow_with_the_width_fit(bitnet: Path, tmp_path: Path) -> None:
    cs.apply(cs.resize(bitnet, set={**HEADS, "hidden_size": 32}), tmp_path / "out")
    assert cs.prove(bitnet, tmp_path / "out").verdict == "EQUIVALENT"


def test_networks_that_fit_run_once(bitnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    original = layers_together._failure
    monkeypatch.setattr(layers_together, "_failure", lambda target: runs.append("") or original(target))
    for _ in range(2):
        cs.resize(bitnet, set={"num_key_value_heads": 4})
    assert len(runs) == 1


def test_nothing_is_refused_if_the_source_does_not_run_either(bitnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("needs values")

    monkeypatch.setattr(transformers.BitNetForCausalLM, "forward", fails)
    assert cs.resize(bitnet, set={"num_key_value_heads": 4}).notes


@pytest.mark.long
def test_the_proof_of_a_network_that_cannot_run_says_what_to_do(
    bitnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "check_together", lambda *_: None)
    cs.apply(cs.resize(bitnet, set=HEADS), tmp_path / "out")
    with pytest.raises(cs.ConfigError, match=r"does not run: .*[^.]\. The other network runs") as raised:
        cs.prove(bitnet, tmp_path / "out")
    assert "Compare the sizes in the two config.json files" in raised.value.hint
    assert "--inputs" not in raised.value.hint


@pytest.mark.long
def test_what_stays_or_is_explained_is_not_said_to_change_outputs(tmp_path: Path) -> None:
    folder = saved("Mixtral", tmp_path / "mixtral", num_local_experts=4, num_experts_per_tok=2)
    wider = {"num_local_experts": 8, "num_experts_per_tok": 4, "hidden_size": 32, **HEADS}
    notes = cs.resize(folder, set=wider).notes
    assert sum(note.endswith("the outputs stay equal") for note in notes) == 4
    assert "no tensor depends on num_experts_per_tok: changed only in config.json" in notes
    assert not any("may change" in note for note in notes)
    alone = cs.resize(folder, set={"num_experts_per_tok": 1}).notes
    assert "the outputs may change with num_experts_per_tok (--prove compares them)" in alone
