"""Distinguishes the weights of linear layers from other matrices: by the transformers class, or else by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ..class_check import class_without_codes
from ..model_folder.folder import ModelFolder
from ..quantised_class import kept_plain

__all__ = ["EMBEDDING", "HEAD", "ROUTER", "LinearLayers", "linear_layers"]

EMBEDDING, HEAD, ROUTER = "embedding", "output layer", "router of experts"
TIME = "linear layer of the embedding of the time step"

_HEADS = {
    "lm_head", "embed_out", "output", "output_projection", "proj_out", "score", "classifier", "qa_outputs", "head",
    "ctc", "ctc_head", "cls", "decoder_output",
}  # fmt: skip
_ROUTERS = re.compile(r"^(?:gate|router|wg|shared_expert_gate|moe_gate|gate_network|switch)$")
_EMBEDDINGS = re.compile(r"embed|^(?:wte|wpe|shared|relative_attention_bias|rotary|pos_emb|position_ids)$")
_TIMES = re.compile(r"^time(?:step)?_embed")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_LAYER = re.compile(r"\.\d+\.")
_TURNED = {"c_attn", "c_fc", "c_proj", "q_attn"}
"""The names of the layers of GPT-2 (Conv1D) whose weights have the shape (in, out)."""
_GPT2 = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")


@dataclass(frozen=True)
class LinearLayers:
    """The kind of each matrix of a model: the weight of a linear layer, or another kind.

    ``why`` maps the key of each matrix to the reason why it is not the weight of a linear layer, else ''.
    ``known_by`` is the name of the transformers class from which the kinds are known, '' if they were guessed from the
    keys. ``absent`` are linear layers whose weights the checkpoint lacks, such as a tied output layer.
    """

    why: Mapping[str, str]
    known_by: str = ""
    absent: tuple[str, ...] = ()


def linear_layers(checkpoint: Checkpoint, folder: ModelFolder) -> LinearLayers:
    """Return the kind of each matrix of a model: the weight of a linear layer, or another kind."""
    keys = [key for key, info in checkpoint.items() if len(info.shape) == 2]
    with suppress(CheckpointError):
        found = class_without_codes(checkpoint, folder)
        if found is not None:
            target, name = found
            facts = _Facts.of(target.build)
            named: Mapping[str, str] = {}
            with suppress(Exception):  # if this fails, keys are judged by their names
                named = target.recognise(dict(checkpoint)).names if target.recognise is not None else {}
            return _by_class(keys, named, facts, name)
    turned = folder.config.get("model_type") in _GPT2
    return LinearLayers({key: _by_name(key, turned=turned) for key in keys}, absent=_tied_head(checkpoint, folder))


@dataclass
class _Facts:
    """The kinds of the modules of a model that was built on the meta device.

    ``kinds`` maps each module name to '' (linear layer), "embedding" or the name of another class. ``heads`` are the
    output layers, and ``kept`` are layers that transformers never quantises.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    @staticmethod
    def of(build: Callable[[], object] | None) -> _Facts:
        """Return the kinds of the modules of the model that ``build`` makes on the meta device; empty if this fails."""
        import torch

        facts, model, output = _Facts(), None, None
        with suppress(Exception), torch.device("meta"):
            made: Any = build() if build is not None else None
            model = made
            output = made.get_output_embeddings()
        if model is None:
            return facts
        for name, one in model.named_modules():
            linear = type(one) is torch.nn.Linear
            embedding = isinstance(one, torch.nn.Embedding)
            facts.kinds[name] = "" if linear else EMBEDDING if embedding else type(one).__name__
            if output is not None and one is output:
                facts.heads.add(name)
        facts.kept = kept_plain(model)
        return facts


def _by_class(keys: Iterable[str], named: Mapping[str, str], facts: _Facts, name: str) -> LinearLayers:
    why: dict[str, str] = {}
    present: set[str] = set()
    for key in keys:
        module, _, leaf = named.get(key, key).rpartition(".")
        present.add(module)
        kind = facts.kinds.get(module)
        if leaf != "weight" or kind is None or _EXPERT.search(key):
            why[key] = _by_name(key)
        elif kind == EMBEDDING:
            why[key] = EMBEDDING
        elif module in facts.heads:
            why[key] = HEAD
        elif module in facts.kept:
            why[key] = "its class keeps it in float32"
        else:
            own = _by_name(key)
            why[key] = own if own in (ROUTER, HEAD) else f"{kind} is not Linear" if kind else ""
    absent = tuple(sorted(facts.heads - present))
    return LinearLayers(why, name, absent)


def _by_name(key: str, *, turned: bool = False) -> str:
    """Return the kind of a matrix, guessed from its key; '' for the weight of a linear layer.

    ``turned`` is true for models with Conv1D layers (GPT-2): their weights have the shape (in, out).
    """
    *path, leaf = key.split(".")
    layer = path[-1] if path else ""
    if leaf != "weight":
        return "not the weight of a layer"
    if any(_TIMES.search(part) for part in path[-2:]):
        return TIME
    if any(_EMBEDDINGS.search(part) for part in path[-2:]) and layer not in _HEADS:
        return EMBEDDING
    if layer in _HEADS and not _LAYER.search(key):
        return HEAD
    if _ROUTERS.search(layer):
        return ROUTER
    if "norm" in layer.lower():
        return "norm"
    if turned and layer in _TURNED:
        return "Conv1D is not Linear"
    return ""


def _tied_head(checkpoint: Checkpoint, folder: ModelFolder) -> tuple[str, ...]:
    """Return ``("lm_head",)``, the usual name of an output layer, if a model does not store this layer; else ().

    The result is also () for a checkpoint without a config.json.
    """
    has_one = any(key.split(".")[-2:-1] == ["lm_head"] for key in checkpoint)
    return () if has_one or not folder.config else ("lm_head",)
