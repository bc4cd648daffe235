"""Changes the config.json of a model as its weights are changed: number of layers, dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...planning.merge.layers import LayerList
from ...planning.plan.plan import Plan
from ...tensors.dtypes import DTYPES
from ...tensors.encodings._find import find_codes
from ...tensors.encodings._settings import quantisation_of
from ...tensors.info import TensorInfo

__all__ = [
    "DTYPE",
    "TIES",
    "UNTIED",
    "declared_layers",
    "float_dtypes",
    "has_parts",
    "layer_counts",
    "model_type_of",
    "not_by_layer",
    "untied_by_default",
    "vocabulary_size",
    "vocabulary_sizes",
    "with_dtype",
    "with_layers",
]

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
"""Types of language models whose ``tie_word_embeddings`` is false by default; for most other types, it is true."""


def model_type_of(config: Mapping[str, Any]) -> str:
    """Return the ``model_type`` of a configuration, or of its ``text_config`` if there is one; '' if it is missing."""
    text = config.get("text_config")
    found = text.get("model_type") if isinstance(text, dict) else config.get("model_type")
    return found if isinstance(found, str) else ""


def untied_by_default(config: Mapping[str, Any]) -> bool:
    """Return whether a model of this type has an untied output layer if ``tie_word_embeddings`` is not set."""
    return model_type_of(config) in UNTIED


LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "depth",
)  # fmt: skip
"""Fields of transformers' configurations with a number of layers."""
BY_LAYER = (
    "activation_sparsity_pattern", "attention_layers", "indexer_types", "layer_rope_theta", "layer_types",
    "layers_block_type", "mlp_layer_types", "no_rope_layers", "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
)  # fmt: skip
"""Fields whose value is a list with one entry for each layer."""
FIXED = ("architectures",)
"""Fields with a list that does not describe layers, even if its length is the number of layers."""
OF_MODELS = ("float32", "bfloat16", "float16", "float64")
"""Dtypes that a transformers model can be created in."""
DTYPE = ("dtype", "torch_dtype")
"""The name of the field with the dtype, and its name before transformers 4.56."""
_SIDES = {"vision": ("vis", "image"), "audio": ("audio",)}

_Path = tuple[str, ...]


def _counts(config: Mapping[str, Any], above: _Path = ()) -> Iterator[tuple[_Path, int]]:
    for name, value in config.items():
        if name in LAYERS and type(value) is int:
            yield (*above, name), value
        elif isinstance(value, dict) and not above:
            yield from _counts(value, (name,))


def layer_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """Return every number of layers that a configuration states, including those in nested configurations."""
    return frozenset(value for _, value in _counts(config))


def has_parts(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration has nested configurations, such as ``text_config`` and ``vision_config``."""
    return any(name.endswith("_config") and "quant" not in name and isinstance(config[name], dict) for name in config)


def declared_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Return each field of a configuration that states a number of layers, with this number.

    The result is empty if there are nested configurations: these may omit the number of layers if it is the default of
    their class, so the result would be incomplete.
    """
    if has_parts(config):
        return {}
    return {path[0]: value for path, value in _counts(config) if len(path) == 1 and value > 0}


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


def with_layers(
    config: Mapping[str, Any], old: LayerList, origins: Sequence[tuple[Mapping[str, Any], int]]
) -> tuple[dict[str, Any], bool]:
    """Return a configuration for a new list of layers, and whether it has a field for the number of layers.

    ``old`` is the list of layers that the configuration describes now. For each new layer, ``origins`` has the
    configuration of the model that the layer comes from, and its index in that model.
    """
    fields = _chosen([path for path, value in _counts(config) if value == old.count], old.prefix)
    changed = dict(config)
    for path in fields:
        inner, above = changed, path[:-1]
        for name in above:
            inner[name] = dict(inner[name])
            inner = inner[name]
        inner[path[-1]] = len(origins)
        for name in BY_LAYER:
            if isinstance(inner.get(name), list) and len(inner[name]) == old.count:
                inner[name] = [_of_layer(one, (*above, name), number, inner[name]) for one, number in origins]
    return changed, bool(fields)


def not_by_layer(config: Mapping[str, Any], old: LayerList, others: Iterable[LayerList], kept: int) -> Iterator[str]:
    """Yield the reasons why a configuration cannot be shortened to the first ``kept`` layers of the list ``old``.

    There are two reasons: the number of these layers is also the number of layers of another list of the model (one of
    ``others``), or an unknown field has an entry for each layer or the index of a removed layer.
    """
    paths = [path for path, value in _counts(config) if value == old.count]
    fields = _chosen(paths, old.prefix)
    for other in others:
        theirs = _chosen(paths, other.prefix) if other.prefix != old.prefix and other.count == old.count else ()
        for path in fields:
            if path in theirs:
                yield f"{'.'.join(path)} is also the number of layers of {other.prefix}"
    for above in dict.fromkeys([(), *(path[:-1] for path in fields)]):
        inner: Any = config
        for name in above:
            inner = inner[name]
        cut = BY_LAYER if any(path[:-1] == above for path in fields) else ()
        for name, value in inner.items():
            if name not in (*cut, *FIXED) and "token" not in name and _is_about_layers(name, value, old.count, kept):
                yield f"{'.'.join((*above, name))} still describes all {old.count} layers"


def _is_about_layers(name: str, value: Any, count: int, kept: int) -> bool:
    """Return whether a field may describe layers: ``count`` is their number, and those from ``kept`` on are removed.

    It may do so if it is a list with ``count`` entries, or has an inner list that contains ``count``. A list of numbers
    with a name such as ``layer_ids`` does so too if it contains the index of a removed layer.
    """
    if not isinstance(value, list):
        return False
    if len(value) == count or any(isinstance(one, list) and _counts_all(one, count) for one in value):
        return True
    numbers = [one for one in value if type(one) is int]
    return any(word in name for word in ("layer", "idx", "ind")) and any(one < 0 or one >= kept for one in numbers)


def _counts_all(value: list[Any], count: int) -> bool:
    return any(one == count and type(one) is int for one in value)


def _of_layer(config: Mapping[str, Any], path: _Path, number: int, known: Sequence[Any]) -> Any:
    """Return entry ``number`` of the list at ``path``, or of the list ``known`` if there is no such list or entry.

    If ``known`` is too short as well, its last entry is returned.
    """
    found: Any = config
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    found = found if isinstance(found, list) and number < len(found) else known
    return found[min(number, len(found) - 1)]


def _chosen(paths: Sequence[_Path], prefix: str) -> Sequence[_Path]:
    """Return the fields in ``paths`` that describe the layers with this key prefix.

    The prefix tells whether the layers are of a vision, audio or text model, and of an encoder or a decoder.
    """
    side = next((name for name, words in _SIDES.items() if any(word in prefix for word in words)), "")
    top = [path for path in paths if len(path) == 1]
    if side:
        paths = [path for path in paths if path[0] == f"{side}_config"] or top
    else:
        paths = [*top, *(path for path in paths if path[0] == "text_config")]
    own = [path for path in paths if "decoder" in path[-1]] if "decoder" in prefix else []
    own = own or [
        path for path in paths if "decoder" not in path[-1] and ("encoder" in prefix or "encoder" not in path[-1])
    ]
    return own or paths


KEPT = re.compile(r"\.DenseReluDense\.wo\.|e_score_correction_bias$|^(?:query_tokens$|qformer\.)")
"""Tensors of T5, DeepSeek and BLIP-2 that transformers keeps in float32, whatever the dtype of the model."""


def float_dtypes(plan: Plan, config: Mapping[str, Any]) -> list[str]:
    """Return the floating-point dtypes in a plan, without those of quantised tensors and scales (no loader casts them).

    Tensors that transformers always keeps in float32 (``_keep_in_fp32_modules``) are ignored too, unless the plan has
    no other floating-point tensors.
    """
    infos = {step.key: TensorInfo(step.dtype, step.shape) for step in plan.steps}
    coded = find_codes(infos, lambda: quantisation_of(config)).by_key
    floats = {key: info.dtype for key, info in infos.items() if key not in coded and DTYPES[info.dtype].kind == "float"}
    cast = {dtype for key, dtype in floats.items() if dtype != "float32" or not KEPT.search(key)}
    return sorted(cast or set(floats.values()))


def with_dtype(config: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], str]:
    """Return a configuration with the dtype of a plan's weights, and a note if it cannot be set, else ''."""
    planned = float_dtypes(plan, config)
    if not planned:
        return dict(config), ""
    if len(planned) == 1 and planned[0] in OF_MODELS:
        return _named(config, planned[0], top=True), ""
    declared = next((config[name] for name in DTYPE if config.get(name)), OF_MODELS[0])
    dtypes = " and ".join(planned)
    note = f"the weights are {dtypes}, but config.json says {declared}: from_pretrained casts them to {declared}"
    return dict(config), note if planned else ""


def _named(config: Mapping[str, Any], dtype: str, *, top: bool) -> dict[str, Any]:
    changed = {
        key: _named(value, dtype, top=False) if isinstance(value, dict) else value for key, value in config.items()
    }
    there = [name for name in DTYPE if str(config.get(name)) in DTYPES] or ([DTYPE[0]] if top else [])
    return {**changed, **dict.fromkeys(there, dtype)}
