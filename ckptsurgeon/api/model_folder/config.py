"""Reads numbers of layers, sizes and ties in the config.json of a model, and sets its dtype."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...planning.computed_buffers import COMPUTED
from ...tensors.dtypes import DTYPES
from ...tensors.find_codes import find_codes
from ...tensors.info import TensorInfo
from ...tensors.quantised.settings import quantisation_of

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = [
    "AFTER_PADDING",
    "DTYPE",
    "PADDING",
    "TIED",
    "TIES",
    "UNTIED",
    "Path",
    "cast_note",
    "counted_layers",
    "declared_layers",
    "float_dtypes",
    "has_parts",
    "layer_counts",
    "model_type_of",
    "tied_by_default",
    "untied_by_default",
    "vocabulary_size",
    "vocabulary_sizes",
    "with_dtype",
]

PADDING = "pad_token_id"
AFTER_PADDING = frozenset((
    "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "ibert", "layoutlmv3", "lilt",
    "longformer", "luke", "m2m_100", "markuplm", "nllb-moe", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
))  # fmt: skip
"""Model types that number positions from ``pad_token_id`` + 1: a wrong id gives each token a wrong position."""

# Whether a model of transformers uses its embedding as output layer if config.json lacks ``tie_word_embeddings``.

TIES = "tie_word_embeddings"
UNTIED = frozenset({
    "afmoe", "apertus", "arcee", "bamba", "bitnet", "codegen", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama",
    "doge", "dots1", "exaone4", "falcon_h1", "flex_olmo", "glm", "glm4", "glm4_moe", "gpt_neox", "gpt_oss", "gptj",
    "granite", "granitemoe", "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "jamba", "llama", "llama4_text", "longcat_flash", "mamba2", "minimax", "ministral", "mistral", "mixtral",
    "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "rwkv", "seed_oss", "stablelm",
})  # fmt: skip
"""Types of language models whose ``tie_word_embeddings`` is false by default. In most other types, it is true."""

TIED = frozenset({
    "bloom", "cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "falcon", "falcon_mamba", "gemma", "gemma2",
    "gemma3_text", "gemma3n_text", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "jetmoe", "lfm2", "lfm2_moe", "mamba",
    "minicpm3", "modernbert-decoder", "mpt", "openai-gpt", "opt", "recurrent_gemma", "smollm3", "starcoder2",
    "vaultgemma", "xglm", "zamba", "zamba2",
})  # fmt: skip
"""Types of language models whose ``tie_word_embeddings`` is known to be true by default."""


def model_type_of(config: Mapping[str, Any]) -> str:
    """Return the ``model_type`` of a configuration, or of its ``text_config`` if there is one; '' if it is missing."""
    text = config.get("text_config")
    found = text.get("model_type") if isinstance(text, dict) else config.get("model_type")
    return found if isinstance(found, str) else ""


def untied_by_default(config: Mapping[str, Any]) -> bool:
    """Return whether a model of this type has an untied output layer if ``tie_word_embeddings`` is not set."""
    return model_type_of(config) in UNTIED


def tied_by_default(config: Mapping[str, Any]) -> bool:
    """Return whether a model of this type uses its embedding as output layer if ``tie_word_embeddings`` is not set."""
    return model_type_of(config) in TIED


LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "depth",
)  # fmt: skip
"""Fields of transformers' configurations that contain a number of layers."""
OF_MODELS = ("float32", "bfloat16", "float16", "float64")
"""Dtypes that a transformers model can be created in."""
DTYPE = ("dtype", "torch_dtype")
"""The name of the field with the dtype, and its name before transformers 4.56."""
Path = tuple[str, ...]
"""The path of a field: the names of the sections that contain it, the outermost first, then its own name."""


def counted_layers(config: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, int]]:
    """Yield (path of a field, number of layers) for each field of a configuration that states such a number.

    Fields of nested configurations are included. ``above`` is the path of ``config`` if it is nested itself.
    """
    for name, value in config.items():
        if name in LAYERS and type(value) is int:
            yield (*above, name), value
        elif isinstance(value, dict) and not above:
            yield from counted_layers(value, (name,))


def layer_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """Return every number of layers that a configuration states, including those in nested configurations."""
    return frozenset(value for _, value in counted_layers(config))


def has_parts(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration has nested configurations, such as ``text_config`` and ``vision_config``."""
    return any(name.endswith("_config") and "quant" not in name and isinstance(config[name], dict) for name in config)


def declared_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Return {field: number of layers} for each field of a configuration that states such a number.

    The result is empty if there are nested configurations: these may omit the number of layers if it is the default of
    their class, so the result would be incomplete.
    """
    if has_parts(config):
        return {}
    return {path[0]: value for path, value in counted_layers(config) if len(path) == 1 and value > 0}


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Return the vocabulary size that a configuration states; 0 if it states none.

    The size in a nested ``decoder`` is used only if the encoder has no tokens, as in TrOCR. If both have tokens, they
    may have different vocabularies.
    """
    parts = (config, *(one if isinstance(one := config.get(name), dict) else {} for name in ("text_config", "decoder")))
    encoder = config.get("encoder")
    sizes = [part.get("vocab_size") for part in (parts if _reads_no_text(encoder) else parts[:2])]
    return next((one for one in sizes if type(one) is int and one > 0), 0)


def _reads_no_text(encoder: Any) -> bool:
    return isinstance(encoder, dict) and "vocab_size" not in encoder


def vocabulary_sizes(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield every vocabulary size that a configuration states, including those of nested configurations."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from vocabulary_sizes(value)
        elif type(value) is int and "vocab" in name:
            yield value


KEPT = re.compile(r"\.DenseReluDense\.wo\.|e_score_correction_bias$|^(?:query_tokens$|qformer\.)")
"""Matches tensors of T5, DeepSeek and BLIP-2 that transformers keeps in float32, whatever the dtype of the model."""


def float_dtypes(plan: Plan, config: Mapping[str, Any]) -> list[str]:
    """Return the floating-point dtypes in a plan, without those of quantised tensors and scales (no loader casts them).

    Buffers that a model computes, such as ``inv_freq``, are ignored, too. Tensors that transformers always keeps in
    float32 (``_keep_in_fp32_modules``) are ignored if the plan has other floating-point tensors.
    """
    infos = {step.key: TensorInfo(step.dtype, step.shape) for step in plan.steps if not COMPUTED.search(step.key)}
    coded = find_codes(infos, lambda: quantisation_of(config)).by_key
    floats = {key: info.dtype for key, info in infos.items() if key not in coded and DTYPES[info.dtype].kind == "float"}
    cast = {dtype for key, dtype in floats.items() if dtype != "float32" or not KEPT.search(key)}
    return sorted(cast or set(floats.values()))


def with_dtype(config: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], str]:
    """Return (configuration with the dtype of a plan's weights, note if this dtype cannot be set, else '')."""
    planned = float_dtypes(plan, config)
    if not planned:
        return dict(config), ""
    if len(planned) == 1 and planned[0] in OF_MODELS:
        return _named(config, planned[0], top=True), ""
    return dict(config), cast_note(planned, config)


def cast_note(dtypes: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return the note that ``from_pretrained`` casts weights of these ``dtypes`` to another one."""
    declared = next((config[name] for name in DTYPE if config.get(name)), "")
    said = f"config.json says {declared}" if declared else f"config.json has no field {DTYPE[0]}"
    to = declared or "one dtype, which depends on the version of transformers"
    return f"the weights are {' and '.join(dtypes)}, but {said}: from_pretrained casts them to {to}"


def _named(config: Mapping[str, Any], dtype: str, *, top: bool) -> dict[str, Any]:
    changed = {
        key: _named(value, dtype, top=False) if isinstance(value, dict) else value for key, value in config.items()
    }
    there = [name for name in DTYPE if str(config.get(name)) in DTYPES] or ([DTYPE[0]] if top else [])
    return {**changed, **dict.fromkeys(there, dtype)}
