"""Layers keep their kind if their position changes, also in models whose class derives the kind from the position."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.apply import check_output
from ckptsurgeon.api.model_folder.layers.derived_kinds import LayerKinds
from ckptsurgeon.api.model_folder.layers.renumbered import RenumberedConfig, not_by_layer, with_layers
from ckptsurgeon.planning.merge.layers import LayerList

from ...helpers.transformers_models import quiet

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DEPTH = 10
ORDERS = ([0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9], [*range(1, DEPTH)], [*range(7)], [0, 0, 1, 1, 2, 2, 3, 3, 9])
LISTS = (
    "layer_types", "no_rope_layers", "mlp_layer_types", "layers_block_type", "indexer_types", "layer_rope_theta",
    "layers_num_experts", "attention_layers", "activation_sparsity_pattern",
)  # fmt: skip
INDICES = (
    "moe_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers", "global_attn_indexes",
    "rope_scaling_layers",
)  # fmt: skip
WINDOW = {"use_sliding_window": True, "max_window_layers": 4}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    **{kind: [WINDOW] for kind in ("qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text")},
    "qwen2_moe": [{**WINDOW, "max_window_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3]}],
    "dots1": [{"max_window_layers": 4}],
    "cohere2": [{"sliding_window_pattern": 3}],
    "cohere2_moe": [{"first_k_dense_replace": 2}],
    "gemma3_text": [{"sliding_window_pattern": 3}],
    "exaone4": [{"sliding_window_pattern": 3}, {"sliding_window": None}],
    "modernbert": [{"global_attn_every_n_layers": 4}],
    "lfm2": [{"full_attn_idxs": [2, 5]}],
    "llama4_text": [{"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3}],
    "smollm3": [{"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 3}],
    "jamba": [{"attn_layer_period": 4, "attn_layer_offset": 2}],
    "bamba": [{"attn_layer_indices": [2, 6]}],
    "qwen3_next": [{"full_attention_interval": 3}],
    "mllama_text_model": [{"cross_attention_layers": [1, 4]}],
    "inkling_text": [{"local_layer_ids": [0, 1, 4], "dense_mlp_idx": 2}],
    "step3p5": [{"moe_layers_enum": "1,4,5"}],
    "glm_moe_dsa": [{"index_topk_freq": 3}],
    "kimi_linear": [{"linear_attn_config": {"full_attn_layers": [2, 5, 9], "kda_layers": [1, 3, 4, 6, 7, 8, 10]}}],
    "axk1": [{"first_k_dense_replace": 2, "moe_layer_freq": 2}],
    "gpt_neo": [
        {"attention_types": [[["global", "local"], 5]]},
        {"attention_types": [[["global", "local", "local"], 3], [["global"], 1]]},
    ],
    "minimax_m3_vl_text": [
        {"moe_layer_freq": [0, 0, 1, 1, 1] * 2, "sparse_attention_config": {"sparse_attention_freq": [0, 1] * 5}}
    ],
}
"""Settings that the class of a model type derives kinds from, in place of its defaults."""


def classes() -> dict[str, Any]:
    """Return the classes of configurations by model type, also those that are only nested in others."""
    transformers = pytest.importorskip("transformers")
    quiet()
    found = {}
    for made_by in (transformers.CONFIG_MAPPING[name] for name in transformers.CONFIG_MAPPING):
        found[made_by.model_type] = made_by
        try:
            nested = [type(one) for one in vars(made_by()).values() if isinstance(one, transformers.PretrainedConfig)]
        except Exception:  # some classes need arguments or other libraries
            continue
        for one in nested:
            found.setdefault(one.model_type, one)
    return found


def kinds(config: Any, depth: int) -> dict[str, list[Any]]:
    """Return what a configuration of transformers says of each layer."""
    lists = {name: getattr(config, name, None) for name in LISTS}
    found = {name: list(one) for name, one in lists.items() if isinstance(one, (list, tuple)) and len(one) == depth}
    for name in INDICES:
        if isinstance(there := getattr(config, name, None), (list, tuple)):
            found[name] = [one in there for one in range(depth)]
    return found


def loaded(made_by: Any, fields: Mapping[str, Any]) -> Any:
    return made_by.from_dict(json.loads(json.dumps(fields)))


def renumbered(fields: Mapping[str, Any], order: Sequence[int]) -> tuple[RenumberedConfig, list[str]]:
    layers = LayerList("model.layers", DEPTH)
    why = not_by_layer(fields, layers, [], 0, is_moved=order != [*range(len(order))])
    return with_layers(fields, layers, [(fields, one) for one in order]), list(why)


def described(made_by: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Yield configurations of a model type with ten layers, as they are on the hub."""
    for settings in ({}, *SETTINGS.get(kind, ())):
        for name in ("num_hidden_layers", "num_layers"):
            fields = {"model_type": kind, name: DEPTH, **settings}
            try:
                if getattr(loaded(made_by, fields), name) == DEPTH:
                    yield fields
                    break
            except Exception:  # the defaults of some classes contradict ten layers
                continue


@pytest.mark.long
def test_layers_keep_their_kinds_in_every_class_of_transformers() -> None:
    """Each class derives the same kinds from the new configuration, or the plan says which it does not."""
    found = set()
    for kind, made_by in classes().items():
        for fields in described(made_by, kind):
            before = kinds(loaded(made_by, fields), DEPTH)
            if all(len({*map(str, one)}) < 2 for one in before.values()):
                continue
            found.add(kind)
            for order in ORDERS:
                made, why = renumbered(fields, order)
                after = kinds(loaded(made_by, made.fields), len(order))
                wanted = {name: [one[at] for at in order] for name, one in before.items()}
                if not made.faults:
                    assert {name: after.get(name) for name in wanted} == wanted, (kind, order, made)
                assert not why, (kind, why)
    assert len(found) > 60


SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "num_experts": 2, "n_routed_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_num_experts": 2, "moe_k": 1, "n_group": 1, "topk_group": 1,
    "num_hidden_layers": DEPTH,
}  # fmt: skip
EXPERTS: dict[str, list[dict[str, Any]]] = {
    "deepseek_v2": [{"first_k_dense_replace": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4}],
    "deepseek_v3": [{}, {"first_k_dense_replace": 1}],
    "glm4_moe": [{}],
    "qwen2_moe": [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0, 4]}],
    "qwen3_moe": [{"decoder_sparse_step": 3}, {"mlp_only_layers": [0]}],
    "afmoe": [{"num_dense_layers": 3}],
    "lfm2_moe": [{"layer_types": ["conv", FULL] * 5}],
    "ernie4_5_moe": [{}, {"moe_layer_interval": 2, "moe_layer_start_index": 3, "moe_layer_end_index": 8}],
    "jamba": [{"use_mamba_kernels": False}, {"expert_layer_period": 1, "expert_layer_offset": 0}],
}


def layers_of(fields: Mapping[str, Any]) -> list[set[tuple[str, tuple[int, ...]]]]:
    """Return the names and shapes in each layer of the model that transformers makes of a configuration."""
    transformers = pytest.importorskip("transformers")
    quiet()
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(loaded(transformers.CONFIG_MAPPING[fields["model_type"]], fields))
    return [{(key, tuple(one.shape)) for key, one in layer.state_dict().items()} for layer in model.layers]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "settings"), [(kind, one) for kind, more in EXPERTS.items() for one in more])
def test_layers_keep_their_experts(kind: str, settings: dict[str, Any]) -> None:
    fields = {**SMALL, "model_type": kind, **settings}
    before = layers_of(fields)
    assert len({*map(frozenset, before)}) > 1
    for order in ORDERS:
        made, why = renumbered(fields, order)
        assert not why
        if not made.faults:
            assert layers_of(made.fields) == [before[one] for one in order], made
        else:
            assert layers_of(made.fields) != [before[one] for one in order]


# Merges, filters and transplants.


def model(name: str, depth: int = 4, prefix: str = "model.layers", **config: Any) -> None:
    Path(name).mkdir()
    state = {f"{prefix}.{at}.self_attn.q_proj.weight": torch.full((4, 4), float(at)) for at in range(depth)}
    save_file({**state, "model.norm.weight": torch.ones(4)}, f"{name}/model.safetensors")
    fields = {"model_type": "gemma2", "num_hidden_layers": depth, "hidden_size": 4, **config}
    Path(name, "config.json").write_text(json.dumps(fields))


def stacked(*ranges: tuple[str, list[int]]) -> tuple[dict[str, Any], list[str]]:
    slices = [{"sources": [{"model": name, "layer_range": one}]} for name, one in ranges]
    Path("r.yaml").write_text(json.dumps({"slices": slices, "merge_method": "passthrough"}))
    plan = cs.merge("r.yaml")
    cs.apply(plan, "out/")
    notes = [one for one in plan.notes if "kind" in one or "config.json now" in one]
    return json.loads(Path("out/config.json").read_text()), notes


def test_a_stack_states_the_kind_of_each_layer() -> None:
    model("m")
    config, notes = stacked(("m", [0, 3]), ("m", [0, 4]))
    assert config["layer_types"] == [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL]
    assert notes == ["config.json now sets layer_types, so that each layer keeps its kind"]


def test_a_stack_in_which_positions_still_say_the_kinds_is_left() -> None:
    model("m")
    config, notes = stacked(("m", [0, 2]), ("m", [0, 4]))
    assert "layer_types" not in config
    assert notes == []


def test_layers_of_two_models_keep_the_kinds_of_each() -> None:
    model("m")
    model("n", layer_types=[FULL, FULL, SLIDING, SLIDING])
    config, _ = stacked(("m", [0, 2]), ("n", [0, 4]), ("m", [1, 2]))
    assert config["layer_types"] == [SLIDING, FULL, FULL, FULL, SLIDING, SLIDING, FULL]


def test_a_nested_configuration_without_a_type_is_of_the_outer_type() -> None:
    inner = {"num_hidden_layers": 4, "hidden_size": 4, "sliding_window_pattern": 2}
    model("m", model_type="gemma3", text_config=inner, num_hidden_layers=None)
    config, _ = stacked(("m", [1, 4]))
    assert config["text_config"]["layer_types"] == [FULL, SLIDING, FULL]
    assert "layer_types" not in config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1},
            "layers 2, 4 run as mamba, not attention (attn_layer_period); layer 3 runs as attention, not mamba "
            "(attn_layer_period)",
        ),
        (
            {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
            "layer 2 runs as 1/3, not 1/2 (scale_attn_by_inverse_layer_idx); layer 3 runs as 1/4, not 1/3 "
            "(scale_attn_by_inverse_layer_idx); layer 4 runs as 1/5, not 1/4 (scale_attn_by_inverse_layer_idx)",
        ),
        (
            {"model_type": "diffllama"},
            "layer 2 runs as 0.470713, not 0.355509 (lambda_init); layer 3 runs as 0.556058, not 0.470713 "
            "(lambda_init); layer 4 runs as 0.619283, not 0.556058 (lambda_init)",
        ),
        (
            {"model_type": "minimax", "layer_types": [FULL, LINEAR, FULL, FULL]},
            "layer 1 runs as decay 1/4, not decay 1/3 (slope_rate); layer 2 runs as decay 2/4, not decay 1/3 (slope_rate)",
        ),
        (
            {"model_type": "minimax"},
            "layer 1 runs as decay 1/4, not decay 1/3 (slope_rate); layer 2 runs as decay 2/4, not decay 1/3 "
            "(slope_rate); layer 4 runs as decay 4/4, not decay 3/3 (slope_rate)",
        ),
        ({"model_type": "esmc"}, "layers 0, 1, 2, 3, 4 run as 1/sqrt(5/36), not 1/sqrt(4/36) (residual scale)"),
        (
            {"model_type": "beam"},
            "layer 2 runs as 1/sqrt(6), not 1/sqrt(4) (residual scale); layer 3 runs as 1/sqrt(8), not 1/sqrt(6) "
            "(residual scale); layer 4 runs as 1/sqrt(10), not 1/sqrt(8) (residual scale)",
        ),
        (
            {"model_type": "inkling2_text", "n_layers_per_attn_res_block": 3},
            "layer 3 runs as the first of a block, not inside a block (n_layers_per_attn_res_block); layer 4 runs as "
            "inside a block, not the first of a block (n_layers_per_attn_res_block)",
        ),
        (
            {"model_type": "gemma4_text", "layer_types": [FULL, SLIDING, FULL, FULL]},
            "layer 4 runs as full_attention, not sliding_attention (layer_types)",
        ),
        (
            {"model_type": "net", "layer_kinds": ["a", "b", "a", "b"]},
            "its layer_kinds still has values for all 4 layers",
        ),
    ],
)
def test_no_folder_is_written_whose_configuration_contradicts_its_layers(fields: dict[str, Any], said: str) -> None:
    model("m", **fields)
    ends = ([0, 3], [0, 2]) if fields["model_type"] == "gemma4_text" else ([0, 2], [1, 4])
    slices = [{"sources": [{"model": "m", "layer_range": one}]} for one in ends]
    Path("r.yaml").write_text(json.dumps({"slices": slices, "merge_method": "passthrough"}))
    with pytest.raises(cs.PlanError) as error:
        cs.apply(cs.merge("r.yaml"), "out/")
    assert error.value.message == f"config.json cannot describe the layers of the output: {said}."
    assert "-o NAME.safetensors" in str(error.value.hint)
    assert not Path("out").exists()
    plan = cs.merge("r.yaml")
    with pytest.raises(cs.PlanError):
        check_output("out/", plan=cs.Plan.from_json(plan.to_json()))
    cs.apply(plan, "out.safetensors")
    assert len(cs.open_checkpoint("out.safetensors")) == 6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model_type": "net", "window_pattern": 2},
            "config.json is changed, but a field could not be adapted: window_pattern may set the kind of each layer by its index, and indices have changed",
        ),
        ({"model_type": "net", "window_pattern": 1}, ""),
        ({"model_type": "llama"}, ""),
    ],
)
def test_a_kind_that_may_follow_from_the_position_is_said(fields: dict[str, Any], said: str) -> None:
    model("m", **fields)
    _, notes = stacked(("m", [0, 2]), ("m", [1, 4]))
    assert notes == ([said] if said else [])


def test_layers_that_share_keys_and_values_are_counted_anew() -> None:
    model("m", model_type="net", num_kv_shared_layers=2)
    config, notes = stacked(("m", [0, 3]))
    assert (config["num_hidden_layers"], config["num_kv_shared_layers"]) == (3, 1)
    assert any("num_kv_shared_layers" in note for note in notes)


def test_a_number_of_two_lists_does_not_describe_one_of_them_alone() -> None:
    model("m", model_type="net")
    towers = {f"tower.blocks.{at}.fc.weight": torch.ones(4, 4) for at in range(4)}
    save_file({**load_file("m/model.safetensors"), **towers}, "m/model.safetensors")
    slices = [{"sources": [{"model": "m", "layer_range": one}]} for one in ([0, 2], [1, 4])]
    Path("r.yaml").write_text(json.dumps({"slices": slices, "merge_method": "passthrough", "layers": "model.layers"}))
    with pytest.raises(cs.PlanError, match="its num_hidden_layers is also the number of layers of tower.blocks"):
        cs.apply(cs.merge("r.yaml"), "out/")
    cs.apply(cs.merge("r.yaml"), "out.safetensors")


@pytest.mark.parametrize("ranges", [([0, 4], [0, 4]), ([0, 4],), ([0, 2],)])
def test_whole_periods_of_layers_keep_their_kinds(ranges: Sequence[list[int]]) -> None:
    model("m", model_type="jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=1)
    config, notes = stacked(*(("m", one) for one in ranges))
    assert config["num_hidden_layers"] == sum(end - begin for begin, end in ranges)
    assert notes == []


NEO = {
    "model_type": "gpt_neo",
    "num_hidden_layers": None,
    "num_layers": 4,
    "attention_types": [[["global", "local"], 2]],
}


@pytest.mark.parametrize(("left", "types"), [(2, [[["global", "local"], 1]]), (3, 3)])
def test_gpt_neo_states_the_layers_that_are_left(left: int, types: Any) -> None:
    model("m", prefix="transformer.h", **NEO)
    cs.apply(cs.filter("m", exclude=f"transformer.h.{{{left}..3}}"), "out/")
    config = json.loads(Path("out/config.json").read_text())
    of_each = [kind for kinds, times in config["attention_types"] for _ in range(times) for kind in kinds]
    assert (config["num_layers"], of_each) == (left, ["global", "local", "global"][:left])
    assert types in (config["attention_types"], len(of_each))


@pytest.mark.parametrize(
    ("field", "given", "wanted"),
    [
        ("hybrid_override_pattern", "M-M*M-", "M-M*M"),
        ("layers_block_type", ["mamba", "moe"] * 3, ["mamba", "moe", "mamba", "moe", "mamba"]),
        ("per_layer_config", {"1": {"x": 1}, "5": {"x": 2}}, {"1": {"x": 1}}),
        ("per_layer_config", {"5": {"x": 2}}, {}),
    ],
    ids=str,
)
def test_a_field_whose_own_length_says_the_number_of_layers_is_shortened(field: str, given: Any, wanted: Any) -> None:
    """NemotronHConfig takes the number of layers from the pattern, and settings of a missing layer are refused."""
    model("m", 6, model_type="nemotron_h", **{field: given})
    cs.apply(cs.filter("m", exclude="model.layers.5"), "out/")
    config = json.loads(Path("out/config.json").read_text())
    assert (config["num_hidden_layers"], config[field]) == (5, wanted)


def test_layers_whose_kinds_follow_from_the_end_are_stated_when_the_last_are_left_out() -> None:
    model("m", 8, model_type="muse_glimmer_text")
    plan = cs.filter("m", exclude="model.layers.{6..7}")
    cs.apply(plan, "out/")
    config = json.loads(Path("out/config.json").read_text())
    assert config["layer_types"] == [SLIDING, SLIDING, SLIDING, FULL, SLIDING, SLIDING]
    assert any("now sets layer_types, layer_rope_theta" in one for one in plan.notes)


def test_layers_are_not_left_out_of_a_folder_if_the_others_would_change_their_kinds() -> None:
    model("m", model_type="gemma4_text", sliding_window_pattern=6)
    plan = cs.filter("m", exclude="model.layers.3")
    assert any("layer 2 runs as full_attention, not sliding_attention (layer_types)" in one for one in plan.notes)
    with pytest.raises(
        cs.PlanError, match="config.json cannot describe the layers of the output: layer 2 runs as full"
    ):
        cs.apply(plan, "out/")
    assert not Path("out").exists()
    cs.apply(cs.filter("m", exclude="model.layers.3"), "out.safetensors")


@pytest.mark.parametrize(("shift", "is_said"), [(1, True), (2, False), (0, False)])
def test_a_transplant_into_layers_of_another_kind_is_said(shift: int, is_said: bool) -> None:
    model("m", 4)
    model("n", 6)
    rules = {f"model.layers.{one}": f"model.layers.{one + shift}" for one in range(4)}
    plan = cs.transplant("m", "n", map=rules)
    notes = [one for one in plan.notes if "a different kind (of attention, for example) in the output" in one]
    assert len(notes) == is_said
    for note in notes:
        assert note.startswith(
            "some layers have a different kind (of attention, for example) in the output than in m: layers 1, 3 run as full_attention"
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt_neo", "num_layers": 4, "num_hidden_layers": None, "attention_types": 7},
        {"model_type": "jamba", "attn_layer_offset": "x"},
        {"model_type": "recurrent_gemma", "block_types": []},
        {"model_type": "lfm2", "full_attn_idxs": 3},
        {"model_type": "muse_spark_text", "rope_parameters": 3},
        {"hybrid_override_pattern": 3, "per_layer_config": [1], "num_kv_shared_layers": "x"},
    ],
    ids=str,
)
def test_fields_of_other_types_are_left(fields: dict[str, Any]) -> None:
    model("m", **fields)
    config, _ = stacked(("m", [1, 4]))
    assert {**config, "num_layers": 0, "num_hidden_layers": 0, "dtype": ""}.keys() >= fields.keys()


@pytest.mark.parametrize("number", [10**9, 10**30], ids=["billion", "beyond"])
@pytest.mark.parametrize("fields", [{}, {"per_layer_config": [1]}, {"num_kv_shared_layers": 1}], ids=str)
def test_no_list_is_made_for_an_implausible_number_of_layers(number: int, fields: dict[str, Any]) -> None:
    model("m")
    model("n", num_hidden_layers=number, **fields)
    for plan in (cs.average(["m", "n"]), cs.average(["n", "m"]), cs.filter("n", exclude="model.layers.3")):
        assert not any("a different kind" in one for one in plan.notes)
    one = LayerKinds("layer_types", ("layer_types",), lambda _, number: [FULL] * number, lambda _: ())
    assert one.of({}, number) == []


def test_a_rule_that_overflows_gives_no_kinds() -> None:
    assert LayerKinds("of", (), lambda _, number: [FULL] * 10**30, lambda _: ()).of({}, 3) == []
