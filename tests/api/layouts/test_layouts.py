"""``--layout``: what is refused, what is said, and the transplant that needs no option."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api import edit
from ckptsurgeon.errors import ConfigError, PlanError
from ckptsurgeon.planning.layouts import recognise
from ckptsurgeon.planning.layouts.layout import Family, Layout
from ckptsurgeon.tensors.info import TensorInfo

from ...conftest import Result

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
Run = Callable[..., Result]
TARGETS = ["fused", "litgpt", "megatron", "megatron-dist", "megatron-local", "torchtune", "transformers"]


def recorded(family: str, layout: str) -> dict[str, torch.Tensor]:
    """The tensors of a recording."""
    return load_file(RECORDED / family / f"{layout}.safetensors")


def test_layouts_are_listed_and_recognised(ckpt: Run) -> None:
    listed = ckpt("layouts")
    assert "whisper" in listed.out
    assert "transformers, openai" in listed.out
    every = ckpt("layouts", "-v").out
    assert "openai-whisper 20250625" in every
    assert all(line.startswith("  ") for line in every.splitlines())
    save_file(recorded("llama", "meta"), "meta.safetensors")
    found = ckpt("layouts", "meta.safetensors")
    assert found.code == 0
    assert "layout meta of llama" in found.out
    assert "ckpt convert meta.safetensors --layout torchtune -o OUT" in found.out
    save_file({"weight": torch.ones(2)}, "other.safetensors")
    assert ckpt("layouts", "other.safetensors").code == 1
    assert json.loads(ckpt("layouts", "meta.safetensors", "--json").out)["found"] == [
        {"family": "llama", "layout": "meta", "targets": TARGETS, "why": None}
    ]


def test_heads_come_from_a_configuration_an_option_or_the_rotary_embedding(ckpt: Run) -> None:
    meta, wanted = recorded("llama", "meta"), recorded("llama", "transformers")
    save_file(meta, "meta.safetensors")
    done = ckpt("rename", "meta.safetensors", "--layout", "transformers", "-o", "out.safetensors")
    assert done.code == 4
    assert "the number of heads of keys and values is not known" in done.err
    assert (
        ckpt("rename", "meta.safetensors", "--layout", "transformers", "--heads", "6/2", "-o", "a.safetensors").code
        == 0
    )
    Path("params.json").write_text(json.dumps({"n_heads": 6, "n_kv_heads": 2}))
    assert ckpt("rename", "meta.safetensors", "--layout", "transformers", "-o", "b.safetensors").code == 0
    Path("params.json").unlink()
    save_file({**meta, "rope.freqs": torch.ones(2)}, "freqs.safetensors")
    done = ckpt("rename", "freqs.safetensors", "--layout", "transformers", "-o", "c.safetensors")
    assert done.code == 0
    assert "left out: rope.freqs, which transformers computes" in " ".join(done.err.split())
    for name in "abc":
        made = load_file(f"{name}.safetensors")
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[key], wanted[key]) for key in wanted)
    with pytest.raises(ConfigError, match="is not a valid number of heads"):
        cs.convert("meta.safetensors", layout="transformers", heads="6,2")


def test_heads_that_do_not_fit_are_an_error() -> None:
    save_file(recorded("llama", "meta"), "meta.safetensors")
    for heads, size in (("5", 4), ("6", 4), ("6/4", 4), ("3/2", 8)):
        with pytest.raises(PlanError, match=rf"has 24 rows .* 8, which do not fit .* with {size} rows in each head"):
            cs.convert("meta.safetensors", layout="transformers", heads=heads)
    halves = {
        key: value[: len(value) // 2] if ".attention.w" in key else value
        for key, value in load_file("meta.safetensors").items()
    }
    Path("rank").mkdir()
    save_file(halves, "rank/consolidated.00.safetensors")  # the first of two ranks
    Path("rank/params.json").write_text(json.dumps({"dim": 24, "n_heads": 6, "n_kv_heads": 2}))
    with pytest.raises(PlanError, match=r"has 12 rows .* 6 heads of queries and 2 of keys with 4 rows in each head"):
        cs.convert("rank/consolidated.00.safetensors", layout="transformers")
    save_file(recorded("llama", "transformers"), "plain.safetensors")
    cs.apply(cs.convert("plain.safetensors", layout="fused"), "fused.safetensors")
    with pytest.raises(
        PlanError, match="has 40 rows, which cannot be divided into 7 attention heads and 1 heads of keys and values"
    ):
        cs.convert("fused.safetensors", layout="transformers", heads="7/1")


def test_phi_3_computes_the_same_with_fused_tensors() -> None:
    from transformers import LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    Path("model").mkdir()
    shutil.copy(RECORDED / "llama" / "transformers.safetensors", "model/model.safetensors")
    shutil.copy(RECORDED / "llama" / "config.json", "model")
    cs.apply(cs.convert("model", layout="fused"), "fused.safetensors")
    fields = {**json.loads(Path("model/config.json").read_text()), "pad_token_id": 0, "model_type": "phi3"}
    fused, plain = Phi3ForCausalLM(Phi3Config(**fields)), LlamaForCausalLM.from_pretrained("model")
    fused.load_state_dict(load_file("fused.safetensors"))
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(tokens).logits, plain.eval()(tokens).logits, rtol=1e-5, atol=1e-5)


def test_what_has_no_layout_or_not_all_of_it_is_an_error() -> None:
    tensors = recorded("whisper", "openai")
    save_file(tensors, "openai.safetensors")
    with pytest.raises(ConfigError, match="unknown"):
        cs.convert("openai.safetensors", layout="opnai")
    with pytest.raises(
        PlanError,
        match=r"the tensors of openai.safetensors \(whisper, layout openai\) cannot be converted to the layout meta",
    ):
        cs.convert("openai.safetensors", layout="meta")
    save_file({**tensors, "encoder.extra.weight": torch.ones(2)}, "more.safetensors")
    with pytest.raises(PlanError, match="1 tensor of more.safetensors has no name in the layout transformers"):
        cs.convert("more.safetensors", layout="transformers")
    save_file({**tensors, "decoder.positional_embedding.scale": torch.ones(2)}, "module.safetensors")
    with pytest.raises(PlanError, match=r"no name in .* whisper: decoder\.positional_embedding\.scale"):
        cs.convert("module.safetensors", layout="transformers")  # a whole key there, not a module
    save_file({k: v for k, v in tensors.items() if k != "decoder.blocks.1.mlp.0.bias"}, "less.safetensors")
    with pytest.raises(PlanError, match=re.escape("decoder.blocks.1.mlp.0.bias is missing from less.safetensors")):
        cs.convert("less.safetensors", layout="transformers")
    save_file({"weight": torch.ones(2)}, "other.safetensors")
    with pytest.raises(PlanError, match=r"the layout of other.safetensors is not known\. The known families are"):
        cs.convert("other.safetensors", layout="transformers")


def test_rules_and_a_layout_are_an_error_and_operations_come_first() -> None:
    save_file(recorded("whisper", "openai"), "openai.safetensors")
    with pytest.raises(ConfigError, match="layout itself renames all tensors"):
        cs.rename("openai.safetensors", layout="transformers", map=["encoder=e"])
    plan = cs.rename(
        "openai.safetensors", layout="transformers", operations=[{"scale": "encoder.ln_post.weight", "by": 2}]
    )
    cs.apply(plan, "out.safetensors")
    made, before = load_file("out.safetensors"), recorded("whisper", "openai")
    assert torch.equal(made["model.encoder.layer_norm.weight"], 2 * before["encoder.ln_post.weight"])


def test_a_tied_layer_that_is_not_stored_is_said() -> None:
    tensors = recorded("whisper", "openai")
    save_file(tensors, "openai.safetensors")
    cs.apply(cs.convert("openai.safetensors", layout="transformers"), "hf.safetensors")
    hf = load_file("hf.safetensors")
    save_file({**hf, "proj_out.weight": hf["model.decoder.embed_tokens.weight"].clone()}, "tied.safetensors")
    plan = cs.convert("tied.safetensors", layout="openai")
    assert any("left out: proj_out, since openai-whisper uses model.decoder.embed_tokens" in one for one in plan.notes)
    cs.apply(plan, "back.safetensors")
    assert load_file("back.safetensors").keys() == tensors.keys()


def test_a_tied_layer_that_must_be_stored_is_copied() -> None:
    """litgpt's network always has an output layer of its own."""
    hf = recorded("llama", "transformers")
    save_file({key: value for key, value in hf.items() if key != "lm_head.weight"}, "tied.safetensors")
    plan = cs.convert("tied.safetensors", layout="litgpt", heads="6/2")
    assert "added: lm_head, a copy of model.embed_tokens, since litgpt stores both" in plan.notes
    cs.apply(plan, "litgpt.safetensors")
    made, wanted = load_file("litgpt.safetensors"), recorded("llama", "litgpt")
    assert made.keys() == wanted.keys()
    assert torch.equal(made["lm_head.weight"], wanted["transformer.wte.weight"])
    save_file(hf, "untied.safetensors")
    assert not any("lm_head" in note for note in cs.convert("untied.safetensors", layout="litgpt", heads="6/2").notes)


def test_a_layout_that_the_tensors_have_changes_nothing() -> None:
    save_file(recorded("llama", "transformers"), "model.safetensors")
    plan = cs.rename("model.safetensors", layout="transformers")
    assert "the tensors already have the layout transformers" in plan.notes
    assert all(step.key == step.source_key for step in plan.steps)


def test_a_transplant_converts_sources_of_the_destination_s_family() -> None:
    save_file(recorded("llama", "meta"), "meta.safetensors")
    Path("model").mkdir()
    shutil.copy(RECORDED / "llama" / "transformers.safetensors", "model/model.safetensors")
    shutil.copy(RECORDED / "llama" / "config.json", "model")
    plan = cs.transplant("meta.safetensors", "model")
    assert (
        "the tensors are converted from the layout of Meta, Mistral, torchtitan to that of transformers" in plan.notes
    )
    cs.apply(plan, "out.safetensors")
    made, wanted = load_file("out.safetensors"), recorded("llama", "transformers")
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)
    with pytest.raises(PlanError, match="nothing would be loaded"):
        cs.transplant("meta.safetensors", "model", layout="keep")
    ruled = cs.transplant("meta.safetensors", "model", map=["output=lm_head"])
    assert ruled.counts["copied"] == 1
    assert not any("layout" in note for note in ruled.notes)


def test_match_says_that_no_rules_are_needed() -> None:
    save_file(recorded("llama", "meta"), "meta.safetensors")
    save_file(recorded("llama", "transformers"), "hf.safetensors")
    said = "no --map is needed: both are networks of the family llama, and ckpt transplant converts the layout meta"
    assert any(said in note for note in cs.match("meta.safetensors", "hf.safetensors").notes)
    assert not any("no rules" in note for note in cs.match("meta.safetensors", "meta.safetensors").notes)


def test_the_layout_of_a_transplant_may_be_named() -> None:
    save_file(recorded("llama", "torchtune"), "tune.safetensors")
    tensors = recorded("llama", "transformers")
    save_file({key: value for key, value in tensors.items() if "embed" not in key}, "dst.safetensors")  # not recognised
    plan = cs.transplant("tune.safetensors", "dst.safetensors", layout="transformers", heads="6/2")
    assert (plan.counts["copied"], plan.counts["derived"]) == (16, 4)
    with pytest.raises(ConfigError, match="layout itself renames all tensors"):
        cs.transplant("tune.safetensors", "dst.safetensors", layout="transformers", map=["=lm"])


def test_two_families_with_the_same_names_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"body.weight": "body.weight"}
    twins = tuple(
        Family(
            name, (Layout("a", "a", "1", names, ("body.weight",)), Layout("b", "b", "1", {"body.weight": "x"}, ("x",)))
        )
        for name in ("one", "two")
    )
    monkeypatch.setattr(recognise, "families", lambda: twins)
    monkeypatch.setattr(edit, "check_layout", lambda *given: None)
    save_file({"body.weight": torch.ones(2)}, "model.safetensors")
    with pytest.raises(PlanError, match=r"fit several layouts: a of one, a of two"):
        cs.convert("model.safetensors", layout="b")


def test_92_000_keys_are_recognised_by_a_few_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pattern is matched unless several layouts have all their marks."""
    info = TensorInfo("float32", (2,))
    layer = "model.layers.{}.{}.weight"
    names = ["self_attn.q_proj", "self_attn.q_norm", "mlp.gate", "input_layernorm", "post_attention_layernorm"]
    names += [f"mlp.experts.{e}.{kind}_proj" for e in range(512) for kind in ("gate", "up", "down")]
    keys = {layer.format(n, name): info for n in range(60) for name in names} | {"model.embed_tokens.weight": info}
    matches: list[str] = []
    own = recognise.KeyMatcher.match
    monkeypatch.setattr(recognise.KeyMatcher, "match", lambda self, key: matches.append(key) or own(self, key))
    assert len(keys) > 92_000
    assert [(family.name, layout.name) for family, layout in recognise.recognised(keys)] == [
        ("qwen-moe", "transformers")
    ]
    assert not matches


def test_other_networks_with_the_names_of_llama_are_not_reordered(ckpt: Run) -> None:
    Path("model").mkdir()
    shutil.copy(RECORDED / "llama" / "transformers.safetensors", "model/model.safetensors")
    fields = json.loads((RECORDED / "llama" / "config.json").read_text())
    for change, said in (
        ({"model_type": "cohere"}, "the model_type is cohere"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ):
        Path("model/config.json").write_text(json.dumps({**fields, **change}))
        with pytest.raises(PlanError, match=said):
            cs.convert("model", layout="meta")
        cs.convert("model", layout="fused").to_json()  # no rows are reordered
    listed = ckpt("layouts", "model")
    assert "--layout fused" in listed.out
    assert "--layout meta" not in listed.out


def test_a_source_keeps_its_own_numbers_of_heads() -> None:
    """The destination's would scramble its queries and keys; they are used, with a note, if the source has none."""
    Path("meta").mkdir()
    shutil.copy(RECORDED / "llama" / "meta.safetensors", "meta/model.safetensors")
    fields = json.loads((RECORDED / "llama" / "config.json").read_text())
    Path("other.json").write_text(json.dumps({**fields, "num_attention_heads": 3, "num_key_value_heads": 1}))
    wanted = recorded("llama", "transformers")
    Path("meta/params.json").write_text(json.dumps({"n_heads": 6, "n_kv_heads": 2}))
    plan = cs.transplant("meta/model.safetensors", "other.json")
    assert any("the source has other numbers of heads (6/2) than the destination (3/1)" in note for note in plan.notes)
    cs.apply(plan, "out.safetensors")
    made = load_file("out.safetensors")
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)
    Path("meta/params.json").unlink()
    plan = cs.transplant("meta/model.safetensors", "other.json")
    assert any("those of the destination are used: 3/1" in note for note in plan.notes)


def test_frequencies_that_contradict_the_numbers_of_heads_are_an_error() -> None:
    save_file({**recorded("llama", "meta"), "rope.freqs": torch.ones(2)}, "freqs.safetensors")
    with pytest.raises(PlanError, match="do not fit 3 heads of queries and 1 of keys with 4 rows in each head"):
        cs.convert("freqs.safetensors", layout="transformers", heads="3/1")


def test_scales_beside_queries_are_not_taken_for_queries() -> None:
    state = recorded("llama", "transformers")
    scales = {f"model.layers.{n}.self_attn.q_proj.weight_scale": torch.ones(1) for n in range(2)}
    save_file({**state, **scales}, "scaled.safetensors")
    plan = cs.convert("scaled.safetensors", layout="meta", heads="6/2")
    assert not any(step.operation for step in plan.steps if step.key.endswith("weight_scale"))


def test_a_transplant_into_a_fused_network_converts_too() -> None:
    from transformers import Phi3Config

    save_file(recorded("llama", "transformers"), "llama.safetensors")
    fields = json.loads((RECORDED / "llama" / "config.json").read_text())
    fields = {**fields, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0}
    Path("phi3.json").write_text(json.dumps(Phi3Config(**fields).to_dict() | {"architectures": ["Phi3ForCausalLM"]}))
    plan = cs.transplant("llama.safetensors", "phi3.json")
    assert (plan.counts["copied"], plan.counts["derived"]) == (11, 4)


def test_a_network_with_names_of_llama_cpp_is_converted_first() -> None:
    save_file({"blk.0.attn_norm.weight": torch.ones(4), "token_embd.weight": torch.ones(8, 4)}, "g.safetensors")
    Path("d.yaml").write_text("model: {tensors: {model.norm.weight: {shape: [4]}}}")
    with pytest.raises(PlanError, match=r"first run ckpt convert g\.safetensors --layout transformers"):
        cs.transplant("g.safetensors", "d.yaml", layout="transformers")


def test_a_model_without_a_whole_layer_is_an_error() -> None:
    """The other library would initialise this layer."""
    whole = recorded("llama", "transformers")
    later = {key.replace(".layers.1.", ".layers.2."): one for key, one in whole.items()}
    save_file(later, "gap.safetensors")
    with pytest.raises(PlanError, match=r"model\.layers\.1 is missing from gap\.safetensors"):
        cs.convert("gap.safetensors", layout="meta", heads="6/2")


def meta() -> dict[str, torch.Tensor]:
    """A recorded Llama with Meta's names."""
    return load_file(RECORDED / "llama" / "meta.safetensors")


def refused(tensors: dict[str, torch.Tensor], layout: str = "transformers") -> str:
    """The error of a conversion."""
    save_file(tensors, "partly.safetensors")
    with pytest.raises(PlanError) as caught:
        cs.convert("partly.safetensors", layout=layout)
    return str(caught.value)


def test_a_layout_that_fits_only_in_part_is_named_with_the_keys() -> None:
    odd = {key.replace("0.attention.wq", "0.attention.query"): value for key, value in meta().items()}
    said = refused(odd)
    assert "is not known: it looks like the layout meta of llama, which has names for 20 of 21 keys, but" in said
    assert "lacks layers.0.attention.wq.weight, and layers.0.attention.query.weight has no name in it" in said
    less = {key: value for key, value in meta().items() if key != "tok_embeddings.weight"}
    assert "it looks like the layout meta of llama, which has names for 20 of 20 keys" in refused(less)
    assert "lacks tok_embeddings.weight. Complete" in refused(less)


def test_a_prefix_of_all_keys_is_named_with_the_rule_that_removes_it() -> None:
    said = refused({f"net.lm.{key}": value for key, value in meta().items()})
    assert "Without the prefix net.lm. of all keys, it has the layout meta of llama" in said
    rule = said.partition("--map '")[2].partition("'")[0]
    cs.apply(cs.rename("partly.safetensors", map=[rule]), "plain.safetensors")
    assert load_file("plain.safetensors").keys() == meta().keys()


def test_a_file_of_other_tensors_looks_like_no_layout() -> None:
    said = refused({"norm.weight": torch.ones(3), "a": torch.ones(2), "b": torch.ones(2)})
    assert "looks like" not in said


def test_tensors_without_a_name_in_the_layout_that_the_others_have_get_a_note() -> None:
    both = {**meta(), **load_file(RECORDED / "llama" / "transformers.safetensors")}
    save_file(both, "both.safetensors")
    notes = cs.convert("both.safetensors", layout="transformers").notes
    said = next(one for one in notes if "21 tensors have no name in the layout transformers: layers.0" in one)
    assert said.kind.is_serious
    with pytest.raises(PlanError, match="21 tensors of .* have no name in the layout litgpt"):
        cs.convert("both.safetensors", layout="litgpt", heads="6/2")


def test_layouts_that_all_fit_are_compared_by_some_of_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {key: TensorInfo("float32", (1, 1), None) for key in recorded("glm-moe", "transformers")}
    for expert in range(4, 3000):
        for kind in ("gate", "up", "down"):
            tensors[f"model.layers.1.mlp.experts.{expert}.{kind}_proj.weight"] = TensorInfo("float32", (1, 1), None)
    looked_at: list[int] = []
    known_keys = recognise.known_keys

    def counting(layout: Layout, keys: Collection[str]) -> set[str]:
        looked_at.append(len(keys))
        return known_keys(layout, keys)

    monkeypatch.setattr(recognise, "known_keys", counting)
    found = recognise.recognised(tensors)
    assert [(family.name, layout.name) for family, layout in found] == [("glm-moe", "transformers")]
    assert looked_at
    assert max(looked_at) < 1024 < len(tensors)


def test_the_layout_that_a_broken_model_resembles_is_said(ckpt: Run) -> None:
    whole = recorded("llama", "transformers")
    save_file(
        {key.replace("model.layers.0", "model.decoder.0"): value for key, value in whole.items()}, "a.safetensors"
    )
    found = ckpt("layouts", "a.safetensors")
    said = " ".join(found.out.split())
    assert found.code == 1
    assert "the layout is not known; it looks like the layout transformers of llama" in said
    assert "the file lacks model.layers.0.self_attn.q_proj.weight" in said
    answer = cs.layouts("a.safetensors").to_json()
    assert answer["nearest"].startswith("it looks like")
    assert cs.layouts("a.safetensors").found == ()


def test_the_reason_why_a_model_cannot_get_another_layout_is_said(ckpt: Run) -> None:
    less = {key: value for key, value in recorded("llama", "transformers").items() if "layers.1.mlp.up" not in key}
    save_file(less, "less.safetensors")
    said = " ".join(ckpt("layouts", "less.safetensors").out.split())
    assert "no other layout: model.layers.1.mlp.up_proj.weight is missing from less.safetensors" in said
    assert cs.layouts("less.safetensors").to_json()["nearest"] is None
