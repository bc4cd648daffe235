"""Notes on modules that a model type needs but the weights lack: norms, heads, experts, encoder or decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....tensors.quantised.encoding import QuantisedTensors
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from ..codes.logical_tensors import codes_of, plain_tensors
from ..config import TIES, has_parts, untied_by_default
from ..layers.experts import INITIALISED, expert_notes
from .expert_names import expert_name_notes
from .required_parts import required_part_notes, unknown_key_notes
from .row_checks import label_notes
from .shape_checks import DescribedTensor

__all__ = ["part_notes"]

_LLAMA = (
    "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "starcoder2",
)  # fmt: skip
_BERT = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
_T5 = ("mt5", "t5", "umt5")
_BART = ("bart", "marian", "mbart", "pegasus", "whisper")
_SOUND = ("hubert", "wav2vec2", "wavlm")
_ALONE = re.compile(r"(EncoderModel|ForTokenClassification)$")
"""Matches names of classes that have only the encoder of an encoder-decoder type."""
_DECODER = re.compile(r"(ForCausalLM|DecoderModel|Decoder|DecoderWrapper)$")
"""Matches names of classes that have only the decoder of an encoder-decoder type."""
_ENCODER = re.compile(r"(EncoderModel|ForAudioClassification|Encoder)$")
"""Matches names of classes that have only an encoder. ``_ALONE`` matches further names of such classes."""
_EMBEDDING = "the embedding"
_ALWAYS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (_LLAMA, "the last norm", r"(?:\D*\.)?norm\.weight$"),
    (_LLAMA, _EMBEDDING, r"(?:\D*\.)?embed_tokens\."),
    (tuple(one for one in _LLAMA if one != "olmo2"), "input_layernorm", r".*\.\d+\.input_layernorm\."),
    (_LLAMA, "post_attention_layernorm", r".*\.\d+\.post_attention_layernorm\."),
    (("mixtral", "qwen2_moe", "qwen3_moe"), "the router (gate)", r".*\.\d+\.(?:block_sparse_moe|mlp)\.gate\."),
    (("gpt2",), "ln_f", r"(?:\D*\.)?ln_f\."),
    (("gpt2",), _EMBEDDING, r"(?:\D*\.)?wte\."),
    (("gpt2",), "wpe", r"(?:\D*\.)?wpe\."),
    (_BERT, _EMBEDDING, r"(?:\D*\.)?word_embeddings\."),
    (_BERT, "embeddings.LayerNorm", r"(?:\D*\.)?embeddings\.LayerNorm\."),
    (_BERT, "embeddings.position_embeddings", r"(?:\D*\.)?embeddings\.position_embeddings\."),
    (_T5, _EMBEDDING, r"(?:\D*\.)?(?:shared|embed_tokens)\."),
    (_T5, "encoder.final_layer_norm", r"(?:\D*\.)?encoder\.final_layer_norm\."),
    (_T5, "decoder.final_layer_norm", r"(?:\D*\.)?decoder\.final_layer_norm\."),
    (_T5, "EncDecAttention of the decoder", r".*decoder\.block\.\d+\.layer\.1\.EncDecAttention\.q\."),
    (_T5, "relative_attention_bias of the encoder", r".*encoder\.block\.0\..*\.relative_attention_bias\."),
    (("mt5", "t5"), "relative_attention_bias of the decoder", r".*decoder\.block\.0\..*\.relative_attention_bias\."),
    (("whisper",), "encoder.conv1", r"(?:\D*\.)?encoder\.conv1\."),
    (("whisper",), "encoder.conv2", r"(?:\D*\.)?encoder\.conv2\."),
    (("whisper",), "encoder.embed_positions", r"(?:\D*\.)?encoder\.embed_positions\."),
    (("whisper",), "encoder.layer_norm", r"(?:\D*\.)?encoder\.layer_norm\."),
    (("whisper",), "decoder.layer_norm", r"(?:\D*\.)?decoder\.layer_norm\."),
    (("whisper",), "decoder.embed_positions", r"(?:\D*\.)?decoder\.embed_positions\."),
    (_BART, "encoder_attn of the decoder", r".*decoder\.layers\.\d+\.encoder_attn\.q_proj\."),
    (_SOUND, "feature_extractor", r"(?:.*\.)?feature_extractor\.conv_layers\.\d+\."),
    (_SOUND, "feature_projection", r"(?:.*\.)?feature_projection\.projection\."),
    (_SOUND, "encoder.pos_conv_embed", r".*\bpos_conv_embed\."),
)
"""Modules that every model of some types has: (model types, the module's name in messages, pattern of keys)."""
_HEADS: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (_SOUND, "ForCTC", "the output layer", r"lm_head\."),
    (("bert",), "ForMaskedLM", "the output layer (cls.predictions)", r"cls\.predictions\."),
    (("camembert", "roberta", "xlm-roberta"), "ForMaskedLM", "the output layer (lm_head)", r"lm_head\."),
    (("electra",), "ForMaskedLM", "the output layer (generator_predictions)", r"generator_predictions\."),
    (("distilbert",), "ForMaskedLM", "the output layer (vocab_transform)", r"vocab_transform\."),
)
"""Output layers of some classes: (model types, suffix of the class name, name of the layer, pattern of keys)."""
_WHOLE = re.compile(
    r".*\d\.(?:input_layernorm|post_attention_layernorm|ln_1|attention\.output\.LayerNorm|layer\.0\.layer_norm|self_attn_layer_norm|layer_norm"
    r"|sa_layer_norm)\."
)
"""Matches norms in layers. If a state dict has such keys, it is a real model, not a test model or a fragment."""
_MEGATRON = re.compile(r".*\.\d+\.self_attention\.linear_(?:qkv|proj)\.")
"""Matches names of Megatron-core, in whose models other modules have the same names as in transformers."""
_FOUR = re.compile(r"(.*\.\d+\.self_attn\.)([qkvo]|out)_proj\.(?!bias$)")
_QKV = {"q", "k", "v", "o"}


@notes_of(NoteKind.MISSING_TENSORS)
def part_notes(
    tensors: Sequence[DescribedTensor], config: Mapping[str, Any], coded: QuantisedTensors | None = None
) -> Iterator[str]:
    """Yield notes on modules of the model type that the weights lack, and on wrong numbers of layers or experts.

    There are no notes if the configuration refers to custom code (``auto_map``). ``coded`` are the quantised tensors in
    ``tensors``; None to search for them.
    """
    kind, keys = config.get("model_type"), [one.key for one in tensors]
    if config.get("auto_map") or not isinstance(kind, str):
        return
    plain, named = plain_tensors(tensors, config, codes_of(tensors, config) if coded is None else coded)
    yield from expert_name_notes(named, config)
    if has_parts(config):
        yield from required_part_notes(named, config)
        yield from unknown_key_notes(plain, config)
        return
    names = config.get("architectures")
    classes = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
    is_model = any(map(_WHOLE.match, keys)) and not any(map(_MEGATRON.match, keys))
    lacking = [*_lacking(keys, kind, classes, config), *_projections(keys, kind)] if is_model else []
    if lacking:
        found = listing(lacking, 3, where="")
        yield f"every {escape(kind)} model has {found}, but this one does not: {INITIALISED}"
    else:
        yield from required_part_notes(named, config)
    yield from unknown_key_notes(plain, config)
    if is_model:
        yield from _sides(keys, kind, classes, config)
    yield from expert_notes(tensors, config)
    yield from label_notes(tensors, classes, config)


def _lacking(keys: Sequence[str], kind: str, classes: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    tied = config.get(TIES, not untied_by_default(config)) is True
    for kinds, name, pattern in _ALWAYS:
        if kind not in kinds or _is_of_other_side(pattern, classes):
            continue
        may_be_head = name == _EMBEDDING and tied
        found = re.compile(rf"{pattern}|(?:\D*\.)?lm_head\.weight|.*decoder\.weight" if may_be_head else pattern)
        if not any(map(found.match, keys)):
            yield name
    for kinds, end, name, pattern in _HEADS:
        if kind in kinds and classes and classes[0].endswith(end) and not any(re.match(pattern, key) for key in keys):
            yield name


def _is_of_other_side(pattern: str, classes: Sequence[str]) -> bool:
    """Return whether a pattern is for keys of an encoder although ``classes`` have only a decoder, or the reverse.

    ``classes`` are the names in ``architectures``. If there are none, the result is true for every pattern of an
    encoder or a decoder.
    """
    if not classes:
        return "coder" in pattern
    if "decoder" in pattern:
        return any(map(_ENCODER.search, classes)) or any(map(_ALONE.search, classes))
    return "encoder" in pattern and any(map(_DECODER.search, classes))


def _projections(keys: Sequence[str], kind: str) -> Iterator[str]:
    """Yield the name of the attention projection (q, k, v or o) that all layers lack, if they have the other three."""
    if kind not in (*_LLAMA, *_BART):
        return
    found: dict[str, set[str]] = {}
    for key in keys:
        if match := _FOUR.match(key):
            found.setdefault(match[1], set()).add(match[2].replace("out", "o"))
    left = [_QKV - one for one in found.values()]
    if left and all(len(one) == 1 for one in left) and len(set(map(frozenset, left))) == 1:
        yield f"self_attn.{next(iter(left[0]))}_proj"


@notes_of(NoteKind.MISSING_TENSORS)
def _sides(keys: Sequence[str], kind: str, classes: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the encoder or the decoder has another number of layers than the configuration says."""
    if kind not in (*_T5, *_BART) or not classes:
        return
    for side in ("encoder", "decoder"):
        field = f"{side}_layers" if kind in _BART else "num_layers"
        if kind in _T5 and side == "decoder" and config.get("num_decoder_layers") is not None:
            field = "num_decoder_layers"
        declared, pattern = config.get(field), re.compile(rf"(?:.*\.)?{side}\.(?:layers|block)\.(\d{{1,9}})\.")
        if type(declared) is not int or _is_of_other_side(side, classes):
            continue
        numbers = {int(match[1]) for key in keys if (match := pattern.match(key))}
        if len(numbers) != declared or max(numbers, default=-1) >= declared:
            rest = "ignores the others" if len(numbers) > declared else "initialises the others"
            has = f"the {side} has {count(len(numbers), 'layer')}"
            if len(numbers) == declared:
                lost = next(number for number in range(declared) if number not in numbers)
                has, rest = f"the {side} has no layer {lost}", f"initialises it, and ignores layer {max(numbers)}"
            yield f"config.json says {declared} ({field}), but {has}: transformers {rest}"
