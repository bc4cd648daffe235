"""GPT-2: two libraries with the same names, told apart by shapes, and the output that one stores twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import assert_same, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "gpt2"


def test_each_form_of_gpt_2_becomes_nanogpt_s() -> None:
    """The files of GPT2LMHeadModel, those of GPT2Model, which are the first ones on the hub, and the state dict."""
    from transformers import GPT2LMHeadModel, GPT2Model

    nano = load_file(RECORDED / "nanogpt.safetensors")
    plain, notes = converted_and_noted(nano, "transformers")
    assert "left out: lm_head, since transformers uses transformer.wte in its place" in notes
    assert "nanoGPT has the exact GELU, transformers an approximation" in notes
    Path("made").mkdir()
    save_file(plain, "made/model.safetensors", {"format": "pt"})
    shutil.copy(RECORDED / "config.json", "made")
    whole, bare = GPT2LMHeadModel.from_pretrained("made"), GPT2Model.from_pretrained("made")
    for name, model in (("whole", whole), ("bare", bare)):
        model.save_pretrained(name)
        back, notes = converted_and_noted(load_file(f"{name}/model.safetensors"), "nanogpt")
        assert_same(back, nano)
        assert "added: lm_head, a copy of transformer.wte" in notes.replace(" wte", " transformer.wte")
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    back, notes = converted_and_noted(state, "nanogpt")
    assert_same(back, nano)
    assert "lm_head and transformer.wte are one tensor in nanoGPT; if they differ" in notes


def test_masks_of_old_checkpoints_are_left_out() -> None:
    nano = load_file(RECORDED / "nanogpt.safetensors")
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8).tril() for n in range(2)}
    plain, notes = converted_and_noted({**nano, **masks}, "transformers")
    assert "left out: transformer.h.{n}.attn.bias, which transformers computes" in notes
    assert not plain.keys() & masks.keys()
    bare = {key.removeprefix("transformer."): value for key, value in {**plain, **masks}.items()}
    back, notes = converted_and_noted(bare, "nanogpt")
    assert "left out: h.{n}.attn.bias, which nanoGPT computes" in notes
    assert_same(back, nano)


def test_shapes_tell_nanogpt_from_transformers() -> None:
    nano = load_file(RECORDED / "nanogpt.safetensors")
    assert [one.layout for one in cs.layouts(RECORDED / "nanogpt.safetensors").found] == ["nanogpt"]
    plain, _ = converted_and_noted(nano, "transformers")
    assert plain.keys() | {"lm_head.weight"} == nano.keys()
    assert [one.layout for one in cs.layouts("after.safetensors").found] == ["transformers"]
    nano["transformer.h.0.attn.c_attn.weight"] = torch.ones(16, 16)
    with pytest.raises(PlanError, match=r"the layout of before\.safetensors is not known"):
        converted_and_noted(nano, "transformers")


def test_what_has_no_name_or_is_no_matrix_is_an_error() -> None:
    nano = load_file(RECORDED / "nanogpt.safetensors")
    with pytest.raises(PlanError, match=re.escape("of the family gpt2: score.weight")):
        converted_and_noted({**nano, "score.weight": torch.ones(2, 16)}, "transformers")
    with pytest.raises(PlanError, match=re.escape("transformer.h.1.mlp.c_fc.weight has 1 dimension")):
        converted_and_noted({**nano, "transformer.h.1.mlp.c_fc.weight": torch.ones(16)}, "transformers")


@pytest.mark.costly
@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "module._orig_mod"])
def test_a_prefix_that_training_added_is_removed(wrapper: str) -> None:
    """nanoGPT compiles its network, and stores it as it is then."""
    nano = load_file(RECORDED / "nanogpt.safetensors")
    torch.save({"model": {f"{wrapper}.{key}": value for key, value in nano.items()}}, "ckpt.pt")
    plan = cs.convert("ckpt.pt", layout="transformers")
    assert f"the prefix {wrapper}. of all keys, which training added, is removed" in plan.notes
    cs.apply(plan, "plain.safetensors")
    assert cs.verify("plain.safetensors").ok
    assert_same(load_file("plain.safetensors"), converted_and_noted(nano, "transformers")[0])
    assert [one.layout for one in cs.layouts("ckpt.pt").found] == ["nanogpt"]
    cs.apply(cs.transplant("ckpt.pt", RECORDED / "config.json"), "made")
    assert_same(load_file("made/model.safetensors"), load_file("plain.safetensors"))


def test_the_counter_of_an_averaged_model_gets_a_hint_that_works() -> None:
    nano = load_file(RECORDED / "nanogpt.safetensors")
    averaged = {f"module.{key}": value for key, value in nano.items()} | {"n_averaged": torch.tensor(3)}
    torch.save(averaged, "ckpt.pt")
    with pytest.raises(PlanError, match=r"the layout of ckpt\.pt is not known") as caught:
        cs.convert("ckpt.pt", layout="transformers")
    assert "n_averaged does not belong to the network" in caught.value.hint
    assert "ckpt filter --exclude n_averaged." in caught.value.hint
    cs.apply(cs.filter("ckpt.pt", exclude="n_averaged"), "plain.safetensors")
    made, _ = converted_and_noted(load_file("plain.safetensors"), "transformers")
    assert_same(made, converted_and_noted(nano, "transformers")[0])


def test_modules_that_were_compiled_inside_get_a_hint_that_works() -> None:
    nano = load_file(RECORDED / "nanogpt.safetensors")
    inside = {key.replace("attn.", "attn._orig_mod."): value for key, value in nano.items()}
    torch.save({"model": inside}, "ckpt.pt")
    with pytest.raises(PlanError, match=r"the layout of ckpt\.pt is not known") as caught:
        cs.convert("ckpt.pt", layout="transformers")
    assert "ckpt rename --ruleset compile." in caught.value.hint
    cs.apply(cs.rename("ckpt.pt", ruleset="compile"), "plain.safetensors")
    made, _ = converted_and_noted(load_file("plain.safetensors"), "transformers")
    assert_same(made, converted_and_noted(nano, "transformers")[0])


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["transformers", "megatron"])
def test_a_network_without_biases_gets_zeros(layout: str) -> None:
    """nanoGPT trains without biases by default; transformers and Megatron always have them."""
    nano = load_file(RECORDED / "nanogpt.safetensors")
    without = {key: value for key, value in nano.items() if not key.endswith(".bias")}
    zeros = {key: value * 0 if key.endswith(".bias") else value for key, value in nano.items()}
    made, notes = converted_and_noted(without, layout, heads="2")
    assert re.search(r"added: transformer\.h\.\{n\}\.attn\.c_attn\.bias.*zeros, since (transformers|Megatron)", notes)
    assert_same(made, converted_and_noted(zeros, layout, heads="2")[0])


def test_transformers_computes_what_nanogpt_does_without_biases() -> None:
    from transformers import GPT2LMHeadModel

    nano = load_file(RECORDED / "nanogpt.safetensors")
    save_file({key: value for key, value in nano.items() if not key.endswith(".bias")}, "nano.safetensors")
    cs.apply(cs.transplant("nano.safetensors", RECORDED / "config.json"), "made")
    found, report = GPT2LMHeadModel.from_pretrained("made", output_loading_info=True)
    assert not report["missing_keys"]
    assert not any(value.any() for key, value in found.state_dict().items() if key.endswith(".bias"))
