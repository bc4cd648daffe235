"""The text encoders of Stable Diffusion: their names in diffusers (as in transformers) and in the original code."""

from __future__ import annotations

from dataclasses import dataclass

from ..changes import Transposed
from ..layout import Change, Tensors
from .clip import TEXT, TEXT_LAYER, joined

__all__ = ["SDXL", "SD_1", "SD_2", "TextEncoder", "encoders_in", "their_encoders_in", "without_wrapper"]

_FIRST, _SECOND = "text_encoder.", "text_encoder_2."
_WRAPPER = "text_model."
_TOKENS = "embeddings.token_embedding.weight"
_PROJECTION = "text_projection.weight"
_LAST = "23"
"""The last layer of Stable Diffusion 2's text encoder."""
_BEHIND = "which diffusers does not have: Stable Diffusion 2 uses the output of the layer before"
_COMPARED = "which only a comparison of texts and images uses"


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder: the prefix of its keys in diffusers (``ours``), and in the original code (``theirs``).

    If ``is_open`` is true, the original code names the tensors as open_clip and OpenAI do; otherwise it names them as
    transformers does.
    """

    ours: str
    theirs: str
    is_open: bool

    def names(self) -> dict[str, str]:
        """Return a map from diffusers' names to the original code's, without matrices that this code joins into one."""
        if not self.is_open:
            return {f"{self.ours}{name}": f"{self.theirs}{name}" for name in (*self._own, *_PARTS)}
        return {f"{self.ours}{name}": f"{self.theirs}{TEXT[name]}" for name in self._own}

    def parts(self) -> list[str]:
        """Return diffusers' names of the modules that the original code joins into one."""
        return [f"{self.ours}{name}" for name in _PARTS] if self.is_open else []

    def changes(self) -> tuple[Change, ...]:
        """Return the changes that the original code needs besides new names: it joins or transposes matrices."""
        if not self.is_open:
            return ()
        attention = joined(f"{self.ours}{TEXT_LAYER}", f"{self.theirs}transformer.resblocks.{{n}}")
        return (*attention, *([Transposed(f"{self.ours}{_PROJECTION}")] if _PROJECTION in self._own else []))

    def computed(self) -> list[str]:
        """Return the keys, in the original code, of tensors that it computes itself, such as position ids."""
        ids = f"{self.theirs}{_WRAPPER}embeddings.position_ids"
        return [f"{self.theirs}attn_mask"] if self.is_open else [ids, without_wrapper(ids)]

    def aside(self) -> dict[str, str]:
        """Return {pattern of tensors of the original code that diffusers does not need: the reason}.

        The last layer has two patterns: one for its own tensors, and one for the matrices into which its fused matrix
        is split.
        """
        outer = self.theirs[:-1].rpartition(".")[0]
        scale = dict.fromkeys((f"{self.theirs}logit_scale", f"{outer}.logit_scale"), _COMPARED)
        if self.ours == _SECOND:
            return scale
        scale[f"{self.theirs}{'text_projection' if self.is_open else _PROJECTION}"] = _COMPARED
        if not self.is_open:
            return scale
        ours = f"{self.ours}{TEXT_LAYER}".replace("{n}", _LAST)
        return {**scale, f"{self.theirs}transformer.resblocks.{_LAST}": _BEHIND, ours: _BEHIND}

    @property
    def last_norm(self) -> str:
        """Diffusers' name of the norm after the last layer."""
        return f"{self.ours}{_WRAPPER}final_layer_norm"

    @property
    def matrices(self) -> list[str]:
        """Diffusers' names of modules outside the layers that have a weight and no bias."""
        found = [name.removesuffix(".weight") for name in self._own if "embeddings" in name or name == _PROJECTION]
        return [f"{self.ours}{name}" for name in found]

    @property
    def token(self) -> str:
        """The key of the embedding of tokens in diffusers."""
        return f"{self.ours}{_WRAPPER}{_TOKENS}"

    @property
    def their_token(self) -> str:
        """The key of the embedding of tokens in the original code."""
        return f"{self.theirs}{'token_embedding.weight' if self.is_open else f'{_WRAPPER}{_TOKENS}'}"

    @property
    def _own(self) -> list[str]:
        """The names of the encoder's tensors without prefix.

        Only the second text encoder of a pipeline has a text projection.
        """
        return [name for name in TEXT if name != _PROJECTION or self.ours == _SECOND]


_PARTS = tuple(f"{TEXT_LAYER}.self_attn.{kind}_proj" for kind in "qkv")
SD_1 = (TextEncoder(_FIRST, "cond_stage_model.transformer.", is_open=False),)
SD_2 = (TextEncoder(_FIRST, "cond_stage_model.model.", is_open=True),)
SDXL = (
    TextEncoder(_FIRST, "conditioner.embedders.0.transformer.", is_open=False),
    TextEncoder(_SECOND, "conditioner.embedders.1.model.", is_open=True),
)
_REFINER = (TextEncoder(_SECOND, "conditioner.embedders.0.model.", is_open=True),)


def without_wrapper(name: str) -> str:
    """Return the name that a tensor of the first text encoder has since transformers 5.6: without ``text_model.``.

    The second text encoder, which has a projection, still has this prefix.
    """
    return name.replace(_WRAPPER, "", 1) if not name.startswith((_SECOND, SDXL[1].theirs)) else name


def their_encoders_in(tensors: Tensors) -> tuple[TextEncoder, ...]:
    """Return the text encoders of an original all-in-one file."""
    for encoders in (SD_1, SD_2, SDXL, _REFINER):
        tokens = [one.their_token for one in encoders]
        if all(token in tensors or without_wrapper(token) in tensors for token in tokens):
            return encoders
    return ()


def encoders_in(tensors: Tensors, projection: str) -> tuple[TextEncoder, ...]:
    """Return the text encoders of a pipeline of diffusers, with their names in the original code.

    ``projection`` is the key of a weight next to an attention of the U-Net. In Stable Diffusion 2, which has
    open_clip's encoder, it is the weight of a linear layer; in version 1, of a convolution.
    """
    first, second = (
        f"{one}{_WRAPPER}{_TOKENS}" in tensors or f"{one}{_TOKENS}" in tensors for one in (_FIRST, _SECOND)
    )
    if second:
        return SDXL if first else _REFINER
    is_linear = projection in tensors and len(tensors[projection].shape) == 2
    return (SD_2 if is_linear else SD_1) if first else ()
