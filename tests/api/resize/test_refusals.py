"""What cannot be resized is an error that says why; several fields change together; the command writes a whole folder."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers", minversion="5")
running = importlib.import_module("fixtures.resizing.running")

LAYERS = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small Qwen3 in bfloat16, whose three layers have different kinds of attention."""
    folder = tmp_path_factory.mktemp("resized") / "qwen3"
    config = transformers.Qwen3Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, vocab_size=30, use_sliding_window=True, tie_word_embeddings=False, **LAYERS,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_the_command_writes_a_folder_that_transformers_opens(
    made: Path, tmp_path: Path, ckpt: Callable[..., Any]
) -> None:
    done = ckpt("resize", made, "--set", "num_hidden_layers=5", "--layers", "0..1,0..2", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "3 to 5: 2 layers repeated; the outputs change" in " ".join(done.err.split())
    model, loading = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype == torch.bfloat16
    kinds = [LAYERS["layer_types"][number] for number in (0, 1, 0, 1, 2)]
    assert model.config.layer_types == kinds
    before, after = load_file(made / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for new, old in enumerate((0, 1, 0, 1, 2)):
        for name in ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"):
            assert torch.equal(after[f"model.layers.{new}.{name}"], before[f"model.layers.{old}.{name}"])


def test_a_plan_that_was_printed_draws_the_same_values(made: Path, tmp_path: Path, ckpt: Callable[..., Any]) -> None:
    asked = ["resize", made, "--set", "intermediate_size=40", "--seed", "3"]
    (tmp_path / "plan.json").write_text(ckpt(*asked, "-n", "--json").out)
    assert ckpt(*asked, "-o", tmp_path / "one").code == 0
    assert ckpt("apply", tmp_path / "plan.json", "-o", tmp_path / "two").code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert json.loads((tmp_path / "two/config.json").read_text())["intermediate_size"] == 40
    new = one["model.layers.0.mlp.up_proj.weight"][24:]
    assert new.abs().sum() > 0
    assert not one["model.layers.0.mlp.down_proj.weight"][:, 24:].any()


@pytest.mark.long
def test_several_fields_change_together_and_the_network_computes_the_same(made: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 36, "num_attention_heads": 8, "num_key_value_heads": 4}
    plan = cs.resize(made, set={**sizes, "num_hidden_layers": 6}, layers="identity", dtype="float32")
    assert sum(note.endswith("the outputs stay equal") for note in plan.notes) == 5
    cs.apply(plan, tmp_path / "out")
    before, after = (
        transformers.Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (made, tmp_path / "out")
    )
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_listed_heads_are_the_ones_that_are_kept(made: Path, tmp_path: Path) -> None:
    cs.apply(cs.resize(made, set=["num_attention_heads=2"], keep=["num_attention_heads=1,3"]), tmp_path / "out")
    before, after = load_file(made / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    key = "model.layers.2.self_attn.{}_proj.weight"
    rows = [*range(4, 8), *range(12, 16)]
    assert torch.equal(after[key.format("q")], before[key.format("q")][rows])
    assert torch.equal(after[key.format("o")], before[key.format("o")][:, rows])


@pytest.mark.long
def test_of_grouped_heads_equally_many_are_kept_by_their_weights(made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "model.safetensors")
    key = "model.layers.{}.self_attn.{}_proj.weight"
    for layer in range(3):
        weights[key.format(layer, "q")][:8] *= 9  # both heads of the first group
        weights[key.format(layer, "q")][4:8] *= 3
        weights[key.format(layer, "q")][8:12] *= 2
    (tmp_path / "in").mkdir()
    save_file(weights, tmp_path / "in/model.safetensors", {"format": "pt"})
    (tmp_path / "in/config.json").write_bytes((made / "config.json").read_bytes())
    cs.apply(cs.resize(tmp_path / "in", set={"num_attention_heads": 2}), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    rows = [*range(4, 8), *range(8, 12)]
    assert torch.equal(after[key.format(0, "q")], weights[key.format(0, "q")][rows])


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no field": ({"set": []}, cs.ConfigError, "no field is given"),
    "no value": ({"set": ["hidden_size"]}, cs.ConfigError, "does not have the form FIELD=VALUE"),
    "twice": ({"set": ["hidden_size=32", "hidden_size=48"]}, cs.ConfigError, "given twice"),
    "unknown": ({"set": {"hidden_sise": 32}}, cs.ConfigError, "has no field 'hidden_sise'"),
    "the same": ({"set": {"hidden_size": 16}}, cs.ConfigError, "has this value already"),
    "text": ({"set": {"hidden_size": "wide"}}, cs.ConfigError, "is not a whole number above 0"),
    "below zero": ({"set": {"num_hidden_layers": -1}, "layers": "first"}, cs.ConfigError, "is not a whole number above 0"),
    "not whole": ({"set": {"hidden_size": 1e3}}, cs.ConfigError, 'hidden_size=1000.0"? is not a whole number above 0'),
    "no positions": ({"set": {"max_position_embeddings": 0}}, cs.ConfigError, "is not a whole number above 0"),
    "no multiple": ({"set": {"hidden_size": 24}, "new_width": "copy"}, cs.PlanError, "is not a multiple of 16"),
    "narrower": ({"set": {"hidden_size": 8}}, cs.PlanError, "a width can only be made larger"),
    "heads that do not divide": ({"set": {"num_key_value_heads": 3}}, cs.CheckpointError, "3"),
    "layers not said": ({"set": {"num_hidden_layers": 5}}, cs.ConfigError, "no option says which layers"),
    "too few listed": ({"set": {"num_hidden_layers": 5}, "layers": "0..2"}, cs.ConfigError, "lists 3 layers"),
    "no such layer": ({"set": {"num_hidden_layers": 4}, "layers": "0..3"}, cs.ConfigError, "not a layer from 0 to 2"),
    "not a list": ({"set": {"num_hidden_layers": 4}, "layers": "all"}, cs.ConfigError, "not a layer from 0 to 2"),
    "repeat for fewer": ({"set": {"num_hidden_layers": 2}, "layers": "repeat"}, cs.ConfigError, "cannot make 2"),
    "first for more": ({"set": {"num_hidden_layers": 4}, "layers": "first"}, cs.ConfigError, "cannot make 4"),
    "layers of nothing": ({"set": {"hidden_size": 32}, "layers": "first"}, cs.ConfigError, "the number of layers stays the same"),
    "keep of nothing": (
        {"set": {"hidden_size": 32}, "keep": {"num_attention_heads": "0"}}, cs.ConfigError, "this field is not changed"
    ),
    "too many kept": (
        {"set": {"num_attention_heads": 2}, "keep": {"num_attention_heads": [0, 1, 2]}}, cs.ConfigError, "3 numbers"
    ),
    "kept twice": (
        {"set": {"num_attention_heads": 2}, "keep": ["num_attention_heads=1,1"]}, cs.ConfigError, "different numbers"
    ),
    "channels of nothing": ({"set": {"hidden_size": 32}, "new_channels": "copy"}, cs.ConfigError, "no number of channels becomes larger"),
    "width of nothing": ({"set": {"intermediate_size": 32}, "new_width": "init"}, cs.ConfigError, "no width becomes larger"),
    "unknown width": ({"set": {"hidden_size": 24}, "new_width": "zero"}, cs.ConfigError, "zero. is unknown"),
    "keep of what grows": ({"set": {"intermediate_size": 32}, "keep": {"intermediate_size": "0"}}, cs.ConfigError, "only for heads"),
    "keep of what is pooled": (
        {"set": {"num_key_value_heads": 1}, "keep": {"num_key_value_heads": "1"}}, cs.ConfigError, "only for heads"
    ),
    "unequal groups": (
        {"set": {"num_attention_heads": 2}, "keep": {"num_attention_heads": "0..1"}}, cs.ConfigError, "must keep the same number of query heads"
    ),
    "unknown way": ({"set": {"intermediate_size": 32}, "new_channels": "zero"}, cs.ConfigError, "zero. is unknown"),
    "other kinds of layers": (
        {"set": {"head_dim": 8}}, cs.PlanError, "it is not known how"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_possible_is_an_error(case: str, made: Path) -> None:
    arguments, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        cs.resize(made, **arguments)


@pytest.mark.long
def test_a_source_without_a_configuration_or_with_other_weights_is_an_error(made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "model.safetensors")
    save_file(weights, tmp_path / "alone.safetensors")
    with pytest.raises(cs.ConfigError, match=r"there is no config\.json"):
        cs.resize(tmp_path / "alone.safetensors", set={"hidden_size": 32})
    plan = cs.resize(tmp_path / "alone.safetensors", set={"hidden_size": 32}, config=made / "config.json")
    assert plan.verb == "resize"
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "alone.safetensors")
    with pytest.raises(cs.PlanError, match=r"does not have model\.layers\.1\.mlp\.up_proj\.weight"):
        cs.resize(tmp_path / "alone.safetensors", set={"hidden_size": 32}, config=made / "config.json")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 16)
    save_file(weights, tmp_path / "alone.safetensors")
    with pytest.raises(cs.PlanError, match=r"has other shapes: model\.layers\.1\.mlp\.up_proj\.weight"):
        cs.resize(tmp_path / "alone.safetensors", set={"hidden_size": 32}, config=made / "config.json")


@pytest.mark.long
@pytest.mark.parametrize("fields", [{"hidden_size": 32}, {"num_key_value_heads": 1}, {"num_hidden_layers": 4}])
def test_a_source_without_a_prefix_that_lacks_tensors_is_an_error_that_names_them(
    fields: dict[str, int], made: Path, tmp_path: Path
) -> None:
    """As a network without its head is saved: other names do not hide what is missing."""
    whole = {key.removeprefix("model."): value for key, value in load_file(made / "model.safetensors").items()}
    asked: dict[str, Any] = {"set": fields, "layers": "identity" if "num_hidden_layers" in fields else None}

    def resized(**changed: torch.Tensor | None) -> cs.Plan:
        weights = {key: value for key, value in {**whole, **changed}.items() if value is not None}
        save_file(weights, tmp_path / "alone.safetensors")
        return cs.resize(tmp_path / "alone.safetensors", config=made / "config.json", **asked)

    assert resized().verb == "resize"
    for missing, said in (("lm_head.weight", "lm_head"), ("layers.1.mlp.up_proj.weight", r"model\.layers\.1\.mlp\.up")):
        with pytest.raises(cs.PlanError, match=f"does not have {said}") as raised:
            resized(**{missing: None})
        assert raised.value.hint == "Run ckpt fits, which lists the differences."
    with pytest.raises(cs.PlanError, match=r"has other shapes: layers\.1\.mlp\.up_proj\.weight"):
        resized(**{"layers.1.mlp.up_proj.weight": torch.zeros(5, 16)})


def test_a_network_that_is_not_of_transformers_is_an_error(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"width": 3}')
    with pytest.raises(cs.ConfigError, match="only a network of transformers"):
        cs.resize(tmp_path, set={"width": 6})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"config\.json is not valid JSON: Expecting value: line 1 column 1"),
        ('{"model_type": "llama", ', r"config\.json is not valid JSON: Expecting .*: line 1 column 2[45]"),
        ('{"model_type": "llama",\n "hidden_size": 64,\n}', r"config\.json is not valid JSON: .*: line [23] column"),
        ("model_type: llama\n", r"config\.json is not valid JSON: Expecting value: line 1 column 1"),
        ('{"model_type": "llama",\n"model_type": "bert"}', "key model_type occurs twice, again on line 2"),
        ("[" * 10_000, "nested too deeply"),
    ],
)
def test_a_configuration_that_cannot_be_parsed_is_named_so(text: str, why: str, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(cs.ConfigError, match=why):
        cs.resize(tmp_path, set={"hidden_size": 6})
    (tmp_path / "config.json").write_text('{"width": 3}')
    (tmp_path / "own.yaml").write_text("model: {_target_: own.Net,\n  width: [1\n")
    with pytest.raises(cs.ConfigError, match=r"own\.yaml, line 3: it is not valid YAML"):
        cs.resize(tmp_path, set={"hidden_size": 6}, config=tmp_path / "own.yaml")


def test_a_quantised_model_is_an_error(made: Path, tmp_path: Path) -> None:
    cs.apply(cs.convert(made, quantize="fp8-block"), tmp_path / "coded")
    with pytest.raises(cs.CheckpointError, match="quanti"):
        cs.resize(tmp_path / "coded", set={"num_key_value_heads": 1})


@pytest.mark.long
def test_more_experts_than_there_are_cannot_be_used(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=30, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(cs.ConfigError, match="num_experts_per_tok is 2, more than the 1"):
        cs.resize(tmp_path / "moe", set={"num_local_experts": 1})
    cs.resize(tmp_path / "moe", set={"num_local_experts": 1, "num_experts_per_tok": 1})
    with pytest.raises(cs.ConfigError, match="is not the index of an expert"):
        cs.resize(tmp_path / "moe", model_type="llama", expert=-1)


EXPERTS: dict[str, tuple[dict[str, int], str]] = {
    "used": ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 8 experts"),
    "none": ({"num_experts_per_tok": 0}, "num_experts_per_tok=0.? is not a whole number above 0"),
    "groups": ({"n_group": 3}, "n_routed_experts 8 is not a multiple of n_group 3"),
    "experts": ({"n_routed_experts": 7}, "n_routed_experts 7: the router .* divides the experts into 2 groups"),
    "used groups": ({"topk_group": 3}, "topk_group 3 is more than n_group 2"),
    "groups of one": ({"n_group": 8}, "n_routed_experts is 8 and n_group is 8, so each group has one expert"),
    "one in each group": ({"n_routed_experts": 2}, "n_routed_experts is 2 and n_group is 2"),
    "used in groups": (
        {"n_group": 4, "num_experts_per_tok": 3},
        "num_experts_per_tok 3 is more than the 2 experts of the groups that each token uses",
    ),
}


@pytest.mark.parametrize("case", EXPERTS)
def test_numbers_of_experts_have_to_fit_together(case: str, tmp_path: Path) -> None:
    fields, said = EXPERTS[case]
    running.save("deepseek_v3", tmp_path / "in")
    with pytest.raises(cs.ConfigError, match=said):
        cs.resize(tmp_path / "in", set=fields)


@pytest.mark.long
def test_groups_of_one_expert_are_allowed_if_the_network_runs(tmp_path: Path) -> None:
    """A group's score is the largest one in DeepSeek-V2; the other routers add two."""
    fields = {
        "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
        "v_head_dim": 4, "moe_intermediate_size": 8, "first_k_dense_replace": 0, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 2, "topk_method": "group_limited_greedy",
    }  # fmt: skip
    saved(tmp_path / "in", "DeepseekV2ForCausalLM", **fields)
    cs.apply(cs.resize(tmp_path / "in", set={"n_group": 4}), tmp_path / "out")
    assert cs.prove(tmp_path / "out", tmp_path / "out").verdict == "SAME"
    with pytest.raises(cs.ConfigError, match="2 is more than the 1 experts? of the groups that each token uses"):
        cs.resize(tmp_path / "in", set={"n_group": 4, "topk_group": 1})


@pytest.mark.costly
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("kind", ["falcon", "gpt_bigcode"])
def test_a_switch_of_shared_keys_is_one_error_that_says_why(kind: str, value: bool, tmp_path: Path) -> None:
    name, fields = running.NETWORKS[kind]
    config = transformers.CONFIG_MAPPING[kind](
        **{**fields, "new_decoder_architecture": False, "multi_query": not value}
    )
    getattr(transformers, name)(config).save_pretrained(tmp_path / "in")
    with pytest.raises(
        cs.PlanError, match="multi_query cannot be changed: it decides how queries, keys and values share"
    ):
        cs.resize(tmp_path / "in", set={"multi_query": value})


@pytest.mark.parametrize(
    "field",
    [
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
    ],
)
@pytest.mark.parametrize("number", [10**9, 10**30])
def test_a_number_that_no_network_has_is_an_error_at_once(field: str, number: int, made: Path) -> None:
    """The lists of a billion layers did not fit in memory."""
    with pytest.raises(cs.ConfigError, match="is too large: ckpt makes at most"):
        cs.resize(made, set={field: number})


def test_a_table_of_positions_with_a_short_name_is_for_transplant(tmp_path: Path) -> None:
    """GPT-2's is ``wpe``; the field says what it is."""
    folder = saved(tmp_path / "gpt2", "GPT2LMHeadModel", n_positions=8)
    with pytest.raises(cs.PlanError, match=r"how transformer\.wpe\.weight changes with n_positions") as raised:
        cs.resize(folder, set={"n_positions": 16})
    assert raised.value.hint.startswith("ckpt transplant --on-mismatch KEY=positions-1d")


def test_another_type_is_not_a_field(made: Path) -> None:
    with pytest.raises(cs.ConfigError, match="the type of the network is not a field") as raised:
        cs.resize(made, set={"model_type": "qwen3_moe"})
    assert "--as qwen3_moe" in str(raised.value.hint) or "model_type" in str(raised.value.hint)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("fields", "is_said"),
    [
        ({"rms_norm_eps": 0.1}, True),
        ({"hidden_act": "gelu", "initializer_range": 0.1}, True),
        ({"use_cache": False}, False),
    ],
)
def test_outputs_that_may_change_with_the_configuration_alone_are_said(
    fields: dict[str, Any], is_said: bool, made: Path
) -> None:
    notes = cs.resize(made, set=fields).notes
    assert any(note.startswith("no tensor depends on") for note in notes)
    said = f"the outputs may change with {next(iter(fields))} (--prove compares them)"
    assert (said in notes) is is_said
    assert any("the outputs may change with" in note for note in notes) is is_said


@pytest.mark.long
def test_a_field_that_cannot_be_tried_is_not_logged(tmp_path: Path) -> None:
    """Transformers logged it with the whole configuration."""
    running.save("falcon", tmp_path / "in")
    records, handler = list[logging.LogRecord](), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.configuration_utils")
    logger.addHandler(handler)
    try:
        with pytest.raises(cs.PlanError, match="no field for the size of a head"):
            cs.resize(tmp_path / "in", set={"num_attention_heads": 8})
    finally:
        logger.removeHandler(handler)
    assert not records


@pytest.mark.long
def test_gate_and_values_in_one_tensor_of_an_unknown_name_are_not_mixed(tmp_path: Path) -> None:
    config = transformers.JetMoeConfig(
        hidden_size=16, num_hidden_layers=1, num_key_value_heads=2, kv_channels=4, intermediate_size=12,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=30,
    )  # fmt: skip
    transformers.JetMoeForCausalLM(config).save_pretrained(tmp_path / "jetmoe")
    for more in ({"new_channels": "copy"}, {"new_channels": "init"}):
        with pytest.raises(cs.PlanError, match="not known how the channels"):
            cs.resize(tmp_path / "jetmoe", set={"intermediate_size": 18}, **more)
    with pytest.raises(cs.PlanError, match="not known how the channels"):
        cs.resize(tmp_path / "jetmoe", set={"intermediate_size": 6})


def test_weights_that_are_not_finite_choose_nothing(made: Path, tmp_path: Path) -> None:
    weights = load_file(made / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = torch.nan
    (tmp_path / "in").mkdir()
    save_file(weights, tmp_path / "in/model.safetensors", {"format": "pt"})
    (tmp_path / "in/config.json").write_bytes((made / "config.json").read_bytes())
    with pytest.raises(cs.PlanError, match="NaN or infinite"):
        cs.resize(tmp_path / "in", set={"intermediate_size": 12})
    cs.resize(tmp_path / "in", set={"intermediate_size": 12}, keep={"intermediate_size": "0..11"})


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("stored", ["both", "alias"])
def test_a_tied_tensor_that_is_stored_under_its_other_name_is_changed_once(stored: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=30, tie_word_embeddings=True)
    model = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "tied")
    weights = load_file(tmp_path / "tied/model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if stored == "alias":
        del weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "tied/model.safetensors", {"format": "pt"})
    fields = {"hidden_size": 32, "num_attention_heads": 4, "tie_word_embeddings": False}
    cs.apply(cs.resize(tmp_path / "tied", set=fields), tmp_path / "out")
    after = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    cs.apply(cs.resize(tmp_path / "tied", set={"intermediate_size": 30}), tmp_path / "still tied")
    after = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "still tied")
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_tables_that_a_class_computes_may_be_missing(tmp_path: Path) -> None:
    config = transformers.MarianConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=30, pad_token_id=0, eos_token_id=1, forced_eos_token_id=1,
        decoder_start_token_id=0, max_position_embeddings=20,
    )  # fmt: skip
    model = transformers.MarianMTModel(config)
    model.save_pretrained(tmp_path / "marian")
    cs.apply(cs.resize(tmp_path / "marian", set={"encoder_ffn_dim": 30}), tmp_path / "out")
    after, loading = transformers.MarianMTModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    ids = torch.arange(2, 18).reshape(2, 8)
    with torch.no_grad():
        both = [one.eval()(input_ids=ids, decoder_input_ids=ids).logits for one in (model, after)]
    torch.testing.assert_close(*both)
    wider = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "tie_word_embeddings": False}
    plan = cs.resize(tmp_path / "marian", set=wider)
    assert "the outputs may change" in plan.notes[0]  # the table of sines is not the old one repeated
    weights = load_file(tmp_path / "marian/model.safetensors")
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, tmp_path / "marian/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.PlanError, match="does not have"):
        cs.resize(tmp_path / "marian", set=wider)


def test_a_source_that_does_not_exist_is_said_not_to(ckpt: Callable[..., Any]) -> None:
    for words in (["resize", "nothing", "--set", "hidden_size=8"], ["stats", "nothing"]):
        done = ckpt(*words, "-o", "out.safetensors")
        assert done.code == 3
        assert "nothing does not exist" in done.err


def saved(folder: Path, name: str, **fields: Any) -> Path:
    """Save a small network of the class ``name``, and return its folder."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, name).config_class(**{**sizes, "vocab_size": 30, **fields})
    getattr(transformers, name)(config).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_weights_for_each_layer_outside_the_layers_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "esm", "EsmForMaskedLM", pad_token_id=1, mask_token_id=4)
    with pytest.raises(cs.PlanError, match=r"contact_head\.regression\.weight from \(1, 8\) to \(1, 4\)") as raised:
        cs.resize(folder, set={"num_hidden_layers": 1}, layers="first")
    assert "cannot be changed" in raised.value.hint
    assert cs.resize(folder, set={"intermediate_size": 30}).verb == "resize"


@pytest.mark.long
def test_a_tensor_that_only_some_layers_have_is_named_with_them(tmp_path: Path) -> None:
    folder = saved(tmp_path / "neox", "GPTNeoXJapaneseForCausalLM", intermediate_multiple_size=2)
    asked = {"num_hidden_layers": 1}
    with pytest.raises(cs.PlanError, match=r"layer 0 of the output needs attention\.dense_bias") as raised:
        cs.resize(folder, set=asked, layers="first")
    assert "has it in layer 1" in raised.value.hint
    assert cs.resize(folder, set=asked, layers="1").notes[0].endswith("the outputs change")


@pytest.mark.long
def test_the_layers_after_which_a_backbone_returns_features_follow(tmp_path: Path) -> None:
    fields = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 3}
    folder = saved(tmp_path / "beit", "BeitForImageClassification", **fields, out_indices=[1, 3])
    plan = cs.resize(folder, set={"num_hidden_layers": 2}, layers="0,2")
    assert "lists in config.json that changed with the layers: out_features, out_indices" in plan.notes[1]
    cs.apply(plan, tmp_path / "out")
    after = transformers.BeitForImageClassification.from_pretrained(tmp_path / "out").config
    assert (after.out_features, after.out_indices) == (["stage1", "stage2"], [1, 2])
    with pytest.raises(cs.ConfigError, match="returns the features after layer 0"):
        cs.resize(folder, set={"num_hidden_layers": 2}, layers="1..2")
    stages = {"out_indices": [2], "out_features": ["stage2"]}
    cs.resize(folder, set={"num_hidden_layers": 2, **stages}, layers="1..2")
    cs.resize(folder, set={"num_hidden_layers": 6}, layers="identity")


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("fields", "ends"), [
    ({"num_attention_heads": 8}, "the outputs change"), ({"num_key_value_heads": 4}, "(--prove compares them)"),
])  # fmt: skip
def test_heads_that_are_subtracted_in_pairs_do_not_stay_pairs(fields: Any, ends: str, tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0}
    folder = saved(tmp_path / "diffllama", "DiffLlamaForCausalLM", **sizes)
    assert cs.resize(folder, set=fields).notes[0].endswith(ends)


def test_a_hint_in_python_has_the_arguments_of_resize(made: Path) -> None:
    with pytest.raises(cs.ConfigError) as raised:
        cs.resize(made, set={"hidden_size": 32}, layers="first")
    assert str(raised.value).endswith("Set another number of layers with set.")
    with pytest.raises(cs.ConfigError) as raised:
        cs.resize(made, set=[])
    assert str(raised.value).endswith('Write, for example, set="num_hidden_layers=12".')
    assert raised.value.hint == "Write, for example, --set num_hidden_layers=12."


def test_numbers_of_a_layer_that_depend_on_its_place_are_compared(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.DiffLlamaConfig(**sizes, num_key_value_heads=2, vocab_size=30, head_dim=4, pad_token_id=0)
    transformers.DiffLlamaForCausalLM(config).save_pretrained(tmp_path / "diffllama")
    plan = cs.resize(tmp_path / "diffllama", set={"num_hidden_layers": 4}, layers="identity")
    assert "lambda_init" in plan.notes[0]
    assert plan.notes[0].endswith("the outputs change")


def test_what_only_the_first_layer_has_is_not_repeated_and_said_by_its_own_name(tmp_path: Path) -> None:
    fields = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 60}
    transformers.MT5ForConditionalGeneration(transformers.MT5Config(**fields)).save_pretrained(tmp_path / "mt5")
    plan = cs.resize(tmp_path / "mt5", set={"num_layers": 4}, layers="repeat")
    name = "encoder.block.layer.0.SelfAttention.relative_attention_bias.weight"
    assert any(f"tensors that only some layers have are not repeated: {name}" in note for note in plan.notes), (
        plan.notes
    )
    assert not any("resized" in note for note in (*plan.notes, plan.summary()))
    assert not plan.unexpected
    plan = cs.resize(tmp_path / "mt5", set={"num_layers": 4}, layers="interleave")
    assert not plan.unexpected
    plan = cs.resize(tmp_path / "mt5", set={"num_layers": 1}, layers="first")
    assert not any("not repeated" in note for note in plan.notes)


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["codes under the key of the weight", "codes under another key"])
@pytest.mark.parametrize(
    "asked",
    [{"set": {"num_hidden_layers": 2}, "layers": "first"}, {"set": {"hidden_size": 32}}, {"set": {"vocab_size": 40}}],
)
def test_quantised_weights_are_refused_as_such(made: Path, tmp_path: Path, kind: str, asked: dict[str, Any]) -> None:
    """There is no quantization_config, and nothing else says it."""
    folder = tmp_path / "coded"
    shutil.copytree(made, folder)
    assert cs.resize(folder, **asked).verb == "resize"
    state = load_file(folder / "model.safetensors")
    for key in [key for key in state if "mlp" in key]:
        weight = state.pop(key)
        if kind == "codes under another key":
            state |= {f"{key}_packed": torch.zeros(len(weight), weight.shape[1] // 8, dtype=torch.int32)}
            state |= {f"{key}_scale": torch.ones(len(weight), 1), f"{key}_shape": torch.tensor(weight.shape)}
        else:
            state |= {key: weight.to(torch.float8_e4m3fn), key.replace("weight", "scale_weight"): torch.ones(())}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(cs.PlanError, match=r"is quantised \(.*\): a change of its size would use its codes") as raised:
        cs.resize(folder, **asked)
    assert "ckpt convert --dequantize" in raised.value.hint
    assert ".resized." not in raised.value.message


@pytest.mark.costly
@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize("type", [None, "q8_0"])
def test_a_gguf_file_is_refused_with_the_command_that_helps(tmp_path: Path, type: str | None, has_config: bool) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(**sizes, vocab_size=64)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    path, there = tmp_path / "a llama.gguf", tmp_path / "llama" / "config.json"
    cs.apply(cs.convert(tmp_path / "llama", layout="gguf", gguf_type=type), path)
    if has_config:
        shutil.copy(there, tmp_path)
    with pytest.raises(cs.PlanError, match="has the names and layout of llama.cpp") as raised:
        cs.resize(path, set={"intermediate_size": 128})
    option = " --dequantize" if type else ""
    assert f"ckpt convert '{path}'{option} --layout transformers -o plain/" in raised.value.hint
    cs.apply(cs.convert(path, dequantize=bool(type), layout="transformers"), tmp_path / "plain")
    assert not cs.resize(tmp_path / "plain", set={"intermediate_size": 128}, config=there).unexpected


def test_a_number_that_changed_with_the_layers_is_not_called_a_list(tmp_path: Path) -> None:
    running.save("deepseek_v3", tmp_path / "in")
    notes = cs.resize(tmp_path / "in", set={"num_hidden_layers": 4}, layers="identity").notes
    assert "number in config.json that changed with the layers: first_k_dense_replace" in notes
    assert not [note for note in notes if note.startswith("list")]


def test_an_error_of_a_configuration_class_ends_with_one_full_stop(tmp_path: Path) -> None:
    running.save("llama", tmp_path / "in")
    with pytest.raises(cs.CheckpointError, match="refuses the fields") as raised:
        cs.resize(tmp_path / "in", set={"num_attention_heads": 12})
    assert raised.value.message.endswith(("12).", "heads."))


@pytest.mark.parametrize(("declared", "wanted"), [(3, 6), (3, 2), (6, 2)])
def test_another_number_of_experts_than_config_json_says_is_an_error(
    declared: int, wanted: int, tmp_path: Path
) -> None:
    running.save("mixtral", tmp_path / "in")
    path = tmp_path / "in/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_local_experts": declared}))
    with pytest.raises(cs.PlanError, match=r"does not fit its configuration: it has other shapes.*experts"):
        cs.resize(tmp_path / "in", set={"num_local_experts": wanted})


@pytest.mark.parametrize("number", [2, 8])
def test_a_source_that_lacks_an_expert_is_an_error_that_names_it(number: int, tmp_path: Path) -> None:
    running.save("mixtral", tmp_path / "in")
    path = tmp_path / "in/model.safetensors"
    tensors = load_file(path)
    rest = {key: one for key, one in tensors.items() if ".1." not in key[:16] or ".experts.3." not in key}
    assert len(rest) == len(tensors) - 3
    save_file(rest, path, {"format": "pt"})
    with pytest.raises(cs.PlanError, match=r"incomplete: model\.layers\.1\..*experts lacks expert 3, which the other"):
        cs.resize(tmp_path / "in", set={"num_local_experts": number})


@pytest.mark.parametrize(
    ("field", "value", "said", "hint"),
    [
        ("hidden_act", "nosuch", "does not know the value 'nosuch' of hidden_act", "Known values: gelu, gelu_10, "),
        ("hidden_act", "sillu", "of hidden_act", "Did you mean silu?"),
        ("rope_parameters", {"rope_type": "nosuch", "rope_theta": 1e4}, "of rope_parameters.rope_type", "default, dyn"),
    ],
)
def test_a_value_that_the_class_does_not_know_is_named(
    field: str, value: Any, said: str, hint: str, made: Path
) -> None:
    """It was ``KeyError: 'nosuch'``."""
    with pytest.raises(cs.ConfigError, match=said) as caught:
        cs.resize(made, set={field: value})
    assert hint in str(caught.value.hint)
