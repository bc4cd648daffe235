"""Recognises the family of a network, such as llama, by the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["family_by_keys"]


class _Family(NamedTuple):
    """A family of networks, recognised by ``marks``: ends of keys that each network of the family has.

    ``name`` is '' if several families have these keys. The other fields are regular expressions; a network with a name
    that they do not match is of another family. ``layer`` matches the beginning of every name inside a layer; the
    layers are the list of modules in the first mark. ``lists`` matches the paths of other lists of layers that networks
    of the family may have, such as an encoder of images beside a language model. ``around`` matches the beginnings of
    the names beside the list of layers, in the module that contains the list; heads are not compared.
    """

    name: str
    marks: tuple[str, ...]
    layer: str = ""
    lists: str = r"(?!)"
    around: str = ""


_ONE = r"(?!bias$|linear\.)"  # a module without a bias, and not in a module of its own
_NORMS = rf"(input|post_attention)_layernorm\.{_ONE}"
_ATTENTION = rf"self_attn\.[qkvo]_proj\.{_ONE}|self_attn\.rotary_emb\."
_BIASED = r"self_attn\.([qkv]_proj\.|o_proj\.(?!bias$)|rotary_emb\.)"
_HEAD_NORMS = rf"self_attn\.[qk]_norm\.{_ONE}"
_MLP = rf"mlp\.(gate|up|down)_proj\.{_ONE}"
_EXPERTS = r"mlp\.(gate\.(?!e_score)|experts\.|switch_mlp\.)"
_GEMMA = rf"(pre|post)_feedforward_layernorm\.{_ONE}"
_SCORED = r"mlp\.(gate|experts|switch_mlp|shared_experts)\."
_LATENT = (
    r"self_attn\.(q_proj|q_a_proj|q_a_layernorm|q_b_proj|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj|"
    r"embed_q|unembed_out|o_proj|rotary_emb)\."
)
_PREDICTOR = r"(eh_proj|enorm|hnorm|embed_tokens|shared_head)\."
_BLOCK = r"(attention|intermediate|output)\.(output\.)?(dense|LayerNorm)\."
_SIDES = r"(encoder|decoder)\.(layers|blocks|block)$"
_AROUND = r"(embed_tokens\.(?!embed_audio)|norm\.|rotary_emb\.)"
_TEXT = r"embeddings\.((word|position|token_type)_embeddings|LayerNorm|position_ids|token_type_ids)"
_IMAGE = r"(embeddings\.(cls_token|mask_token|register_tokens|patch_embeddings|position_embeddings)|layernorm\.)"
_FRAMES = r"(feature_extractor\.conv_layers|adapter\.layers|encoder\.layers|^\.tdnn)$"
_SPARSE = r"block_sparse_moe\.(gate|experts|switch_mlp)\."
_UNET = (
    "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight",
    "mid_block.resnets.0.conv1.weight", "up_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)  # fmt: skip
_THEIR_UNET = (
    "time_embed.0.weight", "input_blocks.0.0.in_layers.0.weight", "middle_block.0.in_layers.0.weight",
    "output_blocks.0.0.in_layers.0.weight", "input_blocks.0.0.transformer_blocks.0.attn2.to_k.weight",
)  # fmt: skip
"""The names of the original code, with 0 in place of each number."""
_Q, _GATE, _AFTER = (
    "layers.0.self_attn.q_proj",
    "layers.0.mlp.gate_proj.weight",
    "layers.0.post_attention_layernorm.weight",
)
_QUERY_NORM = "layers.0.self_attn.q_norm.weight"

FAMILIES = (
    _Family("Whisper", ("encoder.conv2.weight", "decoder.layers.0.encoder_attn_layer_norm.weight"), lists=_SIDES),
    _Family("Whisper", ("encoder.conv2.weight", "decoder.blocks.0.cross_attn.query.weight"), lists=_SIDES),
    _Family("", ("shared.weight", "decoder.layer_norm.weight")),  # mBART, Pegasus, M2M-100
    _Family("BART", ("encoder.layers.0.self_attn.q_proj.bias", "decoder.layers.0.encoder_attn.q_proj.bias",
                     "shared.weight", "decoder.layernorm_embedding.weight"),
            r"self_attn\.([qkv]|out)_proj\.|fc[12]\.|(self_attn|final)_layer_norm\.", _SIDES,
            r"shared\.|(encoder|decoder)\.(embed_tokens|embed_positions|layernorm_embedding)\."),
    _Family("T5", ("encoder.block.0.layer.0.SelfAttention.q.weight",),
            r"layer\.0\.(SelfAttention|EncDecAttention|DenseReluDense|layer_norm)\.", _SIDES,
            r"shared\.|(encoder|decoder)\.(embed_tokens|final_layer_norm)\."),
    _Family("CLIP", ("text_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.class_embedding",
                     "vision_model.pre_layrnorm.weight", "logit_scale"), lists=r"vision_model\.encoder\.layers$"),
    _Family("WavLM", ("encoder.layers.0.attention.gru_rel_pos_linear.weight",), lists=_FRAMES),
    _Family("", ("encoder.pos_conv_embed.layers.0.conv.weight",)),  # data2vec
    _Family("", ("encoder.upsample.projection.weight",)),  # SEW
    _Family("wav2vec 2.0 or HuBERT", ("feature_extractor.conv_layers.0.conv.weight",
                                      "encoder.layers.0.attention.q_proj.weight"), lists=_FRAMES),
    _Family("Stable Diffusion", (*(f"unet.{one}" for one in _UNET), "vae.decoder.conv_in.weight"), lists=""),
    _Family("", ("down_blocks.0.motion_modules.0.proj_in.weight",)),
    _Family("", ("down_blocks.0.temp_attentions.0.proj_in.weight",)),
    _Family("Stable Diffusion's U-Net", _UNET, lists=""),
    _Family("", ("control_model.time_embed.0.weight",)),
    _Family("", ("input_blocks.0.0.time_stack.0.norm1.weight",)),  # Stable Video Diffusion
    _Family("Stable Diffusion", (*(f"model.diffusion_model.{one}" for one in _THEIR_UNET),
                                 "first_stage_model.decoder.conv_in.weight"), lists=""),
    _Family("Stable Diffusion's U-Net", _THEIR_UNET, lists=""),
    _Family("DeepSeek", ("layers.0.self_attn.kv_a_proj_with_mqa.weight", "layers.0.mlp.shared_experts.up_proj.weight"),
            rf"{_LATENT}|{_NORMS}|{_MLP}|{_SCORED}|{_PREDICTOR}", around=_AROUND),
    _Family("GLM-4.5 or dots.llm1", (f"{_Q}.weight", "layers.0.mlp.gate.e_score_correction_bias",
                                     "layers.0.mlp.shared_experts.up_proj.weight"),
            rf"{_BIASED}|{_HEAD_NORMS}|{_NORMS}|{_MLP}|{_SCORED}|{_PREDICTOR}", around=_AROUND),
    _Family("Mixtral", ("layers.0.block_sparse_moe.gate.weight",), rf"{_ATTENTION}|{_NORMS}|{_SPARSE}", around=_AROUND),
    _Family("gpt-oss", ("layers.0.self_attn.sinks", "layers.0.mlp.router.weight"),
            rf"self_attn\.([qkvo]_proj\.|sinks$)|{_NORMS}|mlp\.(router|experts)\.", around=_AROUND),
    _Family("Qwen3-Next", ("layers.0.linear_attn.conv1d.weight", "layers.0.linear_attn.in_proj_qkvz.weight"),
            rf"linear_attn\.|{_ATTENTION}|{_HEAD_NORMS}|{_NORMS}|{_MLP}|{_EXPERTS}|mlp\.shared_expert(_gate)?\.",
            around=_AROUND),
    _Family("Qwen3-MoE or OLMoE", (_QUERY_NORM, "layers.0.mlp.gate.weight", _AFTER),
            rf"{_ATTENTION}|{_HEAD_NORMS}|{_NORMS}|{_MLP}|{_EXPERTS}", around=_AROUND),
    _Family("Qwen2-MoE", (f"{_Q}.bias", "layers.0.mlp.shared_expert.gate_proj.weight"),
            rf"{_BIASED}|{_NORMS}|{_MLP}|{_EXPERTS}|mlp\.shared_expert(_gate)?\.", around=_AROUND),
    _Family("Gemma 3", ("layers.0.post_feedforward_layernorm.weight", "layers.0.pre_feedforward_layernorm.weight",
                        _QUERY_NORM),
            rf"{_ATTENTION}|{_HEAD_NORMS}|{_NORMS}|{_MLP}|{_GEMMA}", r"vision_tower\.", _AROUND),
    _Family("Gemma 2", ("layers.0.post_feedforward_layernorm.weight", "layers.0.pre_feedforward_layernorm.weight"),
            rf"{_ATTENTION}|{_NORMS}|{_MLP}|{_GEMMA}", around=_AROUND),
    _Family("Qwen3", (_QUERY_NORM, "layers.0.input_layernorm.weight", _AFTER, _GATE),
            rf"{_ATTENTION}|{_HEAD_NORMS}|{_NORMS}|{_MLP}", around=_AROUND),
    _Family("Qwen2", (f"{_Q}.bias", _GATE, _AFTER), rf"{_BIASED}|{_NORMS}|{_MLP}", around=_AROUND),
    _Family("Phi-3", ("layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight"),
            rf"self_attn\.(qkv|o)_proj\.{_ONE}|{_NORMS}|mlp\.(gate_up|down)_proj\.{_ONE}", around=_AROUND),
    _Family("Llama", (f"{_Q}.weight", _GATE, "layers.0.input_layernorm.weight", _AFTER),
            rf"{_ATTENTION}|{_NORMS}|{_MLP}", around=_AROUND),
    _Family("Llama", ("layers.0.attention.wq.weight", "layers.0.feed_forward.w3.weight"),
            r"attention\.w[qkvo]\.|feed_forward\.w[123]\.|(attention|ffn)_norm\."),
    _Family("OPT", ("decoder.layers.0.self_attn.q_proj.weight", "decoder.layers.0.fc1.weight",
                    "embed_positions.weight"),
            r"self_attn\.([qkv]|out)_proj\.|fc[12]\.|(self_attn|final)_layer_norm\.",
            around=r"decoder\.(embed_tokens|embed_positions|final_layer_norm|project_in|project_out)\."),
    _Family("GPT-2", ("h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "wpe.weight", "ln_f.bias"),
            r"(attn|mlp|ln_1|ln_2)\."),
    _Family("GPT-NeoX", ("layers.0.attention.query_key_value.weight", "layers.0.mlp.dense_h_to_4h.weight",
                         "embed_in.weight", "layers.0.mlp.dense_h_to_4h.bias")),
    _Family("BLOOM", ("h.0.self_attention.query_key_value.weight", "word_embeddings_layernorm.weight")),
    _Family("Falcon", ("h.0.self_attention.query_key_value.weight", "h.0.mlp.dense_h_to_4h.weight",
                       "word_embeddings.weight")),
    _Family("Mamba 2", ("layers.0.mixer.A_log", "layers.0.mixer.dt_bias"),
            r"mixer\.(A_log|D|dt_bias)$|mixer\.(conv1d|in_proj|out_proj|norm)\.|norm\."),
    _Family("Mamba", ("layers.0.mixer.A_log", "layers.0.mixer.x_proj.weight"),
            r"mixer\.(A_log|D)$|mixer\.(conv1d|in_proj|out_proj|x_proj|dt_proj)\.|norm\."),
    _Family("DistilBERT", ("transformer.layer.0.attention.q_lin.weight",)),
    _Family("DINOv2", ("encoder.layer.0.layer_scale1.lambda1", "encoder.layer.0.attention.attention.query.weight"),
            around=_IMAGE),
    _Family("DINOv2", ("encoder.layer.0.layer_scale1.lambda1", "embeddings.mask_token"), around=_IMAGE),
    _Family("", ("embeddings.distillation_token",)),  # DeiT
    _Family("", ("embeddings.detection_tokens",)),  # YOLOS
    _Family("ViT", ("layers.0.layernorm_before.weight", "layers.0.attention.q_proj.weight", "embeddings.cls_token"),
            r"attention\.([qkvo]|out)_proj\.|mlp\.fc[12]\.|layernorm_(before|after)\.", around=_IMAGE),
    _Family("ViT", ("encoder.layer.0.attention.attention.query.weight", "embeddings.cls_token"),
            rf"attention\.attention\.(query|key|value)\.|{_BLOCK}|layernorm_(before|after)\.", around=_IMAGE),
    _Family("", ("embeddings.x_position_embeddings.weight",)),  # LayoutLM
    _Family("BERT", ("encoder.layer.0.attention.self.query.weight", "embeddings.word_embeddings.weight",
                     "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"),
            rf"attention\.self\.(query|key|value)\.|{_BLOCK}", around=_TEXT),
    _Family("ResNet", ("layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight"), lists=r"layer[234]$"),
)  # fmt: skip
"""A model whose keys have all marks of a family has its names; the first family that fits is used."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_TASK_PARTS = re.compile(r"(^|\.)(\w*heads?|\w*classifier|score|cls|pooler|qa_outputs|mtp\w*|masked_spec_embed)(\.|$)")
"""Matches the names of modules that a task adds: heads, poolers, predictors of further tokens, the mask of pretraining.

Other names are accepted beside the module that has the layers (the quantizer of wav2vec 2.0), but not in it.
"""


def family_by_keys(names: Iterable[str]) -> str:
    """Return the family of networks that uses these names for its weights; '' if it is not known.

    Families with the same names cannot be told apart: a Mistral is a Llama by its keys, and a RoBERTa a BERT. The names
    of all layers are compared, because the first layers may differ from the others.
    """
    found = {_NUMBER.sub("0", name) for name in names}
    ends = {end for name in found for end in _ends(name)}
    for family in FAMILIES:
        if ends.issuperset(family.marks):
            return family.name if _has_no_others(family, found) else ""
    return ""


def _ends(name: str) -> list[str]:
    """Return the endings of a key that begin with one of its segments: "a.b.c", "b.c" and "c" for "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[place:]) for place in range(len(parts))]


def _has_no_others(family: _Family, names: set[str]) -> bool:
    """Return whether every name in ``names`` is one that a network of the family may have.

    ``names`` are all keys of the network, with 0 in place of each number.
    """
    mark = family.marks[0]
    roots = tuple({name.removesuffix(mark) for name in names if f".{name}".endswith(f".{mark}")})
    lists = {f"{root}{mark.partition('.0.')[0]}" for root in roots if ".0." in mark}
    return all(_is_of(family, name, roots, lists) for name in names)


def _is_of(family: _Family, name: str, roots: tuple[str, ...], lists: set[str]) -> bool:
    """Return whether a network of the family may have a tensor with this name.

    ``roots`` are the prefixes of the module that contains the layers, and ``lists`` the paths of its lists of layers.
    """
    path, zero, inner = f".{name}".partition(".0.")
    if path[1:] in lists:
        return re.match(family.layer, inner) is not None
    if _TASK_PARTS.search(name):
        return True
    if zero:
        return re.search(family.lists, path) is not None
    rest = min((name.removeprefix(root) for root in roots if name.startswith(root)), key=len, default="")
    return not rest or re.match(family.around, rest) is not None
