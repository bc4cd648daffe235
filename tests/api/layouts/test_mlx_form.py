"""Models that mlx-lm saved are whole, although transformers' classes have other names and shapes.

``mlx_headers.json`` has the names and shapes that mlx-lm 0.32.2 saved of small random models of transformers 5.23.0, plain
and with 4 bits (``load_model``, ``quantize_model(model, config, 32, 4)``, ``save_model``), and their config.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.layouts.mlx_form import is_transposed_by_mlx, without_other_forms
from ckptsurgeon.errors import PlanError

pytest.importorskip("transformers")

HEADERS: dict[str, Any] = json.loads(Path(__file__).with_name("mlx_headers.json").read_text())
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U32": torch.uint32}
SAVED = {"format": "mlx"}


def saved(name: str, *, without: str = "-", metadata: Mapping[str, str] = SAVED, path: str = "net") -> str:
    """Save a model with a recorded header; ``without`` is a part of the names of tensors that are left out."""
    found = HEADERS[name]
    Path(path).mkdir()
    Path(path, "config.json").write_text(json.dumps(found["config"]))
    shapes = {key: one for key, one in found["tensors"].items() if without not in key}
    state = {key: torch.ones(shape, dtype=DTYPES[dtype]) for key, (dtype, *shape) in shapes.items()}
    save_file(state, f"{path}/model.safetensors", dict(metadata))
    return path


def of_class(path: str) -> list[str]:
    return [one for one in cs.inspect(path, model_class=True).notes if "ForCausalLM" in one]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", HEADERS)
def test_a_model_that_mlx_lm_saved_is_that_of_its_class(name: str) -> None:
    found = of_class(saved(name))
    assert [" are those of " in one for one in found] == [True], found
    assert not [one for one in cs.inspect("net").notes if "config.json says" in one or "is a name that no" in one]
    rows = {row.id: row.status.name for row in cs.check("net").rows}
    assert [rows[one] for one in ("class-tensors", "configuration", "missing-tensors")] == ["PASS"] * 3


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("deepseek_v3.plain", "layers.0.self_attn.embed_q", "kv_b_proj"),
        ("deepseek_v3.q4", "layers.0.self_attn.embed_q", "kv_b_proj"),
        ("granitemoe.plain", "layers.1.block_sparse_moe.switch_mlp.up", "experts"),
        ("lfm2_moe.q4", "layers.0.feed_forward.up_proj", "w3"),
        ("qwen3_next.plain", "layers.0.linear_attn.out_proj", "out_proj"),
    ],
)
def test_a_tensor_that_such_a_model_lacks_is_said(name: str, lost: str, said: str) -> None:
    found = of_class(saved(name, without=lost))
    assert any("that the weights lack" in one and said in one for one in found), found


@pytest.mark.long
def test_such_names_in_a_file_that_mlx_did_not_write_are_not_those_of_the_class() -> None:
    found = of_class(saved("ernie4_5_moe.plain", metadata={"format": "pt"}))
    assert any("tensors that the weights lack" in one and "experts" in one for one in found), found


def written(path: str) -> str | None:
    with safe_open(f"{path}/model.safetensors", "pt") as file:
        return (file.metadata() or {}).get("format")


def test_a_transplant_into_a_file_of_mlx_is_one() -> None:
    saved("lfm2_moe.plain")
    saved("lfm2_moe.plain", metadata={"format": "pt"}, path="other")
    cs.apply(cs.transplant("other", "net"), "into")
    cs.apply(cs.transplant("net", "other"), "out")
    assert written("into") == "mlx"
    assert written("out") == "pt"


def test_a_layout_gives_the_metadata_of_its_library() -> None:
    state = {"lm_head.weight": torch.ones(8, 4), "model.embed_tokens.weight": torch.ones(8, 4)}
    state["model.norm.weight"] = torch.ones(4)
    for one in ("input_layernorm", "post_attention_layernorm"):
        state[f"model.layers.0.{one}.weight"] = torch.ones(4)
    state |= {f"model.layers.0.self_attn.{one}_proj.weight": torch.ones(4, 4) for one in "qkvo"}
    state |= {f"model.layers.0.self_attn.{one}_norm.weight": torch.ones(2) for one in "qk"}
    state["model.layers.0.mlp.gate.weight"] = torch.ones(2, 4)
    for number in range(2):
        for one, shape in (("gate", (6, 4)), ("up", (6, 4)), ("down", (4, 6))):
            state[f"model.layers.0.mlp.experts.{number}.{one}_proj.weight"] = torch.ones(shape)
    Path("net").mkdir()
    save_file(state, "net/model.safetensors", {"format": "pt", "own": "kept"})
    cs.apply(cs.convert("net", layout="mlx"), "mlx")
    cs.apply(cs.convert("mlx", layout="transformers"), "back")
    cs.apply(cs.convert("mlx", dtype="bf16"), "half")
    assert [written(path) for path in ("mlx", "back", "half")] == ["mlx", "pt", "mlx"]
    assert cs.open_checkpoint("back").metadata["own"] == "kept"


def test_a_network_with_the_same_names_in_mlx_needs_no_layout_of_it() -> None:
    folder = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "llama"
    with pytest.raises(PlanError, match="the family llama has no such layout") as caught:
        cs.convert(folder / "meta.safetensors", layout="mlx")
    assert caught.value.hint == "mlx-lm reads this network with the names of transformers: use --layout transformers."


@pytest.mark.long
def test_ernie_without_experts_needs_no_layout_of_mlx() -> None:
    """mlx-lm 0.32.2 has the names and the values of transformers' files, and computes the same from them."""
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    config = transformers.Ernie4_5Config(**sizes, num_key_value_heads=1, vocab_size=20)
    transformers.Ernie4_5ForCausalLM(config).save_pretrained("net")
    with pytest.raises(PlanError, match="the family llama has no such layout") as caught:
        cs.convert("net", layout="mlx")
    assert caught.value.hint == "mlx-lm reads this network with the names of transformers: use --layout transformers."


@pytest.mark.parametrize("without", ["layers.0.conv", "layers.2.conv"])
def test_lfm2_is_known_by_the_first_convolution_that_there_is(without: str) -> None:
    golden = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "lfm2"
    state = {key: one for key, one in load_file(golden / "mlx.safetensors").items() if without not in key}
    save_file(state, "part.safetensors")
    cs.apply(cs.convert("part.safetensors", layout="transformers"), "out.safetensors")
    wanted = load_file(golden / "transformers.safetensors")
    found = load_file("out.safetensors")
    assert all(torch.equal(found[key], wanted[key]) for key in state)


def test_dots_has_its_stacks_in_another_module_than_glm() -> None:
    """config.json chooses between two layouts of one name."""
    golden = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
    for network, module in (("glm-moe", "switch_mlp"), ("glm-moe.dots", "experts")):
        Path(network).mkdir()
        shutil.copy(golden / network / "transformers.safetensors", f"{network}/model.safetensors")
        shutil.copy(golden / network / "config.json", network)
        cs.apply(cs.convert(network, layout="mlx"), f"{module}-mlx")
        assert f"model.layers.1.mlp.{module}.up_proj.weight" in cs.open_checkpoint(f"{module}-mlx")


def test_without_a_configuration_a_note_says_which_of_two_layouts_is_written() -> None:
    golden = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
    shutil.copy(golden / "glm-moe.dots" / "transformers.safetensors", "model.safetensors")
    notes = [str(note) for note in cs.convert("model.safetensors", layout="mlx").notes]
    assert [one for one in notes if one.startswith("model_type is not known: written as for GLM-4.5")]
    Path("config.json").write_text(json.dumps({"model_type": "dots1"}))
    assert "model_type is not known" not in str(cs.convert("model.safetensors", layout="mlx").notes)


def test_each_direction_says_what_becomes_of_norms_with_a_1() -> None:
    source = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "qwen3-next"
    norm = "model.layers.0.input_layernorm.weight"
    state = {key: value.bfloat16() for key, value in load_file(source / "transformers.safetensors").items()}
    state[norm] = torch.tensor([3e-8, 1.2e-6] * 8, dtype=torch.bfloat16)
    save_file(state, "model.safetensors")
    there = cs.convert("model.safetensors", layout="mlx")
    assert "norms become float32" in str(there.notes)
    assert "by at most 6e-8" in str(there.notes)
    cs.apply(there, "mlx.safetensors")
    back = cs.convert("mlx.safetensors", layout="transformers")
    assert "norms are float32, without the 1 that MLX stores in them" in str(back.notes)
    assert "norms become" not in str(back.notes)
    cs.apply(back, "back.safetensors")
    found = load_file("back.safetensors")[norm]
    assert found.dtype == torch.float32
    change = (found - state[norm].float()).abs().max().item()
    assert 0 < change <= 6e-8


def test_latent_attention_whose_rows_fit_no_number_of_heads_is_an_error() -> None:
    path = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "deepseek"
    tensors = load_file(path / "transformers.safetensors")
    key = "model.layers.0.self_attn.kv_b_proj.weight"
    save_file({**tensors, key: torch.ones(tensors[key].shape[0] + 1, tensors[key].shape[1])}, "odd.safetensors")
    with pytest.raises(PlanError, match="which do not fit the other tensors of its attention"):
        cs.convert("odd.safetensors", layout="mlx")


def test_forms_are_compared_layer_by_layer() -> None:
    lacking = {"a.0.x": 6, "a.1.x": 6, "head": 5}
    assert without_other_forms(lacking, {"a.0.y": 2, "a.0.z": 4, "a.1.y": 7}) == (["a.1.x", "head"], ["a.1.y"])
    assert without_other_forms({"a.0.x": 6}, {}) == (["a.0.x"], [])
    assert without_other_forms({}, {"a.0.x": 6}) == ([], ["a.0.x"])


@pytest.mark.parametrize(
    ("shape", "other", "is_so"),
    [
        ((8, 3, 1), (8, 1, 3), True), ((8, 3, 3, 4), (8, 4, 3, 3), True), ((8, 3, 1), (8, 3, 1), False),
        ((8, 3), (3, 8), False), ((8, 3, 2), (8, 1, 3), False),
    ],
)  # fmt: skip
def test_convolutions_with_the_channels_last_are_known(shape: Any, other: Any, is_so: bool) -> None:
    assert is_transposed_by_mlx(shape, other) is is_so
