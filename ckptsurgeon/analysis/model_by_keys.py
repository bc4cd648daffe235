"""The family and sizes of a model, as its keys and shapes show them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from ..checkpoint.checkpoint import Checkpoint
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors
from .model_summary import ModelSummary, summary_of_metadata, with_weights

__all__ = ["family_by_keys", "summary_of_file", "summary_of_keys"]

MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Whisper", ("encoder.conv2.weight", "decoder.layers.0.encoder_attn.q_proj.weight")),
    ("Whisper", ("encoder.conv2.weight", "decoder.blocks.0.cross_attn.query.weight")),
    ("BART", ("shared.weight", "decoder.layers.0.encoder_attn.q_proj.weight")),
    ("T5", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("CLIP", ("text_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.patch_embedding.weight")),
    ("WavLM", ("encoder.layers.0.attention.gru_rel_pos_linear.weight",)),
    ("wav2vec 2.0", ("feature_extractor.conv_layers.0.conv.weight", "encoder.layers.0.attention.q_proj.weight")),
    ("Stable Diffusion's U-Net", ("down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight")),
    ("DeepSeek", ("layers.0.self_attn.kv_a_proj_with_mqa.weight",)),
    ("Mixtral", ("layers.0.block_sparse_moe.gate.weight",)),
    ("gpt-oss", ("layers.0.self_attn.sinks", "layers.0.mlp.router.weight")),
    ("Qwen3-MoE", ("layers.0.self_attn.q_norm.weight", "layers.0.mlp.experts.0.gate_proj.weight")),
    ("Qwen2-MoE", ("layers.0.mlp.shared_expert.gate_proj.weight",)),
    ("Gemma 3", ("layers.0.pre_feedforward_layernorm.weight", "layers.0.self_attn.q_norm.weight")),
    ("Gemma 2", ("layers.0.pre_feedforward_layernorm.weight", "layers.0.mlp.gate_proj.weight")),
    ("Qwen3", ("layers.0.self_attn.q_norm.weight", "layers.0.input_layernorm.weight", "layers.0.mlp.up_proj.weight")),
    ("Qwen2", ("layers.0.self_attn.q_proj.bias", "layers.0.mlp.gate_proj.weight")),
    ("Phi-3", ("layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight")),
    ("Llama", ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight")),
    ("Llama", ("layers.0.attention.wq.weight", "layers.0.feed_forward.w3.weight")),
    ("OPT", ("decoder.layers.0.self_attn.q_proj.weight", "decoder.layers.0.fc1.weight", "embed_positions.weight")),
    ("GPT-2", ("h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight")),
    ("GPT-NeoX", ("layers.0.attention.query_key_value.weight", "layers.0.mlp.dense_h_to_4h.weight")),
    ("BLOOM", ("word_embeddings_layernorm.weight", "h.0.self_attention.query_key_value.weight")),
    ("Falcon", ("h.0.self_attention.query_key_value.weight", "h.0.mlp.dense_h_to_4h.weight")),
    ("Mamba", ("layers.0.mixer.A_log", "layers.0.mixer.in_proj.weight")),
    ("DistilBERT", ("transformer.layer.0.attention.q_lin.weight",)),
    ("DINOv2", ("encoder.layer.0.attention.attention.query.weight", "encoder.layer.0.layer_scale1.lambda1")),
    ("DINOv2", ("embeddings.mask_token", "encoder.layer.0.layer_scale1.lambda1")),
    ("ViT", ("embeddings.cls_token", "layers.0.attention.q_proj.weight", "layers.0.layernorm_before.weight")),
    ("ViT", ("embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight")),
    ("BERT", ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight")),
    ("ResNet", ("layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight")),
)
"""(family, endings of keys): a model whose keys have all of these endings has the names of this family.

The first entry that fits is used.
"""
OTHERS = ("lora_", "hada_", "lokr_", "exp_avg")
"""Parts of the keys of adapters and of the states of optimizers, which are not networks."""
NORM = re.compile(r"(^|[._])(ln|norm|layernorm|layer_norm)|norm\d*\.", re.IGNORECASE)
NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def summary_of_file(checkpoint: Checkpoint, codes: QuantisedTensors) -> ModelSummary | None:
    """Return what the metadata of a file (GGUF, whisper.cpp) or, if there is none, its keys show of a model.

    ``codes`` are the quantised tensors of the checkpoint. The result is None if keys and shapes show no network.
    """
    found = summary_of_metadata(checkpoint.format, checkpoint.metadata)
    if found is None:
        found = summary_of_keys(checkpoint, (*checkpoint, *checkpoint.codes.names.values()))
    return None if found is None else with_weights(found, checkpoint, checkpoint.ties, codes)


def family_by_keys(names: Iterable[str]) -> str:
    """Return the family of networks that uses these names for its weights; '' if it is not known.

    Families with the same names cannot be told apart: a Mistral is a Llama by its keys, and a RoBERTa a BERT.
    """
    first = [name for name in names if all(number == "0" for number in NUMBER.findall(name)) or "layer1." in name]
    ends = {end for name in first for end in _endings(name)}
    return next((family for family, marks in MARKS if all(mark in ends for mark in marks)), "")


def _endings(name: str) -> list[str]:
    """Return a key, and what is left of it without its first names, one after the other."""
    parts = name.split(".")
    return [".".join(parts[place:]) for place in range(len(parts))]


def summary_of_keys(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> ModelSummary | None:
    """Return the family, the number of layers and the width that keys and shapes show; None if they show no network.

    ``names`` are the names of the weights: the keys, with those of quantised weights. The layers are the longest list
    of modules, if it has over half of the tensors; with a decoder, the lists of encoder and decoder.
    """
    if any(mark in key for key in tensors for mark in OTHERS):
        return None
    name, lists = family_by_keys(names), _lists(tensors)
    main = max(lists, key=lambda path: (len(lists[path].keys), path), default="")
    sides = [main.replace("decoder", "encoder"), main.replace("encoder", "decoder")]
    chosen = [lists[path] for path in dict.fromkeys(sides) if path in lists]
    layers = [len(one.numbers) for one in chosen]
    keys = [key for one in chosen for key in one.keys]
    if 2 * len(keys) <= len(tensors):
        return ModelSummary(name, is_by_keys=True) if name else None
    if not name and max(layers) < 2:
        return None
    decoders = layers[1] if len(layers) > 1 else None
    return ModelSummary(name, layers[0], decoders, _width(tensors, keys), is_by_keys=True)


class _Modules:
    """A list of modules: the numbers of its modules, and the keys of its tensors."""

    def __init__(self) -> None:
        self.numbers: set[str] = set()
        self.keys: list[str] = []


def _lists(keys: Iterable[str]) -> dict[str, _Modules]:
    """Return the lists of modules of a state dict, by their paths."""
    found: dict[str, _Modules] = defaultdict(_Modules)
    for key in keys:
        match = NUMBER.search(key)
        if match is not None and match.start():
            one = found[key[: match.start()]]
            one.numbers.add(match[1])
            one.keys.append(key)
    return dict(found)


def _width(tensors: Mapping[str, TensorInfo], keys: Iterable[str]) -> int | None:
    """Return the size that most norms of layers have; None if the layers have no norms."""
    sizes = [tensors[key].shape for key in keys if NORM.search(key)]
    found = Counter(shape[0] for shape in sizes if len(shape) == 1)
    return max(found, key=lambda size: (found[size], size), default=None)
