"""The config.json of a model's folder, changed as the weights are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...planning.merge.layers import LayerList
from ...planning.plan.plan import Plan
from ...tensors.dtypes import DTYPES

__all__ = [
    "TIES",
    "UNTIED",
    "declared_layers",
    "has_parts",
    "layer_counts",
    "model_type_of",
    "not_by_layer",
    "untied_by_default",
    "vocabulary_size",
    "with_dtype",
    "with_layers",
]

# Which models of transformers compute with their embedding as output layer if their config.json does not say it.

TIES = "tie_word_embeddings"
UNTIED = frozenset({
    "afmoe", "apertus", "arcee", "bamba", "bitnet", "codegen", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama",
    "doge", "dots1", "exaone4", "falcon_h1", "flex_olmo", "glm", "glm4", "glm4_moe", "gpt_neox", "gpt_oss", "gptj",
    "granite", "granitemoe", "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "jamba", "llama", "llama4_text", "longcat_flash", "mamba2", "minimax", "ministral", "mistral", "mixtral",
    "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "rwkv", "seed_oss", "stablelm",
})  # fmt: skip
"""Model types of language models whose classes have false as default; for most others it is true."""


def model_type_of(config: Mapping[str, Any]) -> str:
    """Return the type of the model that a configuration gives a vocabulary: of its text part, if it has one."""
    text = config.get("text_config")
    found = text.get("model_type") if isinstance(text, dict) else config.get("model_type")
    return found if isinstance(found, str) else ""


def untied_by_default(config: Mapping[str, Any]) -> bool:
    """Whether the class of a configuration's model unties the output layer unless the configuration ties it."""
    return model_type_of(config) in UNTIED


LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "depth",
)  # fmt: skip
"""The names that transformers' configurations have for numbers of layers."""
BY_LAYER = (
    "activation_sparsity_pattern", "attention_layers", "indexer_types", "layer_rope_theta", "layer_types",
    "layers_block_type", "mlp_layer_types", "no_rope_layers", "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
)  # fmt: skip
"""Lists that say something of each layer."""
FIXED = ("architectures",)
"""Lists that say nothing of layers, however many entries they have; nor do those of tokens."""
OF_MODELS = ("float32", "bfloat16", "float16", "float64")
"""What a model can be made in."""
DTYPE = ("dtype", "torch_dtype")
"""What the dtype is called, and was before transformers 4.56."""
_SIDES = {"vision": ("vis", "image"), "audio": ("audio",)}

_Path = tuple[str, ...]


def _counts(config: Mapping[str, Any], above: _Path = ()) -> Iterator[tuple[_Path, int]]:
    for name, value in config.items():
        if name in LAYERS and type(value) is int:
            yield (*above, name), value
        elif isinstance(value, dict) and not above:
            yield from _counts(value, (name,))


def layer_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """Return every number of layers that a configuration gives, for whatever part of the model."""
    return frozenset(value for _, value in _counts(config))


def has_parts(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a model of several parts."""
    return any(name.endswith("_config") and "quant" not in name and isinstance(config[name], dict) for name in config)


def declared_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of layers that the configuration of a model gives, by field; none of a model of several parts.

    The parts leave out what is their class's default, so that a number that is missing there says nothing.
    """
    if has_parts(config):
        return {}
    return {path[0]: value for path, value in _counts(config) if len(path) == 1 and value > 0}


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Return how many rows a configuration gives the vocabulary, 0 where it does not say."""
    text = config.get("text_config")
    said = (config.get("vocab_size"), text.get("vocab_size") if isinstance(text, dict) else None)
    return next((one for one in said if type(one) is int and one > 0), 0)


def with_layers(
    config: Mapping[str, Any], old: LayerList, origins: Sequence[tuple[Mapping[str, Any], int]]
) -> tuple[dict[str, Any], bool]:
    """Return a configuration for a list of layers that came from elsewhere, and whether it says how many there are.

    ``old`` is the list as the configuration knows it; ``origins`` are, for each layer, the configuration of the model
    that it was in and its number there.
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
    """Yield what keeps a configuration from being that of the first ``kept`` layers of a list.

    That is a number of layers that is also the one of ``others``, the further lists of the model, and a list with an
    entry for each layer, or with the number of one that is gone, that nobody knows how to cut.
    """
    paths = [path for path, value in _counts(config) if value == old.count]
    fields = _chosen(paths, old.prefix)
    for other in others:
        theirs = _chosen(paths, other.prefix) if other.prefix != old.prefix and other.count == old.count else ()
        for path in fields:
            if path in theirs:
                yield f"{'.'.join(path)} is that of {other.prefix} too"
    for above in dict.fromkeys([(), *(path[:-1] for path in fields)]):
        inner: Any = config
        for name in above:
            inner = inner[name]
        cut = BY_LAYER if any(path[:-1] == above for path in fields) else ()
        for name, value in inner.items():
            if name not in (*cut, *FIXED) and "token" not in name and _speaks_of_layers(name, value, old.count, kept):
                yield f"{'.'.join((*above, name))} speaks of the layers as they were"


def _speaks_of_layers(name: str, value: Any, count: int, kept: int) -> bool:
    """Whether a list has an entry for each of ``count`` layers, names one from ``kept`` on, or has their number."""
    if not isinstance(value, list):
        return False
    if len(value) == count or any(isinstance(one, list) and _counts_all(one, count) for one in value):
        return True
    numbers = [one for one in value if type(one) is int]
    return any(word in name for word in ("layer", "idx", "ind")) and any(one < 0 or one >= kept for one in numbers)


def _counts_all(value: list[Any], count: int) -> bool:
    return any(one == count and type(one) is int for one in value)


def _of_layer(config: Mapping[str, Any], path: _Path, number: int, known: Sequence[Any]) -> Any:
    """Return what a configuration says of one of its layers; where it says nothing, what the first one says."""
    found: Any = config
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    found = found if isinstance(found, list) and number < len(found) else known
    return found[min(number, len(found) - 1)]


def _chosen(paths: Sequence[_Path], prefix: str) -> Sequence[_Path]:
    """Return the fields that speak of a list: of its side of the model, and of its encoder or decoder."""
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


def with_dtype(config: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], str]:
    """Return a configuration that names the dtype of a plan's weights; where it cannot, and why not, as a note."""
    planned = sorted({step.dtype for step in plan.steps if DTYPES[step.dtype].kind == "float"})
    if len(planned) == 1 and planned[0] in OF_MODELS:
        return _named(config, planned[0], top=True), ""
    said = next((config[name] for name in DTYPE if config.get(name)), OF_MODELS[0])
    note = f"config.json says {said}, which from_pretrained makes of weights that are {' and '.join(planned)} here"
    return dict(config), note if planned else ""


def _named(config: Mapping[str, Any], dtype: str, *, top: bool) -> dict[str, Any]:
    changed = {
        key: _named(value, dtype, top=False) if isinstance(value, dict) else value for key, value in config.items()
    }
    there = [name for name in DTYPE if str(config.get(name)) in DTYPES] or ([DTYPE[0]] if top else [])
    return {**changed, **dict.fromkeys(there, dtype)}
