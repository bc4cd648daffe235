"""Rules for the shapes of image encoders, some of them with a text encoder or a language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .fields import Fields, Shape, rules

__all__ = ["CLIP", "LLAVA", "SIGLIP", "VIT", "images"]


def _patches(c: Fields, above: str = "") -> int:
    return (c[f"{above}image_size"] // c[f"{above}patch_size"]) ** 2


def _patch(c: Fields, above: str = "") -> Shape:
    size = c[f"{above}patch_size"]
    return c[f"{above}hidden_size"], c.get(f"{above}num_channels", 3), size, size


def images(prefix: str, above: str, more: int) -> dict[str, Callable[[Fields, int], Shape]]:
    """Return the rules of an image encoder whose tensor names begin with ``prefix``.

    ``above`` is the prefix of its fields in config.json (``vision_config.``, or ''). ``more`` is the number of
    positions in addition to those of the patches, such as 1 for a class token.
    """
    positions = f"{prefix}embeddings.position_embedding.weight"
    return {
        f"{prefix}embeddings.patch_embedding.weight": lambda c, _: _patch(c, above),
        f"{prefix}embeddings.class_embedding": lambda c, _: (c[f"{above}hidden_size"],),
        positions: lambda c, _: (_patches(c, above) + more, c[f"{above}hidden_size"]),
        f"{prefix}post_layernorm.weight {prefix}pre_layrnorm.weight": lambda c, _: (c[f"{above}hidden_size"],),
        **_layers(prefix, above),
    }


def _layers(prefix: str, above: str) -> dict[str, Callable[[Fields, int], Shape]]:
    """Return the rules of the layers of an image or text encoder.

    The names of the encoder's tensors begin with ``prefix``, and those of its fields in config.json with ``above``.
    """
    layer = f"{prefix}encoder.layers.#."
    projections = " ".join(f"{layer}self_attn.{one}_proj.weight" for one in ("q", "k", "v", "out"))
    return {
        projections: lambda c, _: (c[f"{above}hidden_size"], c[f"{above}hidden_size"]),
        f"{layer}layer_norm1.weight {layer}layer_norm2.weight": lambda c, _: (c[f"{above}hidden_size"],),
        f"{prefix}encoder.layers.#.mlp.fc1.weight": (
            lambda c, _: (c[f"{above}intermediate_size"], c[f"{above}hidden_size"])
        ),
        f"{prefix}encoder.layers.#.mlp.fc2.weight": (
            lambda c, _: (c[f"{above}hidden_size"], c[f"{above}intermediate_size"])
        ),
    }


_VISION, _TEXT = "vision_config.", "text_config."
_TEXTS: Mapping[str, Callable[[Fields, int], Shape]] = {
    "text_model.embeddings.token_embedding.weight": (lambda c, _: (c[f"{_TEXT}vocab_size"], c[f"{_TEXT}hidden_size"])),
    "text_model.embeddings.position_embedding.weight": (
        lambda c, _: (c[f"{_TEXT}max_position_embeddings"], c[f"{_TEXT}hidden_size"])
    ),
    "text_model.final_layer_norm.weight": lambda c, _: (c[f"{_TEXT}hidden_size"],),
    **_layers("text_model.", _TEXT),
}
CLIP = rules({
    **images("vision_model.", _VISION, 1),
    **_TEXTS,
    "visual_projection.weight": lambda c, _: (c["projection_dim"], c[f"{_VISION}hidden_size"]),
    "text_projection.weight": lambda c, _: (c["projection_dim"], c[f"{_TEXT}hidden_size"]),
})  # fmt: skip
SIGLIP = rules({**images("vision_model.", _VISION, 0), **_TEXTS})
VIT = rules({
    "embeddings.patch_embeddings.projection.weight": lambda c, _: _patch(c),
    "embeddings.cls_token": lambda c, _: (1, 1, c["hidden_size"]),
    "embeddings.position_embeddings": lambda c, _: (1, _patches(c) + 1, c["hidden_size"]),
})  # fmt: skip


def _feature_layers(c: Fields) -> int:
    """Return the number of layers of the image encoder whose outputs LLaVA concatenates as input of its projector."""
    found = c.says("vision_feature_layer")
    return len(found) if isinstance(found, list) else 1


LLAVA = rules({
    "multi_modal_projector.linear_1.weight": (
        lambda c, _: (c[f"{_TEXT}hidden_size"], c[f"{_VISION}hidden_size"] * _feature_layers(c))
    ),
    "multi_modal_projector.linear_2.weight": lambda c, _: (c[f"{_TEXT}hidden_size"], c[f"{_TEXT}hidden_size"]),
    "multi_modal_projector.linear_1.bias multi_modal_projector.linear_2.bias": lambda c, _: (c[f"{_TEXT}hidden_size"],),
    "lm_head.weight": lambda c, _: (None, c[f"{_TEXT}hidden_size"]),
    "layers.#.mlp.gate_proj.weight layers.#.mlp.up_proj.weight": lambda c, _: (None, c[f"{_TEXT}hidden_size"]),
    "layers.#.mlp.down_proj.weight": lambda c, _: (c[f"{_TEXT}hidden_size"], None),
    **_layers("", _VISION),
})  # fmt: skip
