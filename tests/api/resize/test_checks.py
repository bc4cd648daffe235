"""What fits by its shapes and would still compute something else is an error, or is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.resize.checks import check_heads, check_ties, layers_apart, numbers_apart
from ckptsurgeon.planning.resizing.axes import Network
from ckptsurgeon.planning.resizing.depth import Layer, final_keys, has_final_norm
from ckptsurgeon.tensors.info import TensorInfo

from .test_another_type import Saved
from .test_resize import source

__all__ = ["source"]

GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"num_key_value_heads": 8}, "num_attention_heads 4 is not a multiple of num_key_value_heads 8"),
        ({"num_attention_heads": 3}, "not a multiple of num_key_value_heads 2"),
    ],
)
def test_queries_have_to_share_keys_evenly(asked: dict[str, Any], error: str, source: Saved) -> None:
    with pytest.raises(cs.ConfigError, match=error):
        cs.resize(source("llama"), set=asked)


def test_heads_with_one_latent_vector_change_together() -> None:
    with pytest.raises(cs.ConfigError, match="have to stay equal") as raised:
        check_heads({**GROUPED, "kv_lora_rank": 16}, {"num_key_value_heads": 16})
    assert "--set num_attention_heads=16 --set num_key_value_heads=16" in raised.value.hint
    check_heads({**GROUPED, "kv_lora_rank": 16}, dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 16))
    check_heads(GROUPED, {"num_key_value_heads": 2})


def test_a_quantised_model_has_to_be_decoded_first(source: Saved, tmp_path: Path) -> None:
    shutil.copytree(source("gpt_oss"), tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(cs.ConfigError, match="quantised") as raised:
        cs.resize(tmp_path / "model", set={"num_hidden_layers": 1}, layers="first")
    assert f"ckpt convert {tmp_path / 'model'} --dequantize -o plain/" in raised.value.hint


def test_t5_scales_its_last_layer_only_if_it_is_tied() -> None:
    switch = {"relative_attention_num_buckets": 32, "d_kv": 16}
    with pytest.raises(cs.ConfigError, match="scales the inputs of its output layer"):
        check_ties("tie_word_embeddings", switch, is_untied=True)
    check_ties("tie_word_embeddings", switch, is_untied=False)
    check_ties("tie_word_embeddings", {"d_model": 64}, is_untied=True)


def test_numbers_that_only_training_needs_may_differ() -> None:
    before = {"a.scale": 8.0, "a.dropout": 0.1, "a.size": 64, "b.embed_scale": 8.0, "c.slopes": (4, 0.5)}
    after = {"a.scale": 11.3, "a.dropout": 0.2, "a.size": 128, "b.embed_scale": 11.3, "c.slopes": (8, 0.7)}
    assert numbers_apart(before, after, ["b"]) == ["a.scale", "c.slopes"]
    assert not numbers_apart(before, before)


def test_a_layer_has_to_compute_as_the_one_whose_weights_it_gets() -> None:
    before = {"m.0.window": 4, "m.1.window": None, "m.0.layer_idx": 0, "m.1.layer_idx": 1}
    after = {"m.0.window": 4, "m.0.layer_idx": 0}
    assert layers_apart(before, after, ["m"], [Layer(1)]) == ["m.0.window"]
    assert not layers_apart(before, after, ["m"], [Layer(0)])
    assert not layers_apart(before, after, ["m"], [Layer(1, is_identity=True)])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("m.layers.0.a", "m.layers.1.a", "m.norm"), True),
        (("m.final_norm", "m.layers.0.a", "m.layers.1.a"), True),
        (("e.m.layers.0.a", "e.norm"), True),
        (("m.layers.0.a", "m.layers.1.a", "m.embedding_norm"), True),
        (("m.embedding_norm", "m.layers.0.norm", "m.layers.1.norm"), False),
        (("m.norm", "m.layers.0.norm", "m.layers.1.norm"), False),
        (("m.layers.0.norm", "m.layers.1.norm", "m.layernorm_embedding"), False),
        (("m.layers.0.norm", "m.layers.1.norm", "head.norm"), False),
    ],
)
def test_a_norm_follows_layers_that_do_not_normalise_their_results(keys: tuple[str, ...], expected: bool) -> None:
    names = [f"{key}.weight" for key in keys]
    kinds = {name: "norm" if "norm" in name else "linear" for name in names}
    network = Network(dict.fromkeys(names, TensorInfo("float32", (2,))), kinds, {})
    path = next(key.partition(".layers.")[0] for key in keys if ".layers." in key) + ".layers"
    assert has_final_norm([path], network) is expected


def test_notes_name_the_final_keys_of_layers(source: Saved, tmp_path: Path) -> None:
    assert final_keys("5 matrices are zeros: model.layers.resized.2.a, b.resized.c") == (
        "5 matrices are zeros: model.layers.2.a, b.c"
    )
    folder = Path(shutil.copytree(source("llama"), tmp_path / "m"))
    state = load_file(folder / "model.safetensors")
    norm = next(key for key in state if key.endswith("layers.0.input_layernorm.weight"))
    state[norm][0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    notes = cs.resize(folder, set={"num_hidden_layers": 1}, layers="first").notes
    assert not [note for note in notes if "resized" in note]
    assert [note for note in notes if norm in note]
