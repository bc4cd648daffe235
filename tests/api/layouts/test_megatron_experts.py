"""Megatron-core's decoders with experts: the forms in which it stores them, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
NETWORKS = {"mixtral": "6/2", "qwen-moe.qwen2": "8/2", "qwen-moe.qwen3": "8/2"}
"""The networks, and their numbers of heads."""
LAYER, EXPERTS = "decoder.layers.0.", "decoder.layers.0.mlp.experts."


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording; Mixtral has 12 experts."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def found(tensors: Tensors) -> list[tuple[str, str]]:
    """The families and layouts that are recognised."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, "found.safetensors")
    return [(one.family, one.layout) for one in cs.layouts("found.safetensors").found]


def test_experts_are_in_the_order_of_their_numbers() -> None:
    grouped, stacked = recorded("mixtral", "megatron"), recorded("mixtral", "megatron-dist")
    for number in (2, 10):
        key = f"{EXPERTS}linear_fc2.weight{number}"
        assert torch.equal(grouped[key], stacked["decoder.layers.mlp.experts.experts.linear_fc2.weight"][0, number])
        plain = converted(grouped, "transformers", heads="6/2")
        assert torch.equal(plain[f"model.layers.0.block_sparse_moe.experts.{number}.w2.weight"], grouped[key])


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["megatron-dist", "megatron-local-dist"])
@pytest.mark.parametrize("network", NETWORKS)
def test_layers_of_a_distributed_checkpoint_may_be_single(network: str, layout: str) -> None:
    """As Megatron stores them if the settings say for each layer whether it has experts."""
    single = {}
    for key, value in recorded(network, layout).items():
        layers = enumerate(value) if key.startswith("decoder.layers.") else ()
        single |= {key.replace("decoder.layers.", f"decoder.layers.{n}."): part for n, part in layers} or {key: value}
    assert found(single) == [(network.partition(".")[0], layout)]
    made = converted(single, "transformers", heads=NETWORKS[network])
    assert_same(made, recorded(network, "transformers"))
    assert_same(converted(single, "megatron", heads=NETWORKS[network]), recorded(network, "megatron"))


@pytest.mark.costly
@pytest.mark.parametrize("network", NETWORKS)
def test_experts_of_transformer_engine_may_be_single(network: str) -> None:
    """As Megatron-Bridge has them for quantising."""
    single = {
        re.sub(r"experts\.(linear_fc.)\.weight(\d+)$", r"experts.local_experts.\2.\1.weight", key): value
        for key, value in recorded(network, "megatron").items()
    }
    assert found(single) == [(network.partition(".")[0], "megatron")]
    assert_same(converted(single, "transformers", heads=NETWORKS[network]), recorded(network, "transformers"))


@pytest.mark.parametrize("layout", ["megatron", "megatron-local", "megatron-dist"])
def test_heads_that_do_not_fit_are_an_error(layout: str) -> None:
    with pytest.raises(PlanError, match="do not fit 8 heads of queries and 4 of keys"):
        converted(recorded("qwen-moe.qwen2", layout), "transformers", heads="8/4")
    with pytest.raises(PlanError, match="is not known"):
        converted(recorded("qwen-moe.qwen2", layout), "transformers")
    assert_same(
        converted(recorded("qwen-moe.qwen3", layout), "transformers"), recorded("qwen-moe.qwen3", "transformers")
    )


@pytest.mark.parametrize("lost", ["linear_fc1.weight7", "linear_fc2.weight0", "router"])
def test_an_incomplete_layer_is_an_error(lost: str) -> None:
    tensors = recorded("mixtral", "megatron")
    key = LAYER.replace("0", "1") + ("mlp.router.weight" if lost == "router" else f"mlp.experts.{lost}")
    del tensors[key]
    with pytest.raises(PlanError, match=f"{re.escape(key)} is missing from before.safetensors"):
        converted(tensors, "transformers", heads="6/2")


def test_what_the_family_lacks_is_an_error() -> None:
    """A bias of the router, which balances the experts, and a norm of layers without experts."""
    tensors = recorded("mixtral", "megatron")
    for extra in ("mlp.router.expert_bias", "mlp.linear_fc1.layer_norm_weight"):
        odd = {f"decoder.layers.{n}.{extra}": torch.ones(12) for n in range(2)}
        with pytest.raises(PlanError, match=f"of the family mixtral: {re.escape(LAYER + extra)}"):
            converted({**tensors, **odd}, "transformers", heads="6/2")


def test_layers_without_experts_keep_their_mlp() -> None:
    tensors = recorded("qwen-moe", "megatron-local")
    assert "decoder.layers.1.mlp.linear_fc1.weight" in tensors
    assert_same(converted(tensors, "transformers"), recorded("qwen-moe", "transformers"))
    lost = "decoder.layers.2.mlp.experts.local_experts.3.linear_fc1.weight"
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing"):
        converted({key: value for key, value in tensors.items() if key != lost}, "transformers")


def swapped(tensors: Tensors) -> Tensors:
    """The same with layers 0 and 1 in each other's place, so that the first layer has no experts."""
    other = {".layers.0.": ".layers.1.", ".layers.1.": ".layers.0."}
    return {re.sub(r"\.layers\.[01]\.", lambda found: other[found[0]], key): one for key, one in tensors.items()}


@pytest.mark.long
@pytest.mark.parametrize("layout", ["megatron", "megatron-local", "megatron-dist", "megatron-local-dist", "stacked"])
def test_the_first_layer_may_have_no_experts(layout: str) -> None:
    plain, theirs = swapped(recorded("qwen-moe", "transformers")), swapped(recorded("qwen-moe", layout))
    assert found(theirs) == [("qwen-moe", layout)]
    assert found(plain) == [("qwen-moe", "transformers")]
    assert_same(converted(plain, layout, heads="6/2"), theirs)
    assert_same(converted(theirs, "transformers", heads="6/2"), plain)


def test_single_experts_of_transformer_engine_beside_layers_without() -> None:
    single = {
        re.sub(r"experts\.(linear_fc.)\.weight(\d+)$", r"experts.local_experts.\2.\1.weight", key): value
        for key, value in recorded("qwen-moe", "megatron").items()
    }
    assert_same(converted(single, "megatron-local", heads="6/2"), recorded("qwen-moe", "megatron-local"))


@pytest.mark.parametrize(
    ("layout", "lost"),
    [
        ("megatron", "decoder.layers.1.mlp.linear_fc1.layer_norm_weight"),
        ("megatron", "decoder.layers.2.pre_mlp_layernorm.weight"),
        ("megatron-local", "decoder.layers.1.pre_mlp_layernorm.weight"),
        ("megatron-dist", "decoder.layers.2.mlp.experts.experts.linear_fc1.weight"),
        ("stacked", "model.layers.2.mlp.experts.down_proj"),
        ("transformers", "model.layers.1.post_attention_layernorm.weight"),
    ],
)
def test_an_incomplete_layer_among_layers_without_experts_is_an_error(layout: str, lost: str) -> None:
    tensors = recorded("qwen-moe", layout)
    del tensors[lost]
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing from before.safetensors"):
        converted(tensors, "megatron" if layout == "transformers" else "transformers", heads="6/2")


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        ("transformers", r"\.experts\.{}\."),
        ("mistral", r"\.experts\.{}\."),
        ("megatron", r"\.weight{}$"),
        ("megatron-local", r"\.local_experts\.{}\."),
    ],
)
@pytest.mark.parametrize("expert", [5, 11])
def test_an_expert_that_all_layers_lack_is_an_error(layout: str, pattern: str, expert: int) -> None:
    """The router has a row for each expert: the network would choose one without weights, or none at all."""
    tensors = recorded("mixtral", layout)
    less = {key: one for key, one in tensors.items() if not re.search(pattern.format(expert), key)}
    assert len(less) < len(tensors)
    with pytest.raises(PlanError, match=f"is for 12 experts, but expert {expert} has no weights"):
        converted(less, "transformers" if layout != "transformers" else "mistral", heads="6/2")


@pytest.mark.parametrize(("network", "layout"), [("mixtral", "stacked"), ("qwen-moe.qwen3", "megatron-dist")])
def test_stacks_of_other_experts_than_the_router_has_rows_are_an_error(network: str, layout: str) -> None:
    tensors = recorded(network, layout)
    for size in (1, -1):
        cut = {
            key: (one.narrow(one.dim() - 3, 0, one.shape[-3] - 1) if size > 0 else torch.cat([one, one], -3))
            if "experts" in key and one.dim() > 2
            else one
            for key, one in tensors.items()
        }
        with pytest.raises(PlanError, match=r"is for \d+ experts, but (expert \d+ has no weights|there are \d+)"):
            converted(cut, "transformers", heads=NETWORKS[network])
