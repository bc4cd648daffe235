"""Tensors that every model of a class has, by the table that is recorded from transformers: which are noted, and which are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.weights import required_parts
from ckptsurgeon.api.model_folder.weights.required_parts import TABLE, _of_class, pattern_of, required_part_notes

from ..record_required_parts import line, made_of

transformers = pytest.importorskip("transformers")

WORDS = {"vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **WORDS}
HEADS = {**PLAIN, "num_key_value_heads": 2, "head_dim": 8}
IMAGES = {**{k: v for k, v in PLAIN.items() if k not in WORDS}, "image_size": 32, "patch_size": 8}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 2, "forced_eos_token_id": 2, **WORDS,
}  # fmt: skip
DEEPSEEK = {
    **PLAIN, "num_key_value_heads": 4, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", BART),
    "bert": ("BertForSequenceClassification", PLAIN),
    "clip": ("CLIPModel", {"text_config": PLAIN, "vision_config": IMAGES, "projection_dim": 16}),
    "deepseek": ("DeepseekV3ForCausalLM", DEEPSEEK),
    "gpt-oss": ("GptOssForCausalLM", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llava": (
        "LlavaForConditionalGeneration",
        {"vision_config": {"model_type": "clip_vision_model", **IMAGES}, "text_config": {"model_type": "llama", **HEADS}, "image_token_index": 60},
    ),
    "mamba": ("MambaForCausalLM", MAMBA),
    "neox": ("GPTNeoXForCausalLM", PLAIN),
    "opt": ("OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 32, **{k: v for k, v in PLAIN.items() if k != "intermediate_size"}}),
    "vit": ("ViTForImageClassification", IMAGES),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model, as transformers saves it."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            kind, settings = NETWORKS[name]
            folders[name] = tmp_path_factory.mktemp(name)
            model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**settings))
            model.save_pretrained(folders[name])
        return folders[name]

    return folder


def notes(folder: Path, lacking: str = "", *, renamed: Iterable[tuple[str, str]] = ()) -> list[str]:
    """The notes of inspect on a folder without the tensors that have a text in their key."""
    state = load_file(folder / "model.safetensors")
    left = {key: value for key, value in state.items() if not lacking or lacking not in key}
    assert not lacking or len(left) < len(state)
    for old, new in renamed:
        left = {key.replace(old, new): value for key, value in left.items()}
    Path("net").mkdir()
    save_file(left, "net/model.safetensors")
    Path("net/config.json").write_text((folder / "config.json").read_text())
    return list(cs.inspect("net").notes)


@pytest.mark.parametrize("lacking", ["", "sinks", "down_proj_bias"])
def test_what_is_plain_in_a_quantised_model_is_compared_too(networks: Callable[[str], Path], lacking: str) -> None:
    """gpt-oss as it is published: experts of mxfp4, all else plain."""
    state = load_file(networks("gpt-oss") / "model.safetensors")
    for key in [key for key in state if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = state.pop(key).shape
        state[f"{key}_blocks"] = torch.zeros(experts, rows, columns // 32, 16, dtype=torch.uint8)
        state[f"{key}_scales"] = torch.full((experts, rows, columns // 32), 127, dtype=torch.uint8)
    Path("net").mkdir()
    save_file({key: one for key, one in state.items() if not lacking or lacking not in key}, "net/model.safetensors")
    config = json.loads((networks("gpt-oss") / "config.json").read_text())
    Path("net/config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    found = [note for note in cs.inspect("net").notes if "every GptOssForCausalLM has" in note]
    assert bool(found) == bool(lacking)
    assert all(lacking in note for note in found)


@pytest.mark.costly
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_model_gets_no_note(networks: Callable[[str], Path], name: str) -> None:
    assert not notes(networks(name))


@pytest.mark.parametrize(
    ("name", "lacking", "said"),
    [
        ("bart", "decoder.embed_positions", "every BartForConditionalGeneration has model.decoder.embed_positions.weight, but these weights do not"),
        ("bart", "layernorm_embedding", "model.decoder.layernorm_embedding.weight, model.encoder.layernorm_embedding.bias, and 1 more, but"),
        ("bert", "pooler", "bert.pooler.dense.bias, bert.pooler.dense.weight"),
        ("clip", "text_projection", "text_projection.weight"),
        ("clip", "visual_projection", "visual_projection.weight"),
        ("deepseek", "e_score_correction_bias", "model.layers.*.mlp.gate.e_score_correction_bias"),
        ("deepseek", "model.norm", "model.norm.weight"),
        ("gpt-oss", "sinks", "model.layers.*.self_attn.sinks"),
        ("llava", "vision", "vision_tower"),
        ("llava", "projector", "multi_modal_projector"),
        ("mamba", "A_log", "A_log"),
        ("neox", "final_layer_norm", "gpt_neox.final_layer_norm"),
        ("opt", "k_proj", "model.decoder.layers.*.self_attn.k_proj.weight"),
        ("vit", "cls_token", "vit.embeddings.cls_token"),
    ],
)  # fmt: skip
def test_what_every_model_of_the_class_has_is_noted(
    networks: Callable[[str], Path], name: str, lacking: str, said: str
) -> None:
    found = notes(networks(name), lacking)
    assert any(said in note for note in found), found


@pytest.mark.parametrize("kinds", [["mamba", "mlp"], ["mamba", "attention", "moe"], ["attention", "mlp"]])
def test_a_model_may_lack_the_layers_of_a_kind(kinds: list[str], tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 40, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
        "moe_shared_expert_intermediate_size": 16, "num_nextn_predict_layers": 0,
    }  # fmt: skip
    config = transformers.NemotronHConfig(**sizes, num_hidden_layers=len(kinds), layers_block_type=kinds)
    transformers.NemotronHForCausalLM(config).save_pretrained(tmp_path)
    assert not [note for note in cs.inspect(tmp_path).notes if "every NemotronHForCausalLM has" in note]


@pytest.mark.parametrize("kind", ["recurrent", "attention"])
def test_all_layers_of_a_model_may_be_of_one_kind(kind: str, tmp_path: Path) -> None:
    sizes = {**PLAIN, "num_key_value_heads": 1, "head_dim": 8, "lru_width": 32, "block_types": [kind]}
    transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**sizes)).save_pretrained(tmp_path)
    assert not [note for note in cs.inspect(tmp_path).notes if "every RecurrentGemmaForCausalLM has" in note]


def test_an_embedding_of_the_models_width_is_not_projected(tmp_path: Path) -> None:
    """As in electra-base, while the default configuration, of electra-small, has a projection."""
    sizes = {**PLAIN, "embedding_size": 32}
    config = transformers.ElectraConfig(**sizes)
    transformers.ElectraForMaskedLM(config).save_pretrained(tmp_path)
    assert not [note for note in cs.inspect(tmp_path).notes if "embeddings_project" in note]


def test_names_that_the_class_does_not_have_may_be_the_missing_ones(networks: Callable[[str], Path]) -> None:
    assert not notes(networks("opt"), renamed=[("k_proj", "key")])


def test_code_of_the_folder_and_several_classes_are_not_judged(networks: Callable[[str], Path]) -> None:
    config = json.loads((networks("opt") / "config.json").read_text())
    keys = [key for key in load_file(networks("opt") / "model.safetensors") if "k_proj" not in key]
    assert list(required_part_notes(keys, config))
    assert not list(required_part_notes(keys, {**config, "auto_map": {"AutoModel": "code.Net"}}))
    assert not list(required_part_notes(keys, {**config, "architectures": ["OPTModel", "OPTForCausalLM"]}))
    assert not list(required_part_notes(keys, {**config, "architectures": ["SomeNet"]}))
    assert not list(required_part_notes(keys, {**config, "model_type": "some"}))


def test_a_tied_tensor_may_be_saved_under_any_of_its_names(networks: Callable[[str], Path]) -> None:
    config = json.loads((networks("bart") / "config.json").read_text())
    keys = [key for key in load_file(networks("bart") / "model.safetensors") if key != "model.shared.weight"]
    assert list(required_part_notes(keys, config))
    assert not list(required_part_notes([*keys, "model.decoder.embed_tokens.weight"], config))


def test_a_fragment_is_no_model(networks: Callable[[str], Path]) -> None:
    config = json.loads((networks("opt") / "config.json").read_text())
    assert not list(required_part_notes(["model.decoder.embed_tokens.weight", "lm_head.weight"], config))


def test_an_output_of_one_file_gets_the_note_too(networks: Callable[[str], Path], ckpt: Callable[..., Any]) -> None:
    notes(networks("neox"), "final_layer_norm")
    done = ckpt("convert", "net", "-o", "out.safetensors")
    assert done.code == 0
    assert (
        "every GPTNeoXForCausalLM has gpt_neox.final_layer_norm.bias, gpt_neox.final_layer_norm.weight, but these"
        in " ".join((done.out + done.err).split())
    )


def test_every_line_of_the_table_can_be_read_and_names_its_type() -> None:
    first, *lines = (Path(required_parts.__file__).parent / TABLE).read_text().splitlines()
    assert json.loads(first).keys() == {"transformers"}
    assert len(lines) > 300
    for one in lines:
        found = json.loads(one)
        assert one.startswith(f'{{"type":"{found["type"]}",')
        for name in found["classes"]:
            known, forms, ties = _of_class(one, name)
            assert all(form <= known for form in forms)
            assert known.issuperset(key for tie in ties for key in tie)
            assert all(key == pattern_of(key) for key in known)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["opt", "plbart", "lfm2"])
def test_a_line_is_what_transformers_builds(kind: str) -> None:
    """Of the version that the table names; another may have other classes."""
    first, *lines = (Path(required_parts.__file__).parent / TABLE).read_text().splitlines()
    if json.loads(first)["transformers"] != transformers.__version__:
        pytest.skip(f"the table is of transformers {json.loads(first)['transformers']}")
    (recorded,) = (json.loads(one) for one in lines if one.startswith(f'{{"type":"{kind}",'))
    assert torch.get_default_device() == torch.device("cpu")
    assert line(kind, made_of(kind)) == recorded
