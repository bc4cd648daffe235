"""Match: rules proposed from names and shapes; equals are never guessed between."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.analysis.match import nearness
from ckptsurgeon.analysis.match.proposal import Proposal, Undecided
from ckptsurgeon.analysis.match.propose import propose
from ckptsurgeon.render.match import proposal_view
from ckptsurgeon.tensors.info import TensorInfo

Shapes = dict[str, tuple[int, ...]]
D, FF, C = 768, 3072, 512


def infos(shapes: Shapes) -> dict[str, TensorInfo]:
    return {key: TensorInfo("float32", shape) for key, shape in shapes.items()}


def both(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def fairseq_wav2vec2(layers: int = 12) -> Shapes:
    """The names of fairseq's wav2vec2-base, examples/wav2vec in its repository."""
    found: Shapes = {"mask_emb": (D,)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        found[f"feature_extractor.conv_layers.{i}.0.weight"] = (C, 1 if i == 0 else C, kernel)
    found |= both("feature_extractor.conv_layers.0.2", C) | both("post_extract_proj", D, C)
    found |= {"quantizer.vars": (1, 640, 128)} | both("quantizer.weight_proj", 640, C) | both("project_q", 256, 256)
    found |= {"encoder.pos_conv.0.bias": (D,), "encoder.pos_conv.0.weight_g": (1, 1, 128)}
    found |= {"encoder.pos_conv.0.weight_v": (D, 48, 128)}
    for i in range(layers):
        at = f"encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= both(f"{at}.self_attn.{name}", D, D)
        found |= both(f"{at}.self_attn_layer_norm", D) | both(f"{at}.fc1", FF, D) | both(f"{at}.fc2", D, FF)
        found |= both(f"{at}.final_layer_norm", D)
    return found | both("encoder.layer_norm", D) | both("layer_norm", C) | both("final_proj", 256, D)


def transformers_wav2vec2(layers: int = 12, *, parametrized: bool = True) -> Shapes:
    """The names of transformers' Wav2Vec2ForPreTraining."""
    found: Shapes = {"wav2vec2.masked_spec_embed": (D,)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        found[f"wav2vec2.feature_extractor.conv_layers.{i}.conv.weight"] = (C, 1 if i == 0 else C, kernel)
    found |= both("wav2vec2.feature_extractor.conv_layers.0.layer_norm", C)
    found |= both("wav2vec2.feature_projection.layer_norm", C) | both("wav2vec2.feature_projection.projection", D, C)
    at = "wav2vec2.encoder.pos_conv_embed.conv"
    g, v = (
        ("parametrizations.weight.original0", "parametrizations.weight.original1")
        if parametrized
        else ("weight_g", "weight_v")
    )
    found |= {f"{at}.bias": (D,), f"{at}.{g}": (1, 1, 128), f"{at}.{v}": (D, 48, 128)}
    found |= both("wav2vec2.encoder.layer_norm", D)
    for i in range(layers):
        at = f"wav2vec2.encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= both(f"{at}.attention.{name}", D, D)
        found |= both(f"{at}.layer_norm", D) | both(f"{at}.feed_forward.intermediate_dense", FF, D)
        found |= both(f"{at}.feed_forward.output_dense", D, FF) | both(f"{at}.final_layer_norm", D)
    found |= {"quantizer.codevectors": (1, 640, 128)} | both("quantizer.weight_proj", 640, C)
    return found | both("project_hid", 256, D) | both("project_q", 256, 256)


TRUE = {
    "mask_emb": "wav2vec2.masked_spec_embed",
    "feature_extractor.conv_layers.3.0.weight": "wav2vec2.feature_extractor.conv_layers.3.conv.weight",
    "feature_extractor.conv_layers.0.2.bias": "wav2vec2.feature_extractor.conv_layers.0.layer_norm.bias",
    "post_extract_proj.bias": "wav2vec2.feature_projection.projection.bias",
    "layer_norm.weight": "wav2vec2.feature_projection.layer_norm.weight",
    "quantizer.vars": "quantizer.codevectors",
    "encoder.pos_conv.0.weight_g": "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    "encoder.layers.7.self_attn.q_proj.weight": "wav2vec2.encoder.layers.7.attention.q_proj.weight",
    "encoder.layers.7.self_attn.k_proj.weight": "wav2vec2.encoder.layers.7.attention.k_proj.weight",
    "encoder.layers.7.self_attn.v_proj.weight": "wav2vec2.encoder.layers.7.attention.v_proj.weight",
    "encoder.layers.7.self_attn.out_proj.weight": "wav2vec2.encoder.layers.7.attention.out_proj.weight",
    "encoder.layers.7.self_attn_layer_norm.bias": "wav2vec2.encoder.layers.7.layer_norm.bias",
    "encoder.layers.7.final_layer_norm.bias": "wav2vec2.encoder.layers.7.final_layer_norm.bias",
    "encoder.layers.7.fc1.weight": "wav2vec2.encoder.layers.7.feed_forward.intermediate_dense.weight",
    "encoder.layers.7.fc2.weight": "wav2vec2.encoder.layers.7.feed_forward.output_dense.weight",
    "encoder.layer_norm.weight": "wav2vec2.encoder.layer_norm.weight",
    "final_proj.weight": "project_hid.weight",
    "project_q.weight": "project_q.weight",
}


@pytest.mark.costly
@pytest.mark.parametrize("backwards", [False, True])
def test_fairseq_s_wav2vec2_is_transformers(backwards: bool) -> None:
    ours, theirs = infos(fairseq_wav2vec2()), infos(transformers_wav2vec2())
    found = propose("f", ours, "t", theirs) if not backwards else propose("t", theirs, "f", ours)
    assert found.complete
    assert not found.unmatched
    names = found.names if not backwards else {new: old for old, new in found.names.items()}
    assert len(names) == len(theirs) == 218
    assert {key: names[key] for key in TRUE} == TRUE
    assert len(found.rules) <= 16


def test_fewer_layers_are_the_first_ones() -> None:
    found = propose("f", infos(fairseq_wav2vec2(12)), "t", infos(transformers_wav2vec2(6)))
    assert found.complete
    assert all(".layers.11." in key or int(key.split(".")[2]) >= 6 for key in found.unmatched)


def bert(minilm: Path) -> str:
    return str(minilm / "model.safetensors")


@pytest.mark.long
def test_bert_is_a_transformer_encoder_with_its_projections_apart(minilm: Path) -> None:
    d, ff = 384, 1536
    shapes: Shapes = {"tok.weight": (30522, d), "pos.weight": (512, d), "seg.weight": (2, d)} | both("norm", d)
    for i in range(6):
        at = f"layers.{i}"
        for name in ("q", "k", "v"):
            shapes |= both(f"{at}.self_attn.{name}", d, d)
        shapes |= both(f"{at}.self_attn.out_proj", d, d) | both(f"{at}.linear1", ff, d) | both(f"{at}.linear2", d, ff)
        shapes |= both(f"{at}.norm1", d) | both(f"{at}.norm2", d)
    torch.save({key: torch.empty(shape) for key, shape in shapes.items()}, "port.pth")
    found = cs.match(bert(minilm), "port.pth")
    assert found.complete
    names = found.names
    at = "encoder.layer.4"
    assert names[f"{at}.attention.self.value.bias"] == "layers.4.self_attn.v.bias"
    assert names[f"{at}.attention.output.dense.weight"] == "layers.4.self_attn.out_proj.weight"
    assert names[f"{at}.attention.output.LayerNorm.weight"] == "layers.4.norm1.weight"
    assert names[f"{at}.output.LayerNorm.weight"] == "layers.4.norm2.weight"
    assert names["embeddings.LayerNorm.bias"] == "norm.bias"
    assert names["embeddings.token_type_embeddings.weight"] == "seg.weight"
    assert set(found.unmatched) == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    plan = cs.transplant(bert(minilm), "port.pth", map=found.rules)
    assert plan.counts == {"copied": 101}


@pytest.mark.long
def test_torch_s_own_encoder_has_projections_that_an_operation_fuses(minilm: Path) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(384, 12, 1536), 6, enable_nested_tensor=False)
    torch.save(encoder.state_dict(), "port.pth")
    found = cs.match(bert(minilm), "port.pth")
    assert len(found.names) == 60
    assert all("in_proj" in key for key in found.made)
    assert len(found.made) == 12
    assert not found.missing


def test_wrappers_and_weight_norm_s_two_spellings() -> None:
    old, new = infos(transformers_wav2vec2(parametrized=False)), infos(transformers_wav2vec2())
    at = "wav2vec2.encoder.pos_conv_embed.conv"
    assert propose("a", old, "b", new).rules == (
        f"{at}.weight_g={at}.parametrizations.weight.original0",
        f"{at}.weight_v={at}.parametrizations.weight.original1",
    )
    wrapped = {f"module.model.{key}": info for key, info in old.items()}
    assert propose("a", wrapped, "b", old).rules == ("module.model=",)
    assert propose("a", old, "b", wrapped).rules == ("=module.model",)


def test_names_that_no_rule_can_spell_are_counted() -> None:
    found = propose("a", infos({"query": (3,), "a.w": (4,)}), "b", infos({"net..query": (3,), "b.w": (4,)}))
    assert found.names == {"query": "net..query", "a.w": "b.w"}
    assert found.rules == ("a=b",)
    assert found.notes == ("no rule can produce 1 of the new names",)


def test_transposed_matrices_are_not_matched_with_each_other() -> None:
    """As of a model that JAX or GPT-2's Conv1D stores: fc1 fits the place of fc2, and is not it."""
    there = {f"h.{n}.{name}": shape for n in range(2) for name, shape in {
        "fc1.weight": (64, 16), "fc1.bias": (64,), "fc2.weight": (16, 64), "fc2.bias": (16,), "out.weight": (16, 16),
    }.items()}  # fmt: skip
    turned = {key: shape[::-1] for key, shape in there.items()}
    found = propose("a", infos(turned), "b", infos(there))
    assert not found.rules
    assert {key for key in there if "fc" in key and key.endswith("weight")} == {*found.missing} == {*found.unmatched}
    (note,) = found.notes
    assert note == (
        "no rules are proposed for 4 matrices with the same name in both models, because only one of the two models "
        "stores them transposed: h.0.fc1.weight, "
        "h.0.fc2.weight, h.1.fc1.weight, and 1 more (--json lists all). Transpose them with --operations; square matrices "
        "with the same name may be transposed, too: h.0.out.weight, h.1.out.weight"
    )


def test_equals_are_never_guessed_between() -> None:
    found = propose("a", infos(both("left", 4, 4) | both("right", 4, 4)), "b", infos(both("x", 4, 4) | both("y", 4, 4)))
    assert not found.names
    assert found.ambiguous == {"x": ("left", "right"), "y": ("left", "right")}
    assert not found.complete


def test_names_decide_where_shapes_do_not() -> None:
    found = propose(
        "a",
        infos(both("net.query", 4, 4) | both("net.key", 4, 4)),
        "b",
        infos(both("att.k_proj", 4, 4) | both("att.q_proj", 4, 4)),
    )
    assert found.names["net.query.weight"] == "att.q_proj.weight"
    assert found.names["net.key.weight"] == "att.k_proj.weight"


def test_what_nothing_fits_is_listed() -> None:
    found = propose(
        "a", infos(both("body", 4, 4) | both("old", 3, 2)), "b", infos(both("body", 4, 4) | both("new", 5, 5))
    )
    assert list(found.unmatched) == ["old.weight", "old.bias"]
    assert list(found.missing) == ["new.weight", "new.bias"]
    assert found.rules == ()


def test_a_proposal_s_rules_do_what_it_says(ckpt: Any) -> None:
    torch.manual_seed(0)
    shapes = {key: tuple(min(n, 7) for n in shape) for key, shape in fairseq_wav2vec2(2).items()}
    source = {f"module.{key}": torch.randn(shape) for key, shape in shapes.items()}
    torch.save({"model": source}, "f.pt")
    names = propose("f", infos(fairseq_wav2vec2(2)), "t", infos(transformers_wav2vec2(2))).names
    save_file({new: source[f"module.{old}"] for old, new in names.items()}, "t.safetensors")
    rules = [f"{old}={new}" for old, new in names.items()]
    Path("names.map").write_text("\n".join(rules))
    done = ckpt("transplant", "f.pt", "t.safetensors", "--map-file", "names.map", "-o", "o.safetensors")
    assert done.code == 0
    assert not cs.diff("o.safetensors", "t.safetensors", values=True).differs


def test_the_command_shows_rules_and_what_is_open(ckpt: Any) -> None:
    save_file(
        {key: torch.empty(shape) for key, shape in (both("enc.a", 4, 4) | both("l", 3) | both("r", 3)).items()},
        "a.safetensors",
    )
    save_file(
        {key: torch.empty(shape) for key, shape in (both("net.a", 4, 4) | both("x", 3) | both("y", 3)).items()},
        "b.safetensors",
    )
    done = ckpt("match", "a.safetensors", "b.safetensors")
    assert done.code == 0
    assert "--map enc=net" in done.out
    assert "ambiguous  x  could be l, r" in done.out
    assert ckpt("match", "a.safetensors", "b.safetensors", "-q").out == "enc=net\n"
    data = json.loads(ckpt("match", "a.safetensors", "b.safetensors", "--json").out)
    assert (data["kind"], data["complete"], data["rules"]) == ("ckpt.match", False, ["enc=net"])
    assert ckpt("match", "nothing.pth", "b.safetensors").code == 3


@pytest.mark.long
def test_a_large_model_is_matched() -> None:
    shapes: Shapes = {f"m.layers.{i}.sub.{j}.weight": (16,) for i in range(100) for j in range(60)}
    found = propose("a", infos(shapes), "b", infos({key.replace("m.", "net."): shape for key, shape in shapes.items()}))
    assert found.rules == ("m=net",)


def timed(source: Shapes, destination: Shapes) -> tuple[Proposal, float]:
    began = time.process_time()
    found = propose("a", infos(source), "b", infos(destination))
    return found, time.process_time() - began


def densenet121() -> Shapes:
    """The names of torchvision's densenet121, whose numbers stand inside of segments: 727 tensors."""
    found: Shapes = {"features.conv0.weight": (64, 3, 7, 7)} | normed("features.norm0", 64)
    width = 64
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            found |= normed(f"{at}.norm1", width) | {f"{at}.conv1.weight": (128, width, 1, 1)}
            found |= normed(f"{at}.norm2", 128) | {f"{at}.conv2.weight": (32, 128, 3, 3)}
            width += 32
        if block < 4:
            at = f"features.transition{block}"
            found |= normed(f"{at}.norm", width) | {f"{at}.conv.weight": (width // 2, width, 1, 1)}
            width //= 2
    return found | normed("features.norm5", width) | both("classifier", 1000, width)


def normed(name: str, width: int) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (width,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{key}": shape for key, shape in shapes.items()}


@pytest.mark.long
def test_a_thousand_modules_of_one_shape_under_a_prefix_are_one_rule() -> None:
    """By comparing all with all after each pair it took 31 s for 200."""
    shapes: Shapes = {}
    for i in range(1000):
        shapes |= both(f"net{i}x.lin", 4, 4)
    found, elapsed_s = timed(shapes, under("model", shapes))
    assert found.rules == ("=model",)
    assert {match.why for match in found.matches} == {"prefix"}
    assert elapsed_s < 5


@pytest.mark.costly
@pytest.mark.parametrize("backwards", [False, True])
def test_densenet_under_a_prefix_is_one_rule(backwards: bool) -> None:
    plain = densenet121()
    inside = under("backbone", plain)
    found, elapsed_s = timed(plain, inside) if backwards else timed(inside, plain)
    assert len(found.names) == 727
    assert found.rules == ("=backbone" if backwards else "backbone=",)
    assert elapsed_s < 2


@pytest.mark.long
def test_a_prefix_is_found_beside_another_head_and_without_counters() -> None:
    plain = densenet121()
    inside = under("backbone", {key: shape for key, shape in plain.items() if "classifier" not in key})
    inside = {key: shape for key, shape in inside.items() if "num_batches" not in key} | both("head", 10, 1024)
    found, elapsed_s = timed(inside, plain)
    assert found.rules == ("backbone=",)
    assert len(found.names) == 727 - 121 - 2
    assert elapsed_s < 2


@pytest.mark.long
def test_many_modules_of_one_shape_are_told_apart_by_their_names() -> None:
    ours: Shapes = {}
    theirs: Shapes = {}
    for i in range(500):
        ours |= both(f"enc.mod{i}x.query", 4, 4)
        theirs |= both(f"net.stage.m{i}.q_proj", 4, 4)
    found, elapsed_s = timed(ours, theirs)
    assert found.names == dict(zip(ours, theirs, strict=True))
    assert elapsed_s < 5


def test_a_prefix_is_not_guessed_where_two_would_do() -> None:
    layers: Shapes = {}
    for name in ("one", "two", "three", "four"):
        layers |= both(name, 4, 4) | both(f"{name}.sub", 4, 3)
    found = propose("a", infos(under("left", layers) | under("right", layers)), "b", infos(layers))
    assert not found.names
    assert found.ambiguous["one"] == tuple(f"{side}.{name}" for side in ("left", "right") for name in layers_of(layers))


def layers_of(shapes: Shapes) -> list[str]:
    return [key.removesuffix(".weight") for key, shape in shapes.items() if shape == (4, 4)]


def test_too_many_of_one_shape_are_left_open_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "CELLS", 8)
    names = ("query", "key", "value")
    ours, theirs = ({f"{at}.{name}.w": (3,) for name in names} for at in ("a.b", "c.d"))
    found = propose("a", infos(ours), "b", infos(theirs))
    assert not found.names
    assert found.notes == ("the names of 3 modules are not compared, because too many modules have the same shapes",)


def test_ambiguous_modules_that_are_not_shown_are_counted() -> None:
    ambiguous = {f"x{number}": ("a", "b") for number in range(13)}
    open_ = tuple(Undecided(("a",), (f"y{number}",), "why") for number in range(14))
    found = Proposal("a", "b", (), {}, (), ambiguous, open=open_)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(proposal_view(found))
    assert "ambiguous  and 3 more (-v or --json lists all)\n" in captured.get()
    with console.capture() as captured:
        console.print(proposal_view(found, every=True))
    assert captured.get().count("ambiguous") == 27
