"""A width that is no multiple of the old one: what is 0, what is initialised, and what norms get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.api.resize.asked_fields import AskedFields
from ckptsurgeon.api.resize.checks import check_head_sizes, scales_output
from ckptsurgeon.planning.resizing.axes import Axis, Network
from ckptsurgeon.planning.resizing.change import Change
from ckptsurgeon.planning.resizing.new_width import NormForm, added_width, check_norms, with_epsilons
from ckptsurgeon.tensors.info import TensorInfo

from .test_another_type import Saved
from .test_resize import outputs, source, transformers

__all__ = ["source"]

TIMES = (64 / 96) ** 0.5


def difference(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((before - after).abs().max() / before.abs().max())


def test_what_makes_new_numbers_is_0_and_what_reads_them_is_initialised(source: Saved, tmp_path: Path) -> None:
    folder = source("llama")
    plan = cs.resize(folder, set={"hidden_size": 96})
    assert "rms_norm_eps becomes 6.667e-07" in plan.notes[0]
    assert not any("no tensor depends" in note for note in plan.notes)
    cs.apply(plan, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for key, old in before.items():
        new = after[key]
        if old.shape == (64,):
            torch.testing.assert_close(new[:64], old * TIMES)
            assert torch.equal(new[64:], torch.ones(32))  # as the network initialises them
        elif new.shape[0] == 96 and old.shape[0] == 64:
            assert torch.equal(new[:64], old)
            assert not new[64:].any()
        else:
            assert torch.equal(new[:, :64], old)
            assert new[:, 64:].any() == ("embed_tokens" not in key)
    assert json.loads((tmp_path / "out/config.json").read_text())["rms_norm_eps"] == 1e-6 * 64 / 96


@pytest.mark.long
def test_the_new_numbers_learn(source: Saved, tmp_path: Path) -> None:
    cs.apply(cs.resize(source("llama"), set={"hidden_size": 96}), tmp_path / "out")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad[1:9, 64:].abs().min() > 0
    assert model.model.layers[0].mlp.down_proj.weight.grad[64:].abs().min() > 0


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "t5"])
def test_a_multiple_may_be_added_too(kind: str, source: Saved, tmp_path: Path) -> None:
    width = "d_model" if kind == "t5" else "hidden_size"
    cs.apply(cs.resize(source(kind), set={width: 128}, new_width="init"), tmp_path / "out")
    assert difference(outputs(source(kind), kind), outputs(tmp_path / "out", kind)) < 1e-5


@pytest.mark.long
def test_the_width_of_tied_embeddings_may_grow_by_zeros(source: Saved) -> None:
    with pytest.raises(cs.PlanError, match="is tied to") as raised:
        cs.resize(source("gemma3_text"), set={"hidden_size": 128})
    assert "--new-width init" in str(raised.value.hint) or 'new_width="init"' in str(raised.value.hint)
    with pytest.raises(cs.PlanError, match="is tied to") as raised:
        cs.resize(source("bert"), set={"hidden_size": 128, "num_attention_heads": 8})
    assert "new" not in str(raised.value.hint)  # the norms of BERT subtract the mean


@pytest.mark.costly
@pytest.mark.parametrize(
    ("kind", "width", "heads"),
    [("gpt_bigcode", "n_embd", "n_head"), ("gpt2", "n_embd", "n_head"), ("vit", "hidden_size", "num_attention_heads")],
)
def test_the_mean_may_be_added_if_layers_normalise_their_inputs(
    kind: str, width: str, heads: str, source: Saved, tmp_path: Path
) -> None:
    for size in (80, 128):
        plan = cs.resize(source(kind), set={width: size, heads: size // 16}, new_width="init")
        assert "which are the mean of the old ones at first (arXiv 2310.07999)" in plan.notes[0]
        cs.apply(plan, tmp_path / str(size))
        assert difference(outputs(source(kind), kind), outputs(tmp_path / str(size), kind)) < 1e-5
    if kind == "gpt2":
        bias = load_file(tmp_path / "80/model.safetensors")["transformer.h.0.mlp.c_proj.bias"]
        torch.testing.assert_close(bias[64:], bias[:64].mean().expand(16))


@pytest.mark.long
def test_the_dimensions_that_are_means_learn(source: Saved, tmp_path: Path) -> None:
    cs.apply(cs.resize(source("gpt2"), set={"n_embd": 96, "n_head": 6}), tmp_path / "out")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.transformer.h[0].mlp.c_proj.weight.grad[:, 64:].abs().min() > 0
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().max() > 0


@pytest.mark.long
def test_an_activation_in_the_stream_makes_the_mean_approximate(source: Saved, tmp_path: Path) -> None:
    """Whisper's second convolution; the first gets channels that the second does not read yet."""
    fields = {"d_model": 80, "encoder_attention_heads": 5, "decoder_attention_heads": 5}
    plan = cs.resize(source("whisper"), set=fields)
    assert "except after the convolutions, where they are the activation of a mean" in plan.notes[0]
    cs.apply(plan, tmp_path / "out")
    before, after = (load_file(one / "model.safetensors") for one in (source("whisper"), tmp_path / "out"))
    key = "model.encoder.conv2.weight"
    assert not after[key][:, 64:].any()
    torch.testing.assert_close(after[key][64:, :64], before[key].mean(0).expand(16, -1, -1))
    assert after["model.encoder.conv1.weight"][64:].any()
    assert difference(outputs(source("whisper"), "whisper"), outputs(tmp_path / "out", "whisper")) < 0.01


def test_norms_in_the_stream_make_the_mean_impossible(source: Saved) -> None:
    with pytest.raises(
        cs.PlanError, match="can be added to gpt2, gpt_bigcode, gpt_neox, vit, whisper, clip, which normalise only what"
    ):
        cs.resize(source("bert"), set={"hidden_size": 96, "num_attention_heads": 6})


@pytest.mark.long
def test_untied_embeddings_that_are_scaled(source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("gemma3_text"), set={"hidden_size": 96, "tie_word_embeddings": False})
    cs.apply(plan, tmp_path / "out")
    assert difference(outputs(source("gemma3_text"), "gemma3_text"), outputs(tmp_path / "out", "gemma3_text")) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("keys", [1, 2, 6])
def test_new_heads_stand_beside_those_with_which_they_share_keys(keys: int, source: Saved, tmp_path: Path) -> None:
    fields = {"hidden_size": 96, "num_attention_heads": 6, **({"num_key_value_heads": keys} if keys != 2 else {})}
    plan = cs.resize(source("qwen2"), set=fields)
    cs.apply(plan, tmp_path / "out")
    apart = difference(outputs(source("qwen2"), "qwen2"), outputs(tmp_path / "out", "qwen2"))
    assert (apart < 1e-5) == (keys != 1)


@pytest.mark.long
def test_all_heads_with_keys_of_their_own_grow_together(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, num_key_value_heads=4, vocab_size=30))
    model.save_pretrained(tmp_path / "in")
    fields = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 6}
    cs.apply(cs.resize(tmp_path / "in", set=fields), tmp_path / "out")
    after = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert difference(model.eval()(ids).logits, after(ids).logits) < 1e-5
    with pytest.raises(cs.PlanError, match="4 key heads cannot be shared evenly by [0-9]+ query heads"):
        cs.resize(tmp_path / "in", set={**fields, "num_key_value_heads": 2})


@pytest.mark.long
def test_an_epsilon_that_the_user_sets_stays_and_is_said_to_change_the_outputs(source: Saved) -> None:
    plan = cs.resize(source("llama"), set={"hidden_size": 96, "rms_norm_eps": 1e-5})
    assert "the epsilon of model.layers.0.input_layernorm" in plan.notes[0]
    assert plan.notes[0].endswith("the outputs change")


@pytest.mark.long
def test_the_dtype_stays_where_weights_of_norms_are_moved(source: Saved, tmp_path: Path) -> None:
    model = transformers.Gemma3ForCausalLM.from_pretrained(source("gemma3_text"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    cs.apply(cs.resize(tmp_path / "in", set={"hidden_size": 96}), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    before = load_file(tmp_path / "in/model.safetensors")
    key = "model.layers.0.input_layernorm.weight"
    wanted = (1 + before[key].double()) * TIMES - 1
    assert (after[key][:64].double() - wanted).abs().max() < 0.004  # one rounding of numbers below 1


@pytest.mark.long
def test_a_part_of_a_configuration_has_its_own_epsilon(tmp_path: Path) -> None:
    before = llava(tmp_path / "in")
    cs.apply(cs.resize(tmp_path / "in", set={"text_config.hidden_size": 24}), tmp_path / "out")
    after = loaded(tmp_path / "out")
    assert after.config.text_config.rms_norm_eps == 1e-6 * 16 / 24
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert difference(before(input_ids=ids).logits, after(input_ids=ids).logits) < 1e-5


@pytest.mark.long
def test_parts_with_norms_of_their_own_do_not_matter(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(**sizes, vocab_size=40, num_key_value_heads=2)
    vision = transformers.PixtralVisionConfig(**sizes, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "in")
    note = cs.resize(tmp_path / "in", set={"text_config.hidden_size": 24}).notes[0]
    assert "text_config.rms_norm_eps becomes 6.667e-07; the outputs should stay equal" in note
    with pytest.raises(cs.PlanError, match="the size of each head would change") as raised:  # it ignores its head_dim
        cs.resize(tmp_path / "in", set={"vision_config.hidden_size": 24})
    assert "computes the size of a head from its width" in str(raised.value.hint)


def test_an_epsilon_that_is_no_field_is_said_to_have_to_be_another() -> None:
    before = {"m.norm": NormForm(16, 1e-5, 0.0, "rms"), "m.q_norm": NormForm(4, 1e-5, 0.0, "rms")}
    network = Network({"m.q_proj.weight": TensorInfo("float32", (8, 16))}, {}, {})
    heads = {"heads": 2, "kv_heads": 2}
    stays = {"m.norm": NormForm(24, 1e-5, 0.0, "rms"), "m.q_norm": before["m.q_norm"]}
    change = with_epsilons(Change("wider", True), before, stays, (16, 24), network, heads)
    assert (change.is_exact, change.said) == (
        False,
        "wider, but the epsilon of m.norm would have to change with the width",
    )
    shrinks = {path: one._replace(epsilon=1e-5 * 16 / 24) for path, one in stays.items()}
    change = with_epsilons(Change("wider", True), before, shrinks, (16, 24), network, heads)
    assert (change.is_exact, change.rows) == (True, [{"scale": "m.q_proj.weight", "by": pytest.approx(TIMES)}])
    change = with_epsilons(Change("wider", True), before, shrinks, (16, 24), network, {"heads": 1, "kv_heads": 1})
    assert change.is_exact is False  # the projection has more than the queries, such as a gate


@pytest.mark.long
def test_a_part_that_may_be_of_any_type_keeps_its_other_fields(tmp_path: Path) -> None:
    before = llava(tmp_path / "in")
    plan = cs.resize(tmp_path / "in", set={"text_config.num_hidden_layers": 2}, layers="identity")
    cs.apply(plan, tmp_path / "out")
    after, ids = loaded(tmp_path / "out"), torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert difference(before(input_ids=ids).logits, after(input_ids=ids).logits) < 1e-5
    with pytest.raises(cs.ConfigError, match=r"LlamaConfig \(text_config\) has no field 'hiden_size'"):
        cs.resize(tmp_path / "in", set={"text_config.hiden_size": 32})


def llava(folder: Path) -> Any:
    """Return a small LLaVA, whose configuration does not say of which type its language model has to be."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(**sizes, vocab_size=40, num_key_value_heads=2)
    vision = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    model = transformers.LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model.eval()


def loaded(folder: Path) -> Any:
    kind = transformers.LlavaForConditionalGeneration
    model, loading = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    return model


def test_norms_without_a_weight_or_of_an_unknown_form_are_an_error() -> None:
    axis = Axis("m.norm.weight", 0, 16, 24, "out", "norm")
    with pytest.raises(cs.PlanError, match=r"not known how m\.norm normalises"):
        added_width("width", [axis], (16, 24), {"m.norm": NormForm(16, 1e-6, 0.0, "")}, {})
    for before, after in ((16, 24), (0, 0)):
        norms = ({"m.norm": NormForm(size, None, 0.0, "bare")} for size in (before, after))
        with pytest.raises(cs.PlanError, match="has no weight"):
            check_norms("width", *norms, (16, 24))
    other = {"vision.norm": NormForm(16, 1e-6, 0.0, "mean"), "text.norm": NormForm(16, 1e-6, 0.0, "rms")}
    check_norms("width", other, other, (16, 24))
    check_norms("width", other, {**other, "text.norm": NormForm(24, 1e-6, 0.0, "rms")}, (16, 24))
    with pytest.raises(cs.PlanError, match="this dimension is not simply the width"):
        added_width("width", [Axis("m.w", 1, 32, 48, "in", "linear")], (16, 24), {}, {})


def test_heads_that_get_another_size_are_an_error() -> None:
    before: dict[str, Any] = {"m.attn.head_dim": 16, "m.attn.hidden_size": 64}
    with pytest.raises(cs.PlanError, match="would be 24 instead of 16"):
        check_head_sizes("width", before, {"m.attn.head_dim": 24, "m.attn.hidden_size": 96})
    check_head_sizes("width", before, {"m.attn.head_dim": 16, "m.attn.hidden_size": 96})


def test_some_relatives_of_t5_divide_by_the_root_of_the_width() -> None:
    assert scales_output({"scale_decoder_outputs": True, "model_type": "t5"})
    assert scales_output({"tie_word_embeddings": True, "model_type": "umt5"})
    assert not scales_output({"scale_decoder_outputs": False, "tie_word_embeddings": True, "model_type": "t5"})
    assert not scales_output({"tie_word_embeddings": True, "model_type": "mt5"})


def test_a_width_that_is_not_a_multiple_of_the_size_of_a_head_is_an_error() -> None:
    with pytest.raises(
        cs.ConfigError, match="with n_embd=100 and n_head=4, the size of each head would change"
    ) as caught:
        list(AskedFields({"n_embd": 64, "n_head": 4}, {"n_embd": 100}).steps())
    assert caught.value.hint == "Choose a multiple of the size of a head, 16."
