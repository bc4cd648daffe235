"""Policies that resize a vocabulary keep its rows by position: a note says so, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from .test_transplant import plan, save

SAID = "rows by position, not by token; --vocab SRC_TOKENS:DST_TOKENS maps rows by token"


def said(made: cs.Plan) -> list[str]:
    return [note for note in made.notes if "by position" in note]


def resized(shapes: dict[str, Any], policy: Any = "overlap", **options: Any) -> list[str]:
    source = {key: have for key, (have, _) in shapes.items()}
    return said(plan(source, {key: want for key, (_, want) in shapes.items()}, on_mismatch=policy, **options))


@pytest.mark.parametrize(
    "key",
    [
        "ctc.weight", "ctc.ctc_lo.weight", "ctc_lin.w.weight", "decoder.embed.0.weight", "decoder.embed.weight",
        "decoder.output_layer.weight", "lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight",
        "bert.embeddings.word_embeddings.weight", "shared.weight", "proj_out.weight", "tok_embeddings.weight",
        "output.weight", "cls.predictions.decoder.weight", "embed_out.weight",
        "joint_network.lin_out.weight", "joiner.output_linear.weight", "seq_lin.w.weight", "decoder.decoder_layers.0.weight",
        "generator.weight", "emb.Embedding.weight", "decoder.token_embedding.weight", "vocab_projection.weight", "embed.tokens.weight",
    ],
)  # fmt: skip
def test_names_of_vocabularies_are_known(key: str) -> None:
    assert resized({key: ((50, 8), (33, 8))}) == [f"{key} goes from 50 to 33 {SAID}"]


@pytest.mark.parametrize(
    "key",
    [
        "pos_embed", "embed_positions.weight", "transformer.wpe.weight", "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight", "time_embed.0.weight", "patch_embed.proj.weight", "head.weight",
        "encoder.weight", "encoder.layers.0.linear1.weight", "encoder.layer.0.output.dense.weight",
        "self_attn.out_proj.weight", "query_embed.weight", "speaker_embedding.weight", "class_embed.weight",
    ],
)  # fmt: skip
def test_other_tables_are_none(key: str) -> None:
    assert resized({key: ((50, 8), (33, 8))}) == []


@pytest.mark.parametrize("key", ["classifier", "classifier.out_proj", "bert.token_classifier"])
@pytest.mark.parametrize("policy", ["slice", "overlap"])
def test_rows_of_a_small_classifier_are_labels(key: str, policy: str) -> None:
    shapes = {f"{key}.weight": ((5, 8), (3, 8)), f"{key}.bias": ((5,), (3,))}
    assert resized(shapes, policy) == [
        f"{key}.weight, {key}.bias go from 5 to 3 rows by position; labels are not compared"
    ]
    with pytest.raises(cs.PlanError) as error:
        resized(shapes, ())
    assert "--vocab" not in str(error.value.hint)


@pytest.mark.parametrize("policy", ["pad", "overlap", "interpolate"])
def test_an_embedding_an_output_and_its_bias_are_one_note(policy: str) -> None:
    shapes = {
        "decoder.embed.weight": ((29, 8), (33, 8)),
        "ctc.weight": ((29, 8), (33, 8)),
        "ctc.bias": ((29,), (33,)),
        "encoder.weight": ((8, 8), (8, 8)),
    }
    assert resized(shapes, policy) == [f"decoder.embed.weight, ctc.weight, ctc.bias go from 29 to 33 {SAID}"]
    assert resized(shapes, {"ctc": "pad", "decoder": "init"}) == [f"ctc.weight, ctc.bias go from 29 to 33 {SAID}"]


def test_a_network_that_is_widened_gets_no_note() -> None:
    wide = {
        "embed.weight": ((16, 80), (32, 80)),
        "embed.bias": ((16,), (32,)),
        "layers.0.weight": ((16, 16), (32, 32)),
        "norm.weight": ((16,), (32,)),
        "output.weight": ((50, 16), (50, 32)),
        "output.bias": ((50,), (50,)),
    }
    assert resized(wide) == []
    two = {"0.weight": ((16, 4), (32, 4)), "0.bias": ((16,), (32,)), "2.weight": ((3, 16), (3, 32))}
    assert resized(two) == []


def test_a_vocabulary_of_a_widened_network_is_told_from_its_width() -> None:
    both = {
        "ctc.weight": ((29, 16), (29, 32)),
        "lm_head.weight": ((50, 8), (60, 8)),
        "layers.0.weight": ((16, 16), (32, 32)),
    }
    assert resized(both) == [f"lm_head.weight goes from 50 to 60 {SAID}"]


@pytest.mark.parametrize(
    ("embedding", "output"),
    [
        ("emb.weight", "fc.weight"), ("tok_emb.weight", "head.weight"), ("encoder.weight", "decoder.weight"),
        ("src_embed.0.lut.weight", "generator.proj.weight"), ("embed.weight", "unembed.weight"),
        ("emb.weight", "final.weight"), ("wte", "fc_out.weight"), ("lut.weight", "dense.weight"),
        ("model.language_model.embed_tokens.weight", "head.weight"), ("chars.weight", "readout.weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_bias", [True, False])
def test_an_embedding_and_its_output_layer_are_found_under_other_names(
    embedding: str, output: str, has_bias: bool
) -> None:
    rows = [embedding, output, *([output.replace("weight", "bias")] if has_bias else [])]
    shapes = {key: (((137, 16), (151, 16)) if "bias" not in key else ((137,), (151,))) for key in rows}
    shapes["lstm.weight_ih_l0"] = ((64, 16), (64, 16))
    assert resized(shapes, "pad") == [f"{', '.join(rows)} go from 137 to 151 {SAID}"]


@pytest.mark.parametrize(
    "rows",
    [
        ["attn.k_proj.weight", "attn.v_proj.weight"],
        ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"],
        ["encoder.positions.weight", "decoder.positions.weight"],
        ["encoder.wpe.weight", "decoder.wpe.weight"],
        ["head_a.weight", "head_a.bias", "head_b.weight", "head_b.bias"],
        ["layers.0.gate.weight", "layers.1.gate.weight"],
    ],
)
def test_two_matrices_that_grow_alike_are_no_vocabulary_without_more_evidence(rows: list[str]) -> None:
    odd = not rows[0].startswith("attn")  # keys and values of more heads grow by multiples of 8
    sizes = (514, 1027) if odd else (32, 64)
    shapes = {key: tuple((size, 16) if "weight" in key else (size,) for size in sizes) for key in rows}
    assert resized(shapes, "pad") == []


BODY = {"layers.0.weight": ((16, 16), (16, 16))}
TABLES = [
    (("table.weight", "readout.weight"), (32, 40)),
    (("in_vecs.weight", "w_o.weight"), (1000, 1024)),
    (("in_vecs", "w_o"), (32, 40)),
    (("net.lookup.weight", "net.final.weight"), (40, 32)),
]


@pytest.mark.parametrize(("pair", "sizes"), TABLES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_an_embedding_and_its_output_layer_are_found_by_sizes_that_widths_have_too(
    pair: tuple[str, str], sizes: tuple[int, int], has_bias: bool
) -> None:
    shapes: dict[str, Any] = {key: tuple((size, 16) for size in sizes) for key in pair}
    shapes |= (
        {pair[1].replace("weight", "bias"): tuple((size,) for size in sizes)} if has_bias and "." in pair[1] else {}
    )
    names = ", ".join(shapes)
    assert resized({**shapes, **BODY}, "overlap") == [f"{names} go from {sizes[0]} to {sizes[1]} {SAID}"]


def matrices(*names: str, width: int = 16, sizes: tuple[int, int] = (32, 40)) -> dict[str, Any]:
    return {f"{name}.weight": tuple((size, width) for size in sizes) for name in names}


@pytest.mark.parametrize(
    "shapes",
    [
        {**matrices("up_a", "up_b"), "back.weight": ((16, 32), (16, 40))},
        {**matrices("first", "second"), "norm.weight": ((32,), (40,))},
        {**matrices("branch_a", "branch_b"), "joined.weight": ((5, 64), (5, 80))},
        matrices("layers.0.mix", "layers.1.mix"),
        matrices("blocks.0.left", "blocks.0.right"),
        {**matrices("table", "readout"), **matrices("layers.0.mix", "layers.1.mix")},
        matrices("attn.query", "attn.key"),
        matrices("wq", "wk"),
        matrices("text_projection", "visual_projection"),
        {**matrices("left"), **matrices("right", width=24)},
        matrices("left", "right", width=64),
        {**matrices("mu", "logvar"), "mu.bias": ((32,), (40,)), "logvar.bias": ((32,), (40,))},
        matrices("table"),
        {"conv_a.weight": ((32, 16, 3), (40, 16, 3)), "conv_b.weight": ((32, 16, 3), (40, 16, 3))},
    ],
    ids=lambda shapes: ", ".join(shapes),
)
def test_layers_that_become_wider_by_such_sizes_are_no_vocabulary(shapes: dict[str, Any]) -> None:
    assert resized({**shapes, **BODY}, "overlap") == []


def test_a_bias_alone_gets_no_note() -> None:
    assert resized({"ctc.bias": ((29,), (33,)), "encoder.weight": ((2, 2), (2, 2))}) == []


def test_what_the_destination_declares_counts_whatever_it_is_called() -> None:
    with open("tokens.txt", "w") as file:
        file.write("\n".join(["<blank>", "<unk>", *"abcdef", "<sos/eos>"]))
    with open("dst.yaml", "w") as file:
        size = "d_model: 16, heads: 2, encoder_layers: 1, decoder_layers: 1, n_mels: 20"
        file.write(f"model: {{name: hybrid_asr, tokens: tokens.txt, {size}}}")
    target = cs.load_target("dst.yaml")
    assert target.vocabulary
    shapes = {key: tuple(info.shape) for key, info in target.tensors.items()}
    save("src.pth", {k: (12, *s[1:]) if k in target.vocabulary else s for k, s in shapes.items()})
    (note,) = said(cs.transplant("src.pth", "dst.yaml", on_mismatch="slice"))
    assert all(key in note for key in target.vocabulary if key not in target.ties)
    assert note.endswith(f"from 12 to 9 {SAID}")


def test_what_starts_anew_or_goes_by_token_gets_no_note() -> None:
    shapes = {"ctc.weight": ((3, 2), (4, 2)), "encoder.weight": ((2, 2), (2, 2))}
    for name, tokens in (("a.txt", "xyz"), ("b.txt", "wxyz")):
        with open(name, "w") as file:
            file.write("\n".join(tokens))
    assert resized(shapes, "init") == []
    assert resized(shapes, "pad", vocab="a.txt:b.txt") == []
    assert resized(shapes, "pad") == [f"ctc.weight goes from 3 to 4 {SAID}"]


def test_the_error_about_shapes_names_vocab_for_a_vocabulary_alone() -> None:
    with pytest.raises(cs.PlanError) as error:
        plan({"ctc.weight": (3, 2), "a.b": (2, 2)}, {"ctc.weight": (4, 2), "a.b": (2, 2)})
    assert "init (or pad" in error.value.hint
    assert ", --vocab SRC_TOKENS:DST_TOKENS for rows by token, or --exclude ctc." in error.value.hint
    with pytest.raises(cs.PlanError) as error:
        plan({"ffn.weight": (3, 2), "a.b": (2, 2)}, {"ffn.weight": (4, 2), "a.b": (2, 2)})
    assert "--vocab" not in error.value.hint


def test_a_merge_by_place_says_so() -> None:
    for name, rows in (("a.pth", 5), ("b.pth", 7)):
        torch.save({"lm_head.weight": torch.ones(rows, 3), "x.weight": torch.ones(2, rows)}, name)
    merge: dict[str, Any] = {"method": "linear", "weights": [1, 1]}
    assert said(cs.merge(["b.pth", "a.pth"], **merge, on_mismatch={"lm_head": "overlap", "x": "skip"})) == [
        "lm_head.weight (5 and 7 rows) is merged by position, not by token; --vocab union merges rows by token"
    ]
    for name, rows in (("c.pth", 5), ("d.pth", 7)):
        torch.save({"output.weight": torch.ones(rows, 3), "x.weight": torch.ones(2, rows)}, name)
    assert said(cs.merge(["d.pth", "c.pth"], **merge, on_mismatch="overlap")) == []  # an axis of x goes there, too


@pytest.mark.parametrize(
    ("other", "have", "want"),
    [
        ("conditioning.weight", (8, 11), (8, 14)),
        ("crf.transitions", (11, 11), (14, 14)),
        ("fc.weight", (11, 8), (14, 8)),
    ],
)
def test_a_name_without_doubt_is_a_vocabulary_s_whatever_else_has_its_size(
    other: str, have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    shapes = {"ctc.ctc_lo.weight": ((11, 8), (14, 8)), "ctc.ctc_lo.bias": ((11,), (14,)), other: (have, want)}
    found = ["ctc.ctc_lo.weight", "ctc.ctc_lo.bias", *([other] if have[1] == want[1] else [])]
    assert resized(shapes, "pad") == [f"{', '.join(found)} go from 11 to 14 {SAID}"]


def test_a_merge_of_small_classifiers_by_place_says_so_of_labels() -> None:
    for name, rows in (("a.pth", 5), ("b.pth", 7)):
        torch.save({"classifier.weight": torch.ones(rows, 3)}, name)
    made = cs.merge(["b.pth", "a.pth"], method="linear", weights=[1, 1], on_mismatch="overlap")
    assert said(made) == ["classifier.weight (5 and 7 rows) is merged by position; labels are not compared"]


def test_rows_of_a_large_classifier_are_labels_too_unless_an_embedding_has_as_many() -> None:
    shapes = {"classifier.weight": ((50, 8), (33, 8)), "classifier.bias": ((50,), (33,))}
    assert resized(shapes) == [
        "classifier.weight, classifier.bias go from 50 to 33 rows by position; labels are not compared; "
        "if the rows belong to tokens, use --vocab SRC_TOKENS:DST_TOKENS"
    ]
    (note,) = resized({**shapes, "embed_tokens.weight": ((50, 8), (33, 8))})
    assert note.endswith(SAID)
