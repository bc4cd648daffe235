"""Match with values: what one network became in another checkpoint; the file that is written makes the same tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.match.proposal import Proposal

Tensors = dict[str, torch.Tensor]
LAYERS, HEADS, GROUPS, SIZE = 3, 6, 2, 8
WIDTH, KEYS, HIDDEN = HEADS * SIZE, GROUPS * SIZE, 40


def network(*, kv: int = KEYS, biases: bool = True) -> Tensors:
    """A transformer with separate projections, in the names of transformers' Llama."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    found = {"model.embed_tokens.weight": random(50, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    for n in range(LAYERS):
        at = f"model.layers.{n}"
        for name, rows in (("q", WIDTH), ("k", kv), ("v", kv)):
            found[f"{at}.self_attn.{name}_proj.weight"] = random(rows, WIDTH)
            if biases:
                found[f"{at}.self_attn.{name}_proj.bias"] = random(rows)
        found[f"{at}.self_attn.o_proj.weight"] = random(WIDTH, WIDTH)
        found[f"{at}.mlp.gate_proj.weight"], found[f"{at}.mlp.up_proj.weight"] = (random(HIDDEN, WIDTH) for _ in "gu")
        found[f"{at}.mlp.down_proj.weight"] = random(WIDTH, HIDDEN)
        found |= {f"{at}.{norm}.weight": torch.ones(WIDTH) for norm in ("input_layernorm", "post_attention_layernorm")}
    return found


def each_layer(tensors: Tensors, change: Callable[[Tensors, str], None]) -> Tensors:
    """The tensors after ``change``, which takes those of a layer out and puts others in."""
    made = {key: tensor for key, tensor in tensors.items() if ".layers." not in key}
    for n in range(LAYERS):
        at = f"model.layers.{n}."
        layer = {key[len(at) :]: tensor for key, tensor in tensors.items() if key.startswith(at)}
        change(layer, f"h.{n}.")
        made |= {f"h.{n}.{key}": tensor for key, tensor in layer.items()}
    return made


def parts(layer: Tensors, leaf: str) -> list[torch.Tensor]:
    return [layer.pop(f"self_attn.{name}_proj.{leaf}") for name in "qkv"]


def check(here: Tensors, there: Tensors, **given: object) -> Proposal:
    """Assert that the written file makes ``there`` of ``here``, bit for bit; return the proposal."""
    save_file({key: tensor.contiguous() for key, tensor in here.items()}, "here.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in there.items()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True, output="moved.yaml", force=True)
    assert found.complete, (found, found.notes, found.missing)
    cs.apply("moved.yaml", "out.safetensors", force=True)
    same(load_file("out.safetensors"), there)
    return found


def same(made: Tensors, wanted: Tensors) -> None:
    assert made.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert made[key].dtype == tensor.dtype, key
        assert torch.equal(made[key], tensor), key


def both(here: Tensors, there: Tensors) -> tuple[Proposal, Proposal]:
    return check(here, there), check(there, here)


def rows(found: Proposal) -> list[dict[str, object]]:
    return [dict(one.row) for one in sorted(found.operations, key=lambda one: str(one.row))]


def neox(layer: Tensors, at: str) -> None:
    for leaf in ("weight", "bias"):
        q, k, v = (one.view(HEADS, SIZE, *one.shape[1:]) for one in parts(layer, leaf))
        layer[f"attention.query_key_value.{leaf}"] = torch.cat((q, k, v), 1).flatten(0, 1)


def test_queries_keys_and_values_of_each_head_together_as_in_gpt_neox_and_bloom() -> None:
    here = network(kv=WIDTH)
    found, back = both(each_layer(here, neox), here)
    assert rows(found)[0]["groups"] == HEADS
    assert len(found.operations) == len(back.operations) == 1
    assert set(found.agreed.values()) == {"bits"}


def megatron(layer: Tensors, at: str) -> None:
    for leaf in ("weight", "bias"):
        q, k, v = (one.view(GROUPS, -1, *one.shape[1:]) for one in parts(layer, leaf))
        layer[f"self_attention.linear_qkv.{leaf}"] = torch.cat((q, k, v), 1).flatten(0, 1)


def test_grouped_queries_with_their_keys_and_values_as_in_megatron() -> None:
    here = network()
    found, back = both(each_layer(here, megatron), here)
    assert rows(found)[0]["sizes"] == [HEADS // GROUPS * SIZE, SIZE, SIZE]
    assert rows(found)[0]["groups"] == rows(back)[0]["groups"] == GROUPS


def test_fused_in_another_order_and_gate_and_up_exchanged() -> None:
    def fuse(layer: Tensors, at: str) -> None:
        for leaf in ("weight", "bias"):
            q, k, v = parts(layer, leaf)
            layer[f"attn.fused.{leaf}"] = torch.cat((v, q, k))
        gate, up = (layer.pop(f"mlp.{name}_proj.weight") for name in ("gate", "up"))
        layer["mlp.fused.weight"] = torch.cat((up, gate))

    here = network()
    found, _ = both(here, each_layer(here, fuse))
    assert [row["concat"] for row in rows(found)] == [
        [f"model.layers.{{n}}.mlp.{name}_proj.weight" for name in ("up", "gate")],
        [f"model.layers.{{n}}.self_attn.{name}_proj" for name in "vqk"],
    ]


def test_a_fused_projection_in_another_order_of_its_parts() -> None:
    def fuse(layer: Tensors, at: str) -> None:
        layer["mlp.gate_up.weight"] = torch.cat([layer.pop(f"mlp.{name}_proj.weight") for name in ("gate", "up")])

    here = each_layer(network(), fuse)
    there = {
        key: torch.cat((tensor[HIDDEN:], tensor[:HIDDEN])) if "gate_up" in key else tensor
        for key, tensor in here.items()
    }
    found, _ = both(here, there)
    assert rows(found) == [{"take": "h.{n}.mlp.gate_up.weight", "indices": "1,0", "block": HIDDEN}]


def paired(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as Meta's Llama has them: the two of a rotated pair side by side."""
    rest = tensor.shape[1:]
    return tensor.view(heads, 2, -1, *rest).transpose(1, 2).reshape(tensor.shape)


def meta(layer: Tensors, at: str) -> None:
    for name, heads in (("q", HEADS), ("k", GROUPS), ("v", 0)):
        for leaf in ("weight", "bias"):
            one = layer.pop(f"self_attn.{name}_proj.{leaf}")
            layer[f"attention.w{name}.{leaf}"] = paired(one, heads) if heads else one


def test_rows_of_rotary_embeddings_as_in_meta_s_llama() -> None:
    here = network()
    found, back = both(each_layer(here, meta), here)
    assert rows(found) == [
        {"halves": "h.{n}.attention.wk", "heads": GROUPS},
        {"halves": "h.{n}.attention.wq", "heads": HEADS},
    ]
    assert [next(iter(row)) for row in rows(back)] == ["pairs", "pairs"]


def in_folders(here: Tensors, there: Tensors, **config: int) -> Proposal:
    """Match two folders, of which the second has ``config`` as configuration."""
    for name, tensors in (("here", here), ("there", there)):
        Path(name).mkdir()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{name}/model.safetensors")
    Path("there/config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return cs.match("here", "there", values=True)


@pytest.mark.parametrize("change", [meta, megatron])
def test_heads_that_contradict_a_configuration_get_a_note(change: Callable[[Tensors, str], None]) -> None:
    here = network()
    stated = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS * 2}
    found = in_folders(each_layer(here, change), here, **stated)
    said = [note for note in found.notes if "the values show" in note]
    assert len(said) == 1
    assert f"the values show {GROUPS} heads of keys" in said[0]
    assert f"configuration of there has {GROUPS * 2}: one of the two is wrong" in said[0]


@pytest.mark.parametrize("change", [meta, megatron])
def test_heads_of_the_configuration_get_no_note(change: Callable[[Tensors, str], None]) -> None:
    here = network()
    found = in_folders(each_layer(here, change), here, num_attention_heads=HEADS, num_key_value_heads=GROUPS)
    assert not [note for note in found.notes if "the values show" in note]


def test_fused_and_rows_in_pairs() -> None:
    def fuse(layer: Tensors, at: str) -> None:
        meta(layer, at)
        for leaf in ("weight", "bias"):
            layer[f"attn.qkv.{leaf}"] = torch.cat([layer.pop(f"attention.w{name}.{leaf}") for name in "qkv"])

    here = network()
    both(each_layer(here, fuse), here)


def gpt2(layer: Tensors, at: str) -> None:
    layer["attn.c_attn.weight"] = torch.cat(parts(layer, "weight")).T
    layer["attn.c_attn.bias"] = torch.cat(parts(layer, "bias"))
    for old, new in (("self_attn.o_proj", "attn.c_proj"), ("mlp.up_proj", "mlp.c_fc"), ("mlp.down_proj", "mlp.c_proj")):
        layer[f"{new}.weight"] = layer.pop(f"{old}.weight").T


def test_conv1d_of_gpt_2_is_transposed_also_where_it_is_square() -> None:
    here = network(kv=WIDTH)
    found, _ = both(each_layer(here, gpt2), here)
    assert {next(iter(row)) for row in rows(found)} == {"transpose", "split"}
    assert len(found.operations) == 5


def test_a_permutation_of_heads() -> None:
    order = [4, 2, 0, 5, 1, 3]

    def permute(layer: Tensors, at: str) -> None:
        for leaf in ("weight", "bias"):
            q = layer[f"self_attn.q_proj.{leaf}"]
            layer[f"self_attn.q_proj.{leaf}"] = q.view(HEADS, SIZE, *q.shape[1:])[order].reshape(q.shape)
        o = layer["self_attn.o_proj.weight"]
        layer["self_attn.o_proj.weight"] = o.view(WIDTH, HEADS, SIZE)[:, order].reshape(o.shape)

    here = network()
    found, _ = both(here, each_layer(here, permute))
    taken = {"indices": "4,2,0,5,1,3", "block": SIZE}
    assert rows(found) == [
        {"take": "model.layers.{n}.self_attn.o_proj.weight", **taken, "dim": 1},
        {"take": "model.layers.{n}.self_attn.q_proj", **taken},
    ]


def experts(*, stacked: bool, turned: bool, fused: bool) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    found: Tensors = {}
    for n in range(LAYERS):
        gate, up, down = (torch.randn(4, *shape, generator=generator) for shape in ((12, 8), (12, 8), (8, 12)))
        whole = {"gate_up": torch.cat((gate, up), 1), "down": down} if fused else {"gate": gate, "up": up, "down": down}
        for name, stack in whole.items():
            one = stack.transpose(1, 2) if turned else stack
            if stacked:
                found[f"layers.{n}.experts.{name}_proj"] = one
            else:
                found |= {f"layers.{n}.experts.{e}.{name}.weight": one[e] for e in range(4)}
    return found


@pytest.mark.costly
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_stacked_experts_and_single_ones(turned: bool, fused: bool) -> None:
    single = experts(stacked=False, turned=False, fused=False)
    both(single, experts(stacked=True, turned=turned, fused=fused))


@pytest.mark.costly
@pytest.mark.parametrize("fused", [False, True])
def test_stacks_are_changed_as_a_whole_if_they_can(fused: bool) -> None:
    found, _ = both(experts(stacked=True, turned=False, fused=True), experts(stacked=True, turned=True, fused=fused))
    assert {next(iter(row)) for row in rows(found)} == ({"transpose"} if fused else {"split", "transpose"})


def test_1x1_convolutions_are_linear_layers() -> None:
    here = {"a.conv.weight": torch.randn(6, 5, 1), "a.conv.bias": torch.randn(6), "b.weight": torch.randn(4, 6, 1, 1)}
    there = {
        "x.weight": here["a.conv.weight"][..., 0],
        "x.bias": here["a.conv.bias"],
        "y.weight": here["b.weight"][..., 0, 0],
    }
    both(here, there)


def test_tensors_of_other_names_in_any_order_without_a_word_in_common() -> None:
    here = network()
    there = {f"t{number:03}": here[key] for number, key in enumerate(sorted(here, key=lambda key: key[::-1]))}
    save_file(here, "here.safetensors")
    save_file(there, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    decided = {key for key in here if "norm" not in key}
    assert {key: found.names[key] for key in decided} == {
        key: name for name, one in there.items() for key in decided if here[key] is one
    }
    assert all("norm" in key for key in found.unmatched)  # norms of ones, which nothing tells apart


def test_another_dtype_agrees_within_the_cast() -> None:
    here = network()
    there = {key: tensor.bfloat16() for key, tensor in each_layer(here, megatron).items()}
    save_file(here, "here.safetensors")
    save_file(there, "there.safetensors")
    for pair in (("here", "there"), ("there", "here")):
        found = cs.match(*(f"{name}.safetensors" for name in pair), values=True)
        assert found.complete
        assert set(found.agreed.values()) == {"cast"}
        assert "within the rounding of a cast" in found.notes[0]
    cs.match("here.safetensors", "there.safetensors", values=True, output="moved.yaml")
    cs.apply("moved.yaml", "out.safetensors")
    same({key: one.bfloat16() for key, one in load_file("out.safetensors").items()}, there)


def test_a_recipe_whose_values_agree_does_not_doubt_square_matrices() -> None:
    here = {f"layers.{n}.{name}.weight": torch.randn(rows, 8) for n in range(3) for name, rows in (("o", 8), ("up", 6))}
    there = {key: one.t() if ".up." in key else one for key, one in here.items()}
    check(here, there)
    doubt = "square matrices are not transposed"
    assert not any(doubt in note for note in cs.load_plan("moved.yaml").notes)
    text = Path("moved.yaml").read_text()
    assert "values_agree: true\n" in text
    Path("edited.yaml").write_text(text.replace("values_agree: true\n", ""))
    assert any(doubt in note for note in cs.load_plan("edited.yaml").notes)
    Path("edited.yaml").write_text(text.replace("values_agree: true", "values_agree: 1"))
    with pytest.raises(cs.ConfigError, match="the field values_agree is 1, not true or false"):
        cs.load_plan("edited.yaml")


def test_different_networks_agree_in_nothing(ckpt: object) -> None:
    here = network()
    there = {key: torch.randn_like(tensor) if "norm" not in key else tensor for key, tensor in here.items()}
    save_file(here, "here.safetensors")
    save_file(there, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert found.notes[0].startswith("nothing agrees by value")
    assert not [*found.rules, *found.operations, *found.names, *found.agreed]
    assert not found.complete
    alike = f"names and shapes match for {len(here)} of {len(here)} tensors of there.safetensors"
    assert any(note.startswith(alike) for note in found.notes)
    assert cs.match("here.safetensors", "there.safetensors").complete  # without values, as the note says
    with pytest.raises(cs.CheckpointError, match=r"moved\.yaml is not written"):
        cs.match("here.safetensors", "there.safetensors", values=True, output="moved.yaml")
    assert not Path("moved.yaml").exists()


def test_what_differs_in_one_element_is_not_proposed() -> None:
    here = network()
    there = {key: tensor.clone() for key, tensor in each_layer(here, megatron).items()}
    there["h.1.self_attention.linear_qkv.weight"][20, 20] += 1
    there["h.2.mlp.down_proj.weight"][20, 20] += 1
    save_file(here, "here.safetensors")
    save_file({key: one.contiguous() for key, one in there.items()}, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert found.missing.keys() >= {"h.1.self_attention.linear_qkv.weight", "h.2.mlp.down_proj.weight"}
    assert len(found.missing) <= 3


def test_what_differs_between_the_samples_is_not_proposed() -> None:
    here = {f"a.{n}.weight": torch.randn(100, 100) for n in range(3)}
    there = {key.replace("a", "b"): tensor.clone() for key, tensor in here.items()}
    there["b.1.weight"][50, 50] += 1
    save_file(here, "here.safetensors")
    save_file(there, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert [*found.missing] == ["b.1.weight"]
    assert [*found.unmatched] == ["a.1.weight"]
    assert {*found.agreed} == {"b.0.weight", "b.2.weight"}


def test_a_tied_head_is_a_copy() -> None:
    here = network()
    there = {**here, "lm_head.weight": here["model.embed_tokens.weight"].clone()}
    check(here, there)


def test_padded_rows_are_cut() -> None:
    here = network()
    there = {**here, "model.embed_tokens.weight": here["model.embed_tokens.weight"][:40].clone()}
    found = check(here, there)
    assert rows(found) == [{"slice": "model.embed_tokens.weight", "end": 40}]


def test_equal_rows_are_kept_apart() -> None:
    here = network()
    for n in range(LAYERS):
        here[f"model.layers.{n}.self_attn.q_proj.weight"][3:9] = 0
        here[f"model.layers.{n}.self_attn.v_proj.weight"][1:3] = 0
    both(each_layer(here, megatron), here)


def padded(rows: int) -> torch.Tensor:
    """A matrix whose first and last rows are zeros, as of a padded vocabulary."""
    return torch.nn.functional.pad(torch.randn(rows, 32), (0, 0, 300, 300))


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_that_begin_and_end_alike_are_told_apart(turned: bool) -> None:
    one, other, weight = padded(16), padded(16), torch.randn(6, 4)
    moved = [tensor.T if turned else tensor for tensor in (other, one)]
    check({"a": one, "b": other, "w": weight}, {"c": moved[0], "d": moved[1], "w": weight})


def test_a_tensor_that_the_source_has_twice_and_the_destination_three_times() -> None:
    one, other = torch.randn(6, 4), torch.randn(6, 5)
    here = {"a": one, "b": one.clone(), "v": other}
    check(here, {"c": one, "d": one.clone(), "e": one.clone(), "v": other.T})
