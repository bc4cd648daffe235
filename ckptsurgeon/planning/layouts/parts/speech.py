"""Layouts of wav2vec 2.0 and of the networks made of it: the names that they share.

The convolution of positions has a weight norm. Files have torch's older names for it (``weight_g``) or the present ones
(``parametrizations``). transformers 5 and torchaudio 2 write the present names and read both; fairseq has the older
names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..layout import Change, Layout

__all__ = [
    "CORE",
    "LAYERS",
    "MASK",
    "NORMS",
    "Names",
    "in_fairseq",
    "in_speechbrain",
    "in_torchaudio",
    "in_transformers",
    "within",
]

Names = Mapping[str, str]
MASK = "masked_spec_embed"
"""The vector that replaces masked features; only training uses it."""
_CONVOLUTIONS = "feature_extractor.conv_layers.{n}.conv"
NORMS = "feature_extractor.conv_layers.{n}.layer_norm"
"""The norm of each convolution, in networks with ``feat_extract_norm`` "layer"."""
_ONE_NORM = "feature_extractor.conv_layers.0.layer_norm"
"""The only norm of the convolutions, in networks with ``feat_extract_norm`` "group"."""
LAYERS = "encoder.layers.{n}."
CORE: Names = {
    MASK: "mask_emb",
    _CONVOLUTIONS: "feature_extractor.conv_layers.{n}.0",
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    f"{LAYERS}attention.q_proj": f"{LAYERS}self_attn.q_proj",
    f"{LAYERS}attention.k_proj": f"{LAYERS}self_attn.k_proj",
    f"{LAYERS}attention.v_proj": f"{LAYERS}self_attn.v_proj",
    f"{LAYERS}attention.out_proj": f"{LAYERS}self_attn.out_proj",
    f"{LAYERS}layer_norm": f"{LAYERS}self_attn_layer_norm",
    f"{LAYERS}feed_forward.intermediate_dense": f"{LAYERS}fc1",
    f"{LAYERS}feed_forward.output_dense": f"{LAYERS}fc2",
    f"{LAYERS}final_layer_norm": f"{LAYERS}final_layer_norm",
    "encoder.layer_norm": "encoder.layer_norm",
}
"""The modules of wav2vec 2.0 and of all networks made of it: transformers' names, mapped to fairseq's."""
_POSITIONS = "encoder.pos_conv_embed.conv."
_BIAS, _NORM, _DIRECTION = (
    f"{_POSITIONS}{part}" for part in ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")
)
_PRESENT = {one: one for one in (_BIAS, _NORM, _DIRECTION)}
_OLDER = {_BIAS: _BIAS, _NORM: f"{_POSITIONS}weight_g", _DIRECTION: f"{_POSITIONS}weight_v"}
_FAIRSEQ_POSITIONS = dict(
    zip(_OLDER, (f"encoder.pos_conv.0.{part}" for part in ("bias", "weight_g", "weight_v")), strict=True)
)
_FAIRSEQ_NORMS = (
    {_ONE_NORM: "feature_extractor.conv_layers.0.2"},
    {NORMS: "feature_extractor.conv_layers.{n}.2.1"},
)


def within(ours: str, theirs: str, names: Names) -> dict[str, str]:
    """Return ``names`` with prefixes: {``ours`` + name of the family: ``theirs`` + name of the library}."""
    return {f"{ours}{name}": f"{theirs}{spelled}" for name, spelled in names.items()}


def in_transformers(
    name: str, library: str, ours: str, before: str, heads: Names, *, more: Names | None = None,
    training: tuple[str, ...] = (), marks: tuple[str, ...] = (),
) -> list[Layout]:  # fmt: skip
    """Return transformers' layouts, with the older and the present names of the weight norm.

    Their keys begin with ``before``. ``name`` and ``library`` are fields of the layouts; ``training`` and ``marks`` are
    added to these fields. ``ours`` is the prefix of the family's names. ``more`` are further names after this prefix,
    ``heads`` are names without this prefix.
    """
    same = {one: one for one in (*CORE, *(more or {}), _ONE_NORM, NORMS)}
    return [
        Layout(
            name, library, "transformers 5.23.0 and 4.40.2", {**within(ours, before, {**same, **positions}), **heads},
            (f"{before}feature_projection.projection.weight", f"{before}{positions[_DIRECTION]}", *marks),
            training=(f"{before}{MASK}", *training), is_bare=not before,
        )
        for positions in (_PRESENT, _OLDER)
    ]  # fmt: skip


_OF_LAYERS = {"weights": "with which SpeechBrain's WeightedSSLModel sums the layers: other layouts have no such sum"}


def in_speechbrain(ours: str, *, more: Names | None = None, marks: tuple[str, ...] = ()) -> list[Layout]:
    """Return the layouts of SpeechBrain's wrappers, which have a network of transformers without a head as ``model``.

    The arguments are the same as for ``in_transformers``; ``marks`` are names without the prefix ``model.``. The
    wrapper ``WeightedSSLModel`` also has the weights of a sum of all layers:
    https://github.com/speechbrain/speechbrain/blob/develop/speechbrain/integrations/huggingface/weighted_ssl.py.
    """
    marks = tuple(f"model.{mark}" for mark in marks)
    found = in_transformers("speechbrain", "SpeechBrain", ours, "model.", {}, more=more, marks=marks)
    return [replace(one, tested="speechbrain 1.1.2", is_bare=True, aside=_OF_LAYERS) for one in found]


def in_fairseq(
    name: str, library: str, tested: str, ours: str, before: str, heads: Names, *, more: Names | None = None,
    training: tuple[str, ...] = (), marks: tuple[str, ...] = (),
) -> list[Layout]:  # fmt: skip
    """Return fairseq's layouts: with one norm for all convolutions, and with a norm for each.

    The arguments are the same as for ``in_transformers``. In addition, ``tested`` is a field of the layouts. The names
    in ``training`` get the prefix ``before``.
    """
    names = {**CORE, **(more or {}), **_FAIRSEQ_POSITIONS}
    return [
        Layout(
            name, library, tested, {**within(ours, before, {**names, **norms}), **heads},
            (*marks, f"{before}encoder.pos_conv.0.weight_g", f"{before}{spelled.format(n=0)}.weight"),
            training=(f"{before}mask_emb", *(f"{before}{one}" for one in training)),
        )
        for norms in _FAIRSEQ_NORMS
        for spelled in norms.values()
    ]  # fmt: skip


def in_torchaudio(
    ours: str, more: Names, changes: tuple[Change, ...] = (), marks: tuple[str, ...] = ()
) -> list[Layout]:
    """Return torchaudio's layouts, with the older and the present names of the weight norm.

    ``ours`` is the prefix of the family's names. ``more`` are names that replace names in ``CORE`` or are added to
    them; a tensor with the name '' does not exist in torchaudio.
    """
    names = {**{one: one for one in (*CORE, _ONE_NORM, NORMS) if one != MASK}, **more}
    return [
        Layout(
            "torchaudio", "torchaudio", "torchaudio 2.11.0",
            {f"{ours}{name}": _in_encoder(spelled) for name, spelled in {**names, **positions}.items() if spelled}
            | {"lm_head": "aux"},
            ("encoder.feature_projection.projection.weight", _in_encoder(positions[_DIRECTION]), *marks), changes,
        )
        for positions in (_PRESENT, _OLDER)
    ]  # fmt: skip


def _in_encoder(name: str) -> str:
    """Return a name as torchaudio has it inside its encoder: ``encoder.x`` -> ``encoder.transformer.x``."""
    module, _, rest = name.partition(".")
    return {"encoder": f"encoder.transformer.{rest}", "feature_projection": f"encoder.{name}"}.get(module, name)
