"""Finds which part of a transformer block a module is (queries, the gate of an MLP, a norm), by the module's name.

The same name can mean different parts. ``w1`` is the gate of an MLP that also has a ``w3``, otherwise its first layer;
``post_attention_layernorm`` is the norm before the MLP, except in blocks that have four norms. So the names of
neighbouring modules are used, too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

__all__ = ["NOTHING", "Parts", "agree", "parts_of"]

Parts = frozenset[str]
"""The set of parts of a transformer block that a module may be; empty if its name is unknown."""

NOTHING: Parts = frozenset()
FIRST: Parts = frozenset({"gate", "up"})
"""The first layer of an MLP without a gate, which corresponds to no single layer of an MLP with a gate."""

_ATTENTION = re.compile(r"attn|attention|^att$|^mha$", re.I)
_CROSS = re.compile(r"^encoder_att|cross_?att|encdecatt|^src_att", re.I)
_NUMBERED = re.compile(r"att(n|ention)_?\d$", re.I)
_MLP = re.compile(r"mlp|ffn|feed_?forward|densereludense|expert|(^|_)moe(_|$)|^ff$", re.I)
_NUMBER = re.compile(r"\d{1,9}")


def _table(rows: Mapping[str, str]) -> dict[str, Parts]:
    return {name: frozenset({part}) for part, names in rows.items() for name in names.split()}


_IN_ATTENTION = _table({
    "q": "q query q_proj wq to_q q_lin linear_q query_proj q_linear",
    "k": "k key k_proj wk to_k k_lin linear_k key_proj k_linear",
    "v": "v value v_proj wv to_v v_lin linear_v value_proj v_linear",
    "out": "o out o_proj out_proj wo out_lin linear_out to_out proj c_proj dense output",
})  # fmt: skip
_ANYWHERE = _table({
    "q": "q_proj attn_q wq", "k": "k_proj attn_k wk", "v": "v_proj attn_v wv", "out": "attn_output o_proj",
    "qkv": "query_key_value c_attn in_proj qkv qkv_proj Wqkv wqkv attn_qkv",
    "gate": "gate_proj ffn_gate wi_0", "up": "wi_1", "gate and up": "gate_up_proj",
    "down": "down_proj ffn_down fc2 dense_4h_to_h linear2 w_2 lin2 output_dense fc_out",
    "router": "ffn_gate_inp router",
    "embedding": "tok_embeddings embed_tokens token_embd wte word_embeddings embed_in token_embedding",
    "head": "lm_head embed_out output_layer",
})  # fmt: skip
_FIRST = ("fc1", "c_fc", "dense_h_to_4h", "linear1", "w_1", "wi", "lin1", "intermediate_dense", "fc_in")
_ANYWHERE |= dict.fromkeys(_FIRST, FIRST)
_IN_MLP = _table({"down": "wo c_proj 2"}) | {"0": FIRST}
_NORMS = _table({
    "norm of attention": "input_layernorm attention_norm attn_norm sa_norm attn_ln ln_attn self_attn_layer_norm "
    "sa_layer_norm layernorm_before norm_mha ln_1 ln1 norm1 norm_1 layer_norm1",
    "norm of cross attention": "encoder_attn_layer_norm cross_attn_ln",
    "norm of mlp": "ffn_norm mlp_norm mlp_ln ln_mlp final_layer_norm output_layer_norm pre_feedforward_layernorm "
    "layernorm_after norm_ff ln_2 ln2 norm2 norm_2 layer_norm2 norm3",
    "norm after attention": "post_attention_layernorm post_attention_norm",
    "norm after mlp": "post_feedforward_layernorm post_ffw_norm",
})  # fmt: skip
_FURTHER_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}


def parts_of(keys: Iterable[str]) -> dict[str, Parts]:
    """Return {key: the parts of a transformer block that the key's module may be}, judged by the names of modules.

    The set of parts is empty if the name is not known.
    """
    neighbours = _Neighbours(keys)
    return {key: neighbours.part(module) for key, module in neighbours.modules.items()}


def agree(one: Parts, other: Parts) -> bool:
    """Return whether two modules may be the same part; also true if the part of one of them is not known."""
    return not one or not other or not one.isdisjoint(other)


class _Neighbours:
    """The modules of a state dict: {path: names of the modules directly inside it}."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.modules = {key: _module(key) for key in keys}
        self._inside: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._known: dict[tuple[str, ...], Parts] = {}
        for path in dict.fromkeys(self.modules.values()):
            for end in range(len(path)):
                self._inside[path[:end]].add(path[end])

    def part(self, path: tuple[str, ...]) -> Parts:
        """Return the parts of a transformer block that a module may be, by its name and the names of its neighbours."""
        if path not in self._known:
            self._known[path] = self._of(path) if path else NOTHING
        return self._known[path]

    def _of(self, path: tuple[str, ...]) -> Parts:
        above, name = path[:-1], path[-1]
        beside, parent = self._inside[above], above[-1] if above else ""
        if name == "norm" and parent in _NORMS:  # SpeechBrain wraps each norm
            return self.part(above)
        if name == "0" and parent == "to_out":  # diffusers
            return self.part(above)
        return (
            self._norm(above, name)
            or _gated(name, beside)
            or _at_top(path, beside)
            or self._in_attention(above, name)
            or _ANYWHERE.get(name, NOTHING)
            or self._in_mlp(above, name)
        )

    def _norm(self, above: tuple[str, ...], name: str) -> Parts:
        """Return the norms that a module may be; an empty set if it is not directly in a numbered block with attention.

        ``above`` are the names of the modules that contain it.
        """
        if name == "LayerNorm" and above[-1:] == ("output",):  # BERT
            return _NORMS["attn_norm" if above[-2:-1] == ("attention",) else "ffn_norm"]
        beside = self._inside[above]
        if not _NUMBER.fullmatch(above[-1] if above else "") or not any(map(_ATTENTION.search, beside)):
            return NOTHING
        if name == "layer_norm" and "final_layer_norm" in beside:  # wav2vec 2.0 in transformers
            return _NORMS["attn_norm"]
        if name == "norm2" and "norm3" in beside:
            return _NORMS["cross_attn_ln"]
        if name == "post_attention_layernorm" and "input_layernorm" in beside and not beside & _FURTHER_NORMS:
            return _NORMS["ffn_norm"]
        return _NORMS.get(name, NOTHING)

    def _in_attention(self, above: tuple[str, ...], name: str) -> Parts:
        """Return the parts of attention that a module may be; cross attention has other parts than self-attention.

        ``above`` are the names of the modules that contain it. Also handles the two layers of BERT's MLP.
        """
        around = _nearest(above)
        if name == "dense" and above[-1:] == ("output",) and "intermediate" in self._inside[above[:-1]]:
            return _ANYWHERE["fc2"]  # BERT's block has attention, intermediate and output
        if name == "dense" and above[-1:] == ("intermediate",):
            return FIRST
        if not _ATTENTION.search(around):
            return NOTHING
        found = _IN_ATTENTION.get(name) or _ANYWHERE.get(name, NOTHING)
        block = self._inside[above[: above.index(around)]]
        if _CROSS.search(around) or (around == "multihead_attn" and "self_attn" in block):
            return frozenset(f"cross {part}" for part in found)
        if _NUMBERED.search(around):  # attn1 and attn2 of diffusers: their numbers do not show which is cross attention
            return found | {f"cross {part}" for part in found}
        return found

    def _in_mlp(self, above: tuple[str, ...], name: str) -> Parts:
        if not _MLP.search(_nearest(above)):
            return NOTHING
        beside = self._inside[above]
        if {"fc_1", "fc_2", "proj"} <= beside:  # LitGPT
            return {"fc_1": _ANYWHERE["gate_proj"], "fc_2": _ANYWHERE["wi_1"]}.get(name, _ANYWHERE["fc2"])
        if {"fc", "proj"} <= beside:
            return FIRST if name == "fc" else _ANYWHERE["fc2"]
        return _IN_MLP.get(name, NOTHING)


def _gated(name: str, beside: Set[str]) -> Parts:
    """Return the role of the module ``name`` in an MLP, if the role depends on whether the MLP has a gate.

    ``up_proj``, for example, is the first layer of an MLP without a gate. Returns an empty set for any name whose role
    does not depend on the gate. ``beside`` are the names of all modules with the same parent module.
    """
    if {"w1", "w2"} <= beside and "v1" not in beside and name in ("w1", "w2", "w3"):
        return {"w1": _ANYWHERE["gate_proj"] if "w3" in beside else FIRST, "w3": _ANYWHERE["wi_1"]}.get(
            name, _ANYWHERE["fc2"]
        )
    for up, gate in (("up_proj", "gate_proj"), ("ffn_up", "ffn_gate")):
        if name == up:
            return _ANYWHERE["wi_1"] if gate in beside else FIRST
    return NOTHING


def _at_top(path: Sequence[str], beside: Collection[str]) -> Parts:
    """Return {"head"} if a module is the output layer of a Llama with Meta's or llama.cpp's names; else an empty set.

    This is a module ``output`` at the top level, next to an embedding ``tok_embeddings`` or ``token_embd``. ``beside``
    are the names of all modules at the top level.
    """
    is_output = tuple(path) == ("output",) and not {"tok_embeddings", "token_embd"}.isdisjoint(beside)
    return _ANYWHERE["lm_head"] if is_output else NOTHING


def _nearest(above: Sequence[str]) -> str:
    """Return the innermost of the modules ``above`` whose name means attention or an MLP; '' if there is none."""
    return next((name for name in reversed(above) if _ATTENTION.search(name) or _MLP.search(name)), "")


def _module(key: str) -> tuple[str, ...]:
    """Return the path of a tensor's module; torch's ``in_proj_weight`` counts as a module ``in_proj``."""
    path = tuple(key.split("."))
    fused = path[-1] if path[-1] in ("in_proj_weight", "in_proj_bias") else ""
    return (*path[:-1], "in_proj") if fused else path[:-1]
