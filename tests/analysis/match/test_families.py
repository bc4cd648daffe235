"""Match: transformer blocks in the spellings of several libraries; parts of equal shape are told apart by their names."""

from __future__ import annotations

import pytest

from ckptsurgeon.analysis.match.parts import parts_of
from ckptsurgeon.analysis.match.propose import propose
from ckptsurgeon.tensors.info import TensorInfo

D, FF, V = 64, 96, 100
SQUARE, WIDE, TALL, ROW, TABLE = (D, D), (D, FF), (FF, D), (D,), (V, D)
LAYERS = 3

Names = dict[str, tuple[str, tuple[int, ...]]]
"""For each source key: the destination key that it corresponds to, and the shape; ``{n}`` is the number of a layer."""

TRANSFORMERS = {
    "q": "model.layers.{n}.self_attn.q_proj", "k": "model.layers.{n}.self_attn.k_proj",
    "v": "model.layers.{n}.self_attn.v_proj", "o": "model.layers.{n}.self_attn.o_proj",
    "gate": "model.layers.{n}.mlp.gate_proj", "up": "model.layers.{n}.mlp.up_proj",
    "down": "model.layers.{n}.mlp.down_proj", "norm1": "model.layers.{n}.input_layernorm",
    "norm2": "model.layers.{n}.post_attention_layernorm", "embed": "model.embed_tokens", "head": "lm_head",
    "norm": "model.norm",
}  # fmt: skip
META = {
    "q": "layers.{n}.attention.wq", "k": "layers.{n}.attention.wk", "v": "layers.{n}.attention.wv",
    "o": "layers.{n}.attention.wo", "gate": "layers.{n}.feed_forward.w1", "up": "layers.{n}.feed_forward.w3",
    "down": "layers.{n}.feed_forward.w2", "norm1": "layers.{n}.attention_norm", "norm2": "layers.{n}.ffn_norm",
    "embed": "tok_embeddings", "head": "output", "norm": "norm",
}  # fmt: skip
LLAMA_CPP = {
    "q": "blk.{n}.attn_q", "k": "blk.{n}.attn_k", "v": "blk.{n}.attn_v", "o": "blk.{n}.attn_output",
    "gate": "blk.{n}.ffn_gate", "up": "blk.{n}.ffn_up", "down": "blk.{n}.ffn_down", "norm1": "blk.{n}.attn_norm",
    "norm2": "blk.{n}.ffn_norm", "embed": "token_embd", "head": "output", "norm": "output_norm",
}  # fmt: skip
TORCHTUNE = {
    **{part: name.replace("model.layers", "layers").replace("self_attn", "attn") for part, name in TRANSFORMERS.items()},
    "o": "layers.{n}.attn.output_proj", "gate": "layers.{n}.mlp.w1", "up": "layers.{n}.mlp.w3",
    "down": "layers.{n}.mlp.w2", "norm1": "layers.{n}.sa_norm", "norm2": "layers.{n}.mlp_norm",
    "embed": "tok_embeddings", "head": "output", "norm": "norm",
}  # fmt: skip
LITGPT = {
    "q": "transformer.h.{n}.attn.q_proj", "k": "transformer.h.{n}.attn.k_proj", "v": "transformer.h.{n}.attn.v_proj",
    "o": "transformer.h.{n}.attn.proj", "gate": "transformer.h.{n}.mlp.fc_1", "up": "transformer.h.{n}.mlp.fc_2",
    "down": "transformer.h.{n}.mlp.proj", "norm1": "transformer.h.{n}.norm_1", "norm2": "transformer.h.{n}.norm_2",
    "embed": "transformer.wte", "head": "lm_head", "norm": "transformer.ln_f",
}  # fmt: skip
SHAPES = {
    **dict.fromkeys("qkvo", SQUARE), "gate": TALL, "up": TALL, "down": WIDE, **dict.fromkeys(("norm1", "norm2", "norm"), ROW),
    "embed": TABLE, "head": TABLE,
}  # fmt: skip
LLAMAS = {"meta": META, "llama.cpp": LLAMA_CPP, "torchtune": TORCHTUNE, "litgpt": LITGPT, "transformers": TRANSFORMERS}


def llama(old: dict[str, str], new: dict[str, str]) -> Names:
    return {f"{old[part]}.weight": (f"{new[part]}.weight", shape) for part, shape in SHAPES.items()}


def block(rows: str) -> Names:
    """A line for each module: its old path, its new path, and the shape of its weight; all have a bias but embeddings."""
    shapes = {"square": SQUARE, "wide": WIDE, "tall": TALL, "row": ROW, "table": TABLE}
    found: Names = {}
    for line in filter(str.strip, rows.splitlines()):
        old, new, shape = line.split()
        found[f"{old}.weight"] = f"{new}.weight", shapes[shape]
        if shape != "table":
            found[f"{old}.bias"] = f"{new}.bias", shapes[shape][:1]
    return found


def layered(names: Names) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    pairs = {old.format(n=n): (new.format(n=n), shape) for n in range(LAYERS) for old, (new, shape) in names.items()}
    return {old: new for old, (new, _) in pairs.items()}, {old: shape for old, (_, shape) in pairs.items()}


def check(names: Names) -> None:
    """Assert that each tensor is matched with the one it corresponds to, whatever the order, in both directions."""
    truth, shapes = layered(names)
    here = {key: TensorInfo("float32", shapes[key]) for key in sorted(truth)}
    there = {truth[key]: TensorInfo("float32", shapes[key]) for key in sorted(truth, key=lambda key: truth[key][::-1])}
    found, back = propose("a", here, "b", there), propose("b", there, "a", here)
    assert found.names == {key: truth[key] for key in here}
    assert {old: new for new, old in back.names.items()} == truth
    assert found.complete
    assert not found.notes


@pytest.mark.parametrize("new", LLAMAS)
@pytest.mark.parametrize("old", LLAMAS)
def test_each_spelling_of_llama_is_matched_with_each_other(old: str, new: str) -> None:
    check(llama(LLAMAS[old], LLAMAS[new]))


def test_what_tells_the_parts_of_llama_apart_is_their_names() -> None:
    truth, shapes = layered(llama(META, TRANSFORMERS))
    infos = [
        {new: TensorInfo("float32", shapes[old]) for old, new in one}
        for one in (zip(truth, truth, strict=True), truth.items())
    ]
    found = propose("a", infos[0], "b", infos[1])
    assert {match.why for match in found.matches} == {"name", "shape"}
    assert [match.first for match in found.matches if match.why == "shape"] == ["norm"]
    assert "layers.{n}.feed_forward.w1=model.layers.{n}.mlp.gate_proj" in found.rules


EXPERT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@pytest.mark.parametrize(
    "at", ["layers.{n}.feed_forward", "model.layers.{n}.block_sparse_moe", "layers.{n}.block_sparse_moe"]
)
def test_experts_of_mixtral(at: str) -> None:
    names: Names = {
        f"{at}.experts.{i}.{old}.weight": (
            f"model.layers.{{n}}.mlp.experts.{i}.{new}.weight",
            WIDE if old == "w2" else TALL,
        )
        for i in range(4)
        for old, new in EXPERT.items()
    }
    check(names | {f"{at}.gate.weight": ("model.layers.{n}.mlp.gate.weight", (4, D))})


def test_without_a_third_matrix_w1_and_w2_are_the_first_and_the_second() -> None:
    check(block("""
        encoders.{n}.self_attn.linear_q    h.{n}.attn.query   square
        encoders.{n}.self_attn.linear_k    h.{n}.attn.key     square
        encoders.{n}.self_attn.linear_v    h.{n}.attn.value   square
        encoders.{n}.self_attn.linear_out  h.{n}.attn.out     square
        encoders.{n}.feed_forward.w_1      h.{n}.mlp.w1       tall
        encoders.{n}.feed_forward.w_2      h.{n}.mlp.w2       wide
        encoders.{n}.norm1                 h.{n}.attn_ln      row
        encoders.{n}.norm2                 h.{n}.mlp_ln       row
    """))  # fmt: skip


def test_opt_and_a_neox_without_its_fused_projection() -> None:
    check(block("""
        model.decoder.layers.{n}.self_attn.out_proj           gpt_neox.layers.{n}.attention.dense            square
        model.decoder.layers.{n}.fc1                          gpt_neox.layers.{n}.mlp.dense_h_to_4h          tall
        model.decoder.layers.{n}.fc2                          gpt_neox.layers.{n}.mlp.dense_4h_to_h          wide
        model.decoder.layers.{n}.self_attn_layer_norm         gpt_neox.layers.{n}.input_layernorm            row
        model.decoder.layers.{n}.final_layer_norm             gpt_neox.layers.{n}.post_attention_layernorm   row
        model.decoder.embed_tokens                            gpt_neox.embed_in                              table
    """))  # fmt: skip


def test_whisper_of_openai() -> None:
    attention = """
        {0}.{{n}}.{1}.query    {2}.{{n}}.{3}.q_proj    square
        {0}.{{n}}.{1}.key      {2}.{{n}}.{3}.k_proj    square
        {0}.{{n}}.{1}.value    {2}.{{n}}.{3}.v_proj    square
        {0}.{{n}}.{1}.out      {2}.{{n}}.{3}.out_proj  square
        {0}.{{n}}.{1}_ln       {2}.{{n}}.{3}_layer_norm  row
    """
    mlp = """
        {0}.{{n}}.mlp.0    {1}.{{n}}.fc1  tall
        {0}.{{n}}.mlp.2    {1}.{{n}}.fc2  wide
        {0}.{{n}}.mlp_ln   {1}.{{n}}.final_layer_norm  row
    """
    encoder, decoder = ("encoder.blocks", "model.encoder.layers"), ("decoder.blocks", "model.decoder.layers")
    rows = [attention.format(old, "attn", new, "self_attn") + mlp.format(old, new) for old, new in (encoder, decoder)]
    rows.append(attention.format(decoder[0], "cross_attn", decoder[1], "encoder_attn"))
    check(block("".join(rows)))


def test_clip_of_openai_has_its_projections_fused() -> None:
    rows = """
        {0}.{{n}}.attn.out_proj  {1}.{{n}}.self_attn.out_proj  square
        {0}.{{n}}.mlp.c_fc       {1}.{{n}}.mlp.fc1             tall
        {0}.{{n}}.mlp.c_proj     {1}.{{n}}.mlp.fc2             wide
        {0}.{{n}}.ln_1           {1}.{{n}}.layer_norm1         row
        {0}.{{n}}.ln_2           {1}.{{n}}.layer_norm2         row
    """
    towers = {"visual.transformer.resblocks": "vision_model.encoder.layers"}
    check(block("".join(rows.format(old, new) for old, new in towers.items())))


def test_bert_s_norms_are_those_of_torch() -> None:
    check(block("""
        encoder.layer.{n}.attention.self.query        layers.{n}.self_attn.q_proj    square
        encoder.layer.{n}.attention.self.key          layers.{n}.self_attn.k_proj    square
        encoder.layer.{n}.attention.self.value        layers.{n}.self_attn.v_proj    square
        encoder.layer.{n}.attention.output.dense      layers.{n}.self_attn.out_proj  square
        encoder.layer.{n}.attention.output.LayerNorm  layers.{n}.norm1               row
        encoder.layer.{n}.intermediate.dense          layers.{n}.linear1             tall
        encoder.layer.{n}.output.dense                layers.{n}.linear2             wide
        encoder.layer.{n}.output.LayerNorm            layers.{n}.norm2               row
    """))  # fmt: skip


def infos(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {key.format(n=n): TensorInfo("float32", shape) for n in range(LAYERS) for key, shape in shapes.items()}


def test_a_gate_is_not_guessed_between_two_names_that_nothing_tells_apart() -> None:
    here = {"layers.{n}.mlp.a.weight": TALL, "layers.{n}.mlp.b.weight": TALL, "layers.{n}.mlp.down_proj.weight": WIDE}
    there = {"h.{n}.mlp.gate_proj.weight": TALL, "h.{n}.mlp.up_proj.weight": TALL, "h.{n}.mlp.down_proj.weight": WIDE}
    found = propose("a", infos(here), "b", infos(there))
    assert len(found.names) == LAYERS
    assert found.ambiguous["h.{n}.mlp.gate_proj"] == ("layers.{n}.mlp.a", "layers.{n}.mlp.b")
    assert found.undecided == 2 * LAYERS


def test_norms_of_a_block_with_four_norms_are_not_those_of_a_block_with_two() -> None:
    two = {
        "layers.{n}.attention.wq.weight": SQUARE,
        "layers.{n}.attention_norm.weight": ROW,
        "layers.{n}.ffn_norm.weight": ROW,
    }
    four = {"model.layers.{n}.self_attn.q_proj.weight": SQUARE} | {
        f"model.layers.{{n}}.{name}_layernorm.weight": ROW
        for name in ("post_attention", "pre_feedforward", "post_feedforward")
    }
    four["model.layers.{n}.input_layernorm.weight"] = ROW
    found = propose("a", infos(two), "b", infos(four))
    assert found.names["layers.0.ffn_norm.weight"] == "model.layers.0.pre_feedforward_layernorm.weight"
    assert {key.split(".")[3] for key in found.missing} == {"post_attention_layernorm", "post_feedforward_layernorm"}


def test_order_alone_decides_nothing() -> None:
    here = {"layers.{n}.x.weight": ROW, "layers.{n}.y.weight": ROW}
    there = {"blocks.{n}.s.weight": ROW, "blocks.{n}.t.weight": ROW}
    assert not propose("a", infos(here), "b", infos(there)).names


def test_conv1d_of_gpt_2_is_not_matched_with_the_other_layer_of_an_mlp() -> None:
    here = {"h.{n}.attn.c_proj.weight": SQUARE, "h.{n}.mlp.c_fc.weight": WIDE, "h.{n}.mlp.c_fc.bias": (FF,)}
    here |= {"h.{n}.mlp.c_proj.weight": TALL, "h.{n}.mlp.c_proj.bias": ROW}
    there = {
        "layers.{n}.self_attn.out_proj.weight": SQUARE,
        "layers.{n}.fc1.weight": TALL,
        "layers.{n}.fc1.bias": (FF,),
    }
    there |= {"layers.{n}.fc2.weight": WIDE, "layers.{n}.fc2.bias": ROW}
    found = propose("a", infos(here), "b", infos(there))
    assert {key: found.names[key] for key in found.names if ".0." in key} == {
        "h.0.attn.c_proj.weight": "layers.0.self_attn.out_proj.weight",
        "h.0.mlp.c_fc.bias": "layers.0.fc1.bias",
        "h.0.mlp.c_proj.bias": "layers.0.fc2.bias",
    }
    assert not found.complete
    (note,) = found.notes
    assert "6 matrices whose names correspond, because only one" in note
    assert "h.0.mlp.c_fc.weight (layers.0.fc1.weight)" in note
    assert "square matrices may be transposed, too: h.0.attn.c_proj.weight" in note


@pytest.mark.parametrize("backwards", [False, True])
def test_kernels_of_jax_are_transposed_even_if_square(backwards: bool) -> None:
    here = {f"layers.{{n}}.attention.{name}.kernel": SQUARE for name in ("query", "key", "value", "out")}
    here |= {"layers.{n}.mlp.fc1.kernel": WIDE, "layers.{n}.mlp.fc2.kernel": TALL, "layers.{n}.layer_norm1.scale": ROW}
    here |= {"layers.{n}.patches.conv.kernel": (3, 5, 4, D)}
    there = {f"h.{{n}}.attn.{name}.weight": SQUARE for name in ("query", "key", "value", "out")}
    there |= {"h.{n}.mlp.c_fc.weight": TALL, "h.{n}.mlp.c_proj.weight": WIDE, "h.{n}.ln_1.weight": ROW}
    there |= {"h.{n}.patches.conv.weight": (D, 4, 3, 5)}
    first, second = (there, here) if backwards else (here, there)
    found = propose("a", infos(first), "b", infos(second))
    assert {key.split(".")[2] for key in found.names} == {"ln_1" if backwards else "layer_norm1"}
    assert f"{7 * LAYERS} matrices whose names correspond, because only one" in found.notes[0]


def test_names_without_meaning_are_matched_by_shape_as_before() -> None:
    here, there = (
        {"a.{n}.inner.weight": TALL, "a.{n}.outer.weight": WIDE},
        {"b.{n}.up.weight": TALL, "b.{n}.x.weight": WIDE},
    )
    found = propose("a", infos(here), "b", infos(there))
    assert found.names["a.1.inner.weight"] == "b.1.up.weight"
    assert not found.notes


def test_names_that_say_the_other_shape_are_reported() -> None:
    """A model without a known spelling, whose matrices are transposed: the words of the names decide."""
    here = {"a.{n}.expand.inner.weight": TALL, "a.{n}.shrink.outer.weight": WIDE}
    there = {"a.{n}.expand.inner.x.weight": WIDE, "a.{n}.shrink.outer.x.weight": TALL}
    found = propose("a", infos(here), "b", infos(there))
    assert not found.names
    assert "transposed" in found.notes[0]


def test_parts_depend_on_their_neighbours() -> None:
    def part(key: str, *beside: str) -> set[str]:
        return set(parts_of([key, *beside])[key])

    assert part("l.0.mlp.w1.weight", "l.0.mlp.w2.weight", "l.0.mlp.w3.weight") == {"gate"}
    assert part("l.0.mlp.w1.weight", "l.0.mlp.w2.weight") == {"gate", "up"}
    assert part("l.0.mlp.w1.weight", "l.0.mlp.w2.weight", "l.0.mlp.v1.weight") == set()
    assert part("l.0.DenseReluDense.wo.weight") == {"down"}
    assert part("l.0.attention.wo.weight") == {"out"}
    assert part("l.0.cross_attn.q_proj.weight") == {"cross q"}
    assert part("l.0.norm2.weight", "l.0.self_attn.out_proj.weight", "l.0.norm3.weight") == {"norm of cross attention"}
    assert part("denselayer1.norm2.weight") == set()
