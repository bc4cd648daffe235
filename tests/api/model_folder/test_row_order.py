"""Queries and keys that rules rename between libraries with another order of rows: the note, and what it asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

HEADS, KEYS, SIZE, WIDTH, FF, VOCAB = 4, 2, 8, 32, 48, 40
RULES = (
    "tok_embeddings=model.embed_tokens", "output=lm_head", "norm=model.norm",
    "layers.{n}.attention.w*=model.layers.{n}.self_attn.*_proj",
    "layers.{n}.feed_forward.w1=model.layers.{n}.mlp.gate_proj", "layers.{n}.feed_forward.w3=model.layers.{n}.mlp.up_proj",
    "layers.{n}.feed_forward.w2=model.layers.{n}.mlp.down_proj",
    "layers.{n}.attention_norm=model.layers.{n}.input_layernorm",
    "layers.{n}.ffn_norm=model.layers.{n}.post_attention_layernorm",
)  # fmt: skip


def meta_name(key: str) -> str:
    number = next((part for part in key.split(".") if part.isdigit()), "")
    inside = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    tops = {"model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.norm": "norm"}
    module = key.removesuffix(".weight")
    return f"{tops.get(module) or f'layers.{number}.' + inside[module.split('.', 3)[3]]}.weight"


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Row 2i of a head of Meta's is row i of transformers', and row 2i + 1 is row i of the second half."""
    out = torch.empty_like(rows)
    size = rows.shape[0] // heads
    for head in range(heads):
        mine, theirs = out[head * size : (head + 1) * size], rows[head * size : (head + 1) * size]
        for i in range(size // 2):
            mine[2 * i], mine[2 * i + 1] = theirs[i], theirs[size // 2 + i]
    return out


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny Llama in the folder ``hf``, and the same model as Meta would store it, in ``meta``."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=FF, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, vocab_size=VOCAB, tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained("hf")
    heads = {"q_proj": HEADS, "k_proj": KEYS}
    stored = {}
    for key, value in model.state_dict().items():
        number = heads.get(key.split(".")[-2])
        stored[meta_name(key)] = in_pairs(value, number) if number else value.clone()
    Path("meta").mkdir()
    torch.save(stored, "meta/consolidated.00.pth")
    return model


def logits(model: Any, folder: str | None = None, weights: Any = None) -> torch.Tensor:
    if folder is not None:
        model = type(model).from_pretrained(folder).eval()
    if weights is not None:
        model.load_state_dict(weights)
    with torch.no_grad():
        return model(torch.arange(12)[None] % VOCAB).logits.clone()


def notes(plan: Any) -> list[str]:
    return [note for note in plan.notes if "order of rows" in note]


def remedy(note: str) -> str:
    """The operations of a note, as the file that it asks for."""
    return "\n".join(re.findall(r"- \{(?:halves|pairs): '[^']+', heads: \w+\}", note))


def test_the_operations_of_the_note_give_equal_logits(llama: Any, ckpt: Any) -> None:
    Path("meta/params.json").write_text(json.dumps({"dim": WIDTH, "n_heads": HEADS, "n_kv_heads": KEYS}))
    said = ckpt("rename", "meta/consolidated.00.pth", *maps(), "-o", "wrong.safetensors")
    assert said.code == 0
    (note,) = notes(cs.rename("meta/consolidated.00.pth", map=RULES))
    assert note.startswith("4 tensors of queries and keys would need another order of rows")
    assert "layers.0.attention.wq.weight as model.layers.0.self_attn.q_proj.weight" in note
    Path("heads.yaml").write_text(remedy(note))
    assert yaml.safe_load(remedy(note)) == [
        {"halves": "layers.{n}.attention.wq", "heads": HEADS}, {"halves": "layers.{n}.attention.wk", "heads": KEYS}
    ]  # fmt: skip
    done = ckpt("rename", "meta/consolidated.00.pth", *maps(), "--operations", "heads.yaml", "-o", "right.safetensors")
    assert done.code == 0
    assert "order of rows" not in done.err + done.out
    assert cs.verify("right.safetensors").ok
    want = logits(llama)
    assert torch.equal(logits(llama, weights=load_file("right.safetensors")), want)
    assert not torch.allclose(logits(llama, weights=load_file("wrong.safetensors")), want, atol=1e-3)


def maps() -> list[str]:
    return [word for rule in RULES for word in ("--map", rule)]


def test_a_transplant_says_it_and_takes_the_heads_from_config_json(llama: Any, ckpt: Any) -> None:
    for destination in ("hf", "hf/config.json"):
        plan = cs.transplant("meta/consolidated.00.pth", destination, map=RULES)
        (note,) = notes(plan)
        assert f"- {{halves: 'layers.{{n}}.attention.wk', heads: {KEYS}}}" in note
    Path("heads.yaml").write_text(remedy(note))
    done = ckpt("transplant", "meta/consolidated.00.pth", "hf", *maps(), "--operations", "heads.yaml", "-o", "new/")
    assert done.code == 0
    assert "order of rows" not in done.err + done.out
    assert torch.equal(logits(llama, "new"), logits(llama))


def test_the_way_back_makes_pairs(llama: Any) -> None:
    rules = [f"{new}={old}" for old, new in (rule.split("=") for rule in RULES)]
    (note,) = notes(cs.rename("hf", map=rules))
    operations = yaml.safe_load(remedy(note))
    assert operations == [
        {"pairs": "model.layers.{n}.self_attn.k_proj", "heads": KEYS},
        {"pairs": "model.layers.{n}.self_attn.q_proj", "heads": HEADS},
    ]
    plan = cs.rename("hf", map=rules, operations=operations)
    assert not notes(plan)
    cs.apply(plan, "back.safetensors")
    want = torch.load("meta/consolidated.00.pth")
    assert {key: value.equal(want[key]) for key, value in load_file("back.safetensors").items()} == dict.fromkeys(
        want, True
    )


def test_match_and_fits_say_it(llama: Any) -> None:
    found = cs.match("meta/consolidated.00.pth", "hf")
    assert not notes(found)  # the operations that it proposes reorder the rows
    assert {"halves": "layers.{n}.attention.wk.weight", "heads": KEYS} in [dict(one.row) for one in found.operations]
    assert any("no --map is needed" in other for other in found.notes)
    fit = cs.fits("meta/consolidated.00.pth", "hf")
    assert not notes(fit)  # the transplant that makes it fit reorders the rows
    assert fit.command[:2] == ("ckpt", "transplant")
    assert "--map" not in fit.command
    assert cs.match("meta/consolidated.00.pth", "hf").complete


def test_without_the_number_of_heads_the_note_asks_for_it(llama: Any) -> None:
    (note,) = notes(cs.rename("meta/consolidated.00.pth", map=RULES))
    assert "where N is the number of heads" in note
    assert "{halves: 'layers.{n}.attention.wq', heads: N}" in note
    Path("meta/params.json").write_text(json.dumps({"n_heads": 5, "n_kv_heads": "x"}))
    assert "heads: N" in notes(cs.rename("meta/consolidated.00.pth", map=RULES))[0]
    Path("meta/params.json").write_text("[")
    assert "heads: N" in notes(cs.rename("meta/consolidated.00.pth", map=RULES))[0]


def test_within_one_convention_nothing_is_said(llama: Any) -> None:
    assert not notes(cs.rename("hf", map=["model=backbone.model"]))
    assert not notes(cs.rename("meta/consolidated.00.pth", map=["layers=text_model.layers"]))
    assert not notes(cs.rename("meta/consolidated.00.pth", map=["**.attention.wq=**.attention.query"]))
    assert not notes(cs.convert("hf", layout="gguf"))


def test_llama_cpp_s_names_mean_pairs_only_for_its_llama(llama: Any) -> None:
    cs.apply(cs.convert("hf", layout="gguf"), "hf.gguf")
    rules = [f"blk.{{n}}.attn_{p}=model.layers.{{n}}.self_attn.{p}_proj" for p in "qk"]
    (note,) = notes(cs.rename("hf.gguf", map=rules))
    assert f"{{halves: 'blk.{{n}}.attn_q', heads: {HEADS}}}" in note
    assert "ckpt convert --layout transformers does both" in note
    assert "if this is" not in note
    back = [f"model.layers.{{n}}.self_attn.{p}_proj=blk.{{n}}.attn_{p}" for p in "qk"]
    assert len(notes(cs.rename("hf", map=back))) == 1
    config = json.loads(Path("hf/config.json").read_text())
    Path("hf/config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    assert not notes(cs.rename("hf", map=back))
    Path("hf/config.json").unlink()
    assert notes(cs.rename("hf/model.safetensors", map=back))[0].startswith("if this is a Llama or Mistral, ")


def test_models_that_rotate_pairs_in_transformers_too_keep_their_rows(llama: Any) -> None:
    config = json.loads(Path("hf/config.json").read_text())
    back = [f"model.layers.{{n}}.self_attn.{p}_proj=layers.{{n}}.attention.w{p}" for p in "qk"]
    assert notes(cs.rename("hf", map=back))
    Path("hf/config.json").write_text(json.dumps(config | {"model_type": "cohere"}))
    assert not notes(cs.rename("hf", map=back))


def test_the_rows_of_an_adapter_are_those_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    at = "layers.0.attention.wq"
    save_file(
        {f"{at}.lora_A.weight": torch.zeros(2, 4), f"{at}.lora_B.weight": torch.zeros(8, 2)}, "adapter.safetensors"
    )
    (note,) = notes(cs.rename("adapter.safetensors", map=["layers.{n}.attention.wq=layers.{n}.self_attn.q_proj"]))
    assert note.startswith("1 tensor of queries and keys would need another order of rows")
    assert "{halves: 'layers.{n}.attention.wq.lora_B', heads: N}" in note


def test_torchtune_is_known_by_its_norms(llama: Any) -> None:
    tensors = {"layers.0.attn.q_proj.weight": torch.zeros(8, 4), "layers.0.attn.k_proj.weight": torch.zeros(8, 4)}
    rules = ["layers.{n}.attn=model.layers.{n}.self_attn"]
    save_file(tensors, "plain.safetensors")
    assert not notes(cs.rename("plain.safetensors", map=rules))
    save_file(tensors | {"layers.0.sa_norm.scale": torch.ones(4)}, "tune.safetensors")
    assert (
        "torchtune has the two rows of each rotated pair side by side"
        in notes(cs.rename("tune.safetensors", map=rules))[0]
    )
    save_file(
        tensors | {"layers.0.sa_norm.scale": torch.ones(4), "layers.0.attn.q_proj.bias": torch.ones(8)},
        "qwen.safetensors",
    )
    assert not notes(cs.rename("qwen.safetensors", map=rules))


def said(plan: Any) -> list[str]:
    return [note for note in plan.notes if note.startswith("the operation ")]


def of_meta(queries: str = "halves", keys: str = "halves", *, key_heads: int = KEYS) -> list[dict[str, Any]]:
    return [
        {queries: "layers.{n}.attention.wq", "heads": HEADS}, {keys: "layers.{n}.attention.wk", "heads": key_heads}
    ]  # fmt: skip


def test_an_operation_with_other_heads_than_the_configuration_is_noted(llama: Any) -> None:
    for destination in ("hf", "hf/config.json"):
        plan = cs.transplant("meta/consolidated.00.pth", destination, map=RULES, operations=of_meta(key_heads=HEADS))
        (note,) = said(plan)
        assert note.startswith(
            "the operation halves layers.{n}.attention.wk says heads: 4, but the configuration says 2"
        )
        assert not said(
            cs.transplant("meta/consolidated.00.pth", destination, map=RULES, operations=of_meta())
        )  # fmt: skip
    wrong = cs.rename("meta/consolidated.00.pth", map=RULES, operations=of_meta(key_heads=HEADS))
    assert not said(wrong)  # nothing says how many heads there are
    Path("meta/params.json").write_text(json.dumps({"dim": WIDTH, "n_heads": HEADS, "n_kv_heads": KEYS}))
    assert len(said(cs.rename("meta/consolidated.00.pth", map=RULES, operations=of_meta(key_heads=HEADS)))) == 1
    assert not said(cs.rename("meta/consolidated.00.pth", map=RULES, operations=of_meta()))


def test_an_operation_in_the_wrong_direction_is_noted(llama: Any) -> None:
    plan = cs.transplant("meta/consolidated.00.pth", "hf", map=RULES, operations=of_meta("pairs", "pairs"))
    assert len(said(plan)) == 2
    assert (
        "puts rows into the order pairs, but tensors with the old name have this order already; use halves"
        in said(plan)[0]
    )
    rules = [f"layers.{{n}}.attention.w{p}=encoder.{{n}}.{p}" for p in "qk"]
    assert not said(cs.rename("meta/consolidated.00.pth", map=rules, operations=of_meta()))
    assert len(said(cs.rename("meta/consolidated.00.pth", map=rules, operations=of_meta("pairs")))) == 1
    save_file({f"encoder.0.{p}.weight": torch.zeros(HEADS * SIZE, WIDTH) for p in "qk"}, "own.safetensors")
    back = [f"encoder.{{n}}.{p}=model.layers.{{n}}.self_attn.{p}_proj" for p in "qk"]
    operations = [{"pairs": "encoder.{n}.q", "heads": HEADS}, {"halves": "encoder.{n}.k", "heads": HEADS}]
    (note,) = said(cs.rename("own.safetensors", map=back, operations=operations))
    assert (
        "the operation pairs encoder.{n}.q puts rows into the order pairs, but tensors with the new name need the order halves"
        in note
    )


def test_an_operation_that_is_not_needed_or_done_twice_is_noted(llama: Any) -> None:
    operations = [{"halves": "model.layers.{n}.self_attn.q_proj", "heads": HEADS}]
    (note,) = said(cs.transplant("hf", "hf", operations=operations))
    assert "tensors with the old name have this order already; leave it out" in note
    twice = [*of_meta(), {"halves": "layers.{n}.attention.wq", "heads": HEADS}]
    notes = said(cs.transplant("meta/consolidated.00.pth", "hf", map=RULES, operations=twice))
    assert len(notes) == 2
    assert all("another operation also reorders" in note for note in notes)


def test_operations_on_llama_cpp_s_names_are_judged_by_its_architecture(llama: Any) -> None:
    cs.apply(cs.convert("hf", layout="gguf"), "hf.gguf")
    rules = [f"blk.{{n}}.attn_{p}=model.layers.{{n}}.self_attn.{p}_proj" for p in "qk"]
    operations = [{"halves": f"blk.{{n}}.attn_{p}", "heads": heads} for p, heads in (("q", HEADS), ("k", KEYS))]
    assert not said(cs.rename("hf.gguf", map=rules, operations=operations))
    operations[1]["heads"] = HEADS
    assert "heads: 4, but the configuration says 2" in said(cs.rename("hf.gguf", map=rules, operations=operations))[0]
    back = ["model.layers.{n}.self_attn.q_proj=blk.{n}.attn_q"]
    pairs = [{"pairs": "model.layers.{n}.self_attn.q_proj", "heads": HEADS}]
    assert not said(cs.rename("hf", map=back, operations=pairs))
    config = json.loads(Path("hf/config.json").read_text())
    Path("hf/config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    assert "tensors with the new name need the order halves; leave it out" in said(
        cs.rename("hf", map=back, operations=pairs)
    )[0]  # fmt: skip
    Path("hf/config.json").unlink()
    assert not said(cs.rename("hf/model.safetensors", map=back, operations=pairs))


@pytest.mark.parametrize(("architecture", "is_noted"), [("gemma", True), ("gemma3", True), ("qwen2", False)])
def test_norms_that_llama_cpp_stores_with_1_added_are_noted_under_other_names(
    architecture: str, is_noted: bool
) -> None:
    tensors = {f"blk.{layer}.attn_norm.weight": torch.ones(8) for layer in range(2)}
    save_file(tensors, "m.safetensors", {"general.architecture": architecture})
    said = "norms get new names, but no new values: llama.cpp stores the norms of"
    for rule, is_other in (("blk.{n}.attn_norm=model.layers.{n}.input_layernorm", True), ("blk.{n}=blk.1{n}", False)):
        notes = [note for note in cs.rename("m.safetensors", map=rule).notes if said in note]
        assert len(notes) == (is_noted and is_other)
        assert all(note.startswith("2 norms get") and "--layout transformers" in note for note in notes)


def test_gemmas_norms_under_names_of_llama_cpp_are_noted() -> None:
    Path("g").mkdir()
    save_file({"model.layers.0.input_layernorm.weight": torch.zeros(8)}, "g/model.safetensors", {"format": "pt"})
    Path("g/config.json").write_text('{"model_type": "gemma2"}')
    notes = cs.rename("g", map="model.layers.{n}.input_layernorm=blk.{n}.attn_norm").notes
    assert any(note.startswith("1 norm gets a new name, but") and "--layout gguf" in note for note in notes)
