"""Whisper in CTranslate2's files: converted to the layouts of transformers and OpenAI, and never back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures/golden"
GOLDEN = FIXTURES / "ctranslate2"
NETWORK = FIXTURES / "layouts/whisper.ctranslate2"
CODED = ("int8", "int8_float16", "int16")
HEAD, EMBEDDING = "proj_out.weight", "model.decoder.embed_tokens.weight"


def ours() -> Tensors:
    """The network's tensors in the layout of transformers, with the output layer that is tied to the embedding."""
    found = load_file(NETWORK / "transformers.safetensors")
    return {**found, HEAD: found[EMBEDDING].clone()}


def made(name: str, layout: str, **options: Any) -> tuple[Tensors, str]:
    plan = cs.convert(GOLDEN / name, layout=layout, **options)
    cs.apply(plan, "out.safetensors", force=True)
    assert cs.verify("out.safetensors").ok
    return load_file("out.safetensors"), "\n".join(plan.notes)


@pytest.mark.long
def test_a_file_of_the_converter_becomes_the_original() -> None:
    found, notes = made("float32", "transformers")
    assert_same(found, ours())
    assert "from the layout of CTranslate2, faster-whisper to that of transformers" in notes
    assert "model.encoder.layers.{n}.self_attn.k_proj.bias" in notes
    assert "(6 tensors), zeros if CTranslate2 added it, as Whisper's keys have no bias" in notes


@pytest.mark.costly
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_floats_stay_as_they_are(name: str) -> None:
    dtype = getattr(torch, name)
    assert_same(made(name, "transformers")[0], {key: value.to(dtype) for key, value in ours().items()})


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["float32", *CODED])
def test_the_layout_of_openai_is_that_by_way_of_transformers(name: str) -> None:
    options: dict[str, Any] = {"dequantize": True, "dtype": "float32"} if name in CODED else {}
    found, notes = made(name, "openai", **options)
    assert_same(found, converted(made(name, "transformers", **options)[0], "openai"))
    assert "left out: proj_out, since openai-whisper uses" in notes


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["float32", *CODED])
def test_transformers_loads_a_folder_of_faster_whisper(name: str) -> None:
    import transformers

    options = {"encoding": "dequantize"} if name in CODED else {}
    cs.apply(cs.transplant(GOLDEN / name, NETWORK / "config.json", **options), "made")
    model, report = transformers.WhisperForConditionalGeneration.from_pretrained("made", output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    values = load_file(NETWORK / "outputs.safetensors")
    wanted = values.pop("output")
    with torch.no_grad():
        error = abs(model.eval()(**values).logits - wanted).max()
    assert error < (0.05 if name in CODED else 1e-5)
    assert error > 1e-5 or name not in CODED


@pytest.mark.long
def test_its_config_json_is_not_copied_into_a_folder_of_transformers() -> None:
    plan = cs.convert(GOLDEN / "int8", layout="transformers", dequantize=True)
    cs.apply(plan, "out/")
    assert not Path("out/config.json").exists()
    assert "config.json is not copied into an output folder" in "\n".join(plan.notes)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "dtype"), [("int8", torch.float32), ("int16", torch.float32), ("int8_float16", torch.float16)]
)
def test_codes_are_decoded_to_the_dtype_of_the_other_weights(name: str, dtype: torch.dtype) -> None:
    found, _ = made(name, "transformers", dequantize=True)
    assert {value.dtype for value in found.values()} == {dtype}
    wanted, _ = made(name, "transformers", dequantize=True, dtype=str(dtype).removeprefix("torch."))
    assert_same(found, wanted)


def test_codes_have_to_be_decoded_first() -> None:
    with pytest.raises(PlanError, match="26 tensors of .* have no name in the layout transformers") as caught:
        cs.convert(GOLDEN / "int8", layout="transformers")
    assert caught.value.hint == "Decode quantised weights first, with ckpt convert --dequantize."


@pytest.mark.long
def test_a_comparison_with_the_original_shows_the_rounding_only() -> None:
    made("int8", "transformers", dequantize=True, dtype="float32")
    save_file(ours(), "original.safetensors")
    found = cs.diff("original.safetensors", "out.safetensors", values=True)
    assert not found.added + found.removed + found.reshaped + found.retyped
    assert {pair.key.rpartition(".")[2] for pair in found.changed} == {"weight"}
    assert found.identical == len(ours()) - len(found.changed)


@pytest.mark.long
def test_the_layout_is_recognised_and_not_written() -> None:
    assert [(one.family, one.layout, one.targets) for one in cs.layouts(GOLDEN / "int16").found] == [
        ("whisper", "ctranslate2", ())
    ]
    assert cs.layouts(GOLDEN / "float32").found[0].targets == ("openai", "transformers")
    shutil.copy(NETWORK / "transformers.safetensors", "x.safetensors")
    assert cs.layouts("x.safetensors").found[0].targets == ("openai",)
    with pytest.raises(PlanError, match="ckpt reads the layout of CTranslate2, faster-whisper, and does not write it"):
        cs.convert("x.safetensors", layout="ctranslate2")
    save_file(load_file(NETWORK / "ctranslate2.safetensors"), "same.safetensors")
    assert "already have the layout" in "\n".join(cs.convert("same.safetensors", layout="ctranslate2").notes)


@pytest.mark.parametrize(
    "lost",
    [
        "encoder/layer_1/self_attention/linear_0/bias",
        "decoder/layer_0/ffn/layer_norm/gamma",
        "decoder/layer_1/attention/linear_2/weight",
    ],
)
def test_a_layer_without_a_tensor_is_an_error(lost: str) -> None:
    tensors = load_file(NETWORK / "ctranslate2.safetensors")
    save_file({key: value for key, value in tensors.items() if key != lost}, "less.safetensors")
    with pytest.raises(PlanError, match=f"{lost} is missing from less.safetensors"):
        cs.convert("less.safetensors", layout="transformers")


def test_what_has_no_name_is_an_error() -> None:
    tensors = load_file(NETWORK / "ctranslate2.safetensors")
    save_file({**tensors, "decoder/extra/weight": torch.ones(2)}, "more.safetensors")
    with pytest.raises(PlanError, match="1 tensor of more.safetensors has no name in the layout transformers.*extra"):
        cs.convert("more.safetensors", layout="transformers")


@pytest.mark.long
def test_every_setting_of_the_network_stays_in_the_metadata() -> None:
    made("float32", "transformers")
    with cs.open_checkpoint("out.safetensors") as found, cs.open_checkpoint(GOLDEN / "float32") as source:
        assert dict(found.metadata).items() >= dict(source.metadata).items()
        heads = json.loads((NETWORK / "config.json").read_text())["decoder_attention_heads"]
        assert found.metadata["decoder/num_heads"] == str(heads)


@pytest.mark.long
def test_names_of_copied_tensors_are_kept() -> None:
    """A safetensors file with CTranslate2's names has the same layout."""
    found, _ = converted_and_noted(load_file(NETWORK / "ctranslate2.safetensors"), "transformers")
    assert_same(found, load_file(NETWORK / "transformers.safetensors"))
