"""Rewrites messages that mention command-line options for callers in Python: ``--to pth`` becomes ``to="pth"``."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial

__all__ = ["as_arguments", "as_fields"]

# Messages are written with command-line options: ``Use --vocab SRC:DST``. Python callers get ``Use vocab="SRC:DST"``.

NAMES = frozenset((
    "adapters", "align", "align_experts", "align_groups", "alpha", "atol", "axis", "base", "batch_size", "by",
    "by_rows", "check", "check_only", "component", "compute", "config", "consume", "controls", "decay", "density",
    "dequantize", "device", "donor", "drop_last", "dtype", "ema", "embeddings", "encoding", "energy", "engine",
    "evaluate", "exact", "exclude", "expert", "fan_in_fan_out", "fisher", "force", "gguf_type", "gram", "heads",
    "include", "init", "inputs", "int_buffers", "keep", "keep_extras", "keep_going", "keep_models", "key", "layers",
    "layout", "level", "low_rank", "magnitudes", "map", "map_file", "max_shard_size", "maximize", "memory", "merge",
    "merge_experts", "merged_with", "mesh", "metadata", "method", "metric", "model", "new_channels", "new_tokens",
    "new_width", "noise", "omp_k", "on_mismatch", "on_missing", "operations", "optimizer", "output",
    "overfit_one_batch", "pad_to", "parallel", "patch", "plan", "plugin", "points", "preprocess_only", "processes",
    "quantize", "rank", "ranks", "reinit", "renames", "require", "restart", "resume", "revision", "root", "rtol",
    "ruleset", "run", "running", "sample", "sampler", "save_modules", "seed", "seeds", "sha256", "signs", "skip",
    "statistics", "stats", "steps", "strategy", "strict", "study", "task", "test", "to", "token_map", "tokenizer",
    "tokens", "trial_timeout", "trials", "trim", "unwrap", "values", "vocab", "vocab_keys", "wait", "weights",
    "window",
))  # fmt: skip
"""Python arguments whose option has the same name with dashes, as ``on_missing`` and ``--on-missing``."""
OTHERS = {
    "as": "model_type",
    "explain": "keys",
    "ignore-mismatch": 'on_mismatch="init"',
    "minimize": "maximize=False",
    "no-constructor-weights": "constructor_weights=False",
    "no-values": "values=False",
    "param": "parameters",
    "set": "sets",
    "source": "sources",
    "timeout": "CKPTSURGEON_TIMEOUT",
}
"""Options whose Python argument has another name; for ``--timeout``, Python has an environment variable."""
SWITCHES = frozenset((
    "align", "align_experts", "check", "check_only", "consume", "controls", "dequantize", "fan_in_fan_out",
    "fisher", "force", "gram", "keep_extras", "keep_going", "keep_models", "magnitudes", "maximize",
    "overfit_one_batch", "preprocess_only", "renames", "restart", "resume", "stats", "strict", "values",
))  # fmt: skip
"""Boolean arguments: the option alone means ``argument=True``."""
NUMBERS = frozenset((
    "alpha", "atol", "batch_size", "density", "drop_last", "ema", "energy", "expert", "level", "noise", "omp_k",
    "pad_to", "parallel", "points", "processes", "rank", "ranks", "rtol", "sample", "seed", "seeds", "steps",
    "trial_timeout", "trials", "wait", "weights", "window",
))  # fmt: skip
"""Arguments whose value is a number or a list of numbers."""
WORDS = frozenset((
    "a", "adds", "all", "alone", "and", "are", "as", "asks", "at", "begins", "both", "by", "can", "cannot",
    "changes", "choose", "compares", "continues", "contradict", "copies", "cuts", "deletes", "do", "does", "finds",
    "fits", "for", "from", "gives", "go", "goes", "has", "have", "if", "in", "initialises", "instead", "is", "it",
    "itself", "keeps", "leaves", "lists", "loads", "makes", "maps", "match", "matches", "means", "must", "names",
    "need", "needs", "of", "on", "only", "or", "out", "prints", "reads", "renames", "replaces", "runs", "saves",
    "says", "sets", "shows", "stands", "strips", "takes", "than", "that", "the", "them", "then", "to", "together",
    "too", "turns", "uses", "was", "were", "will", "with", "without", "works", "would", "writes", "wrote",
))  # fmt: skip
"""Words after an option that continue the sentence; any other word after an option is its value."""

_COMMAND = r"\bckpt [a-z]+ [^;]*?(?=[.;]\s|[.;]$|$)"
_VALUE = r"[\d.]+ [kMGT]?B\b|'[^']*'|\"[^\"]*\"|(?!\(|--)(?:[^\s,;)]|,(?=\d))*[^\s,;.:)]|\.(?=[\s).])"
_QUOTED = re.compile(r"(['\"])(.*)\1")
_PIECE = re.compile(rf"({_COMMAND})|--([a-z][a-z0-9-]*[a-z0-9])(?:[ =]({_VALUE}))?")


def as_arguments(text: str, own: Collection[str] = ()) -> str:
    """Return the message ``text`` with each option written as a Python argument: ``--to pth`` becomes ``to="pth"``.

    ``own`` are the names of the arguments of the called function. They matter for options whose argument has another
    name in some functions: ``--set`` becomes ``set`` in ``resize``, but ``sets`` elsewhere. Terminal commands in
    ``text`` (``ckpt verify out``) stay as they are.
    """
    return _PIECE.sub(partial(_argument, own), text) if "--" in text else text


def _argument(own: Collection[str], found: re.Match[str]) -> str:
    command, option, value = found.groups()
    name = (option or "").replace("-", "_")
    name = name if name in own else OTHERS.get(option or "") or name
    if command or (option not in OTHERS and name not in NAMES):
        return found[0]
    if name in SWITCHES:
        return f"{name}=True {value}" if value else f"{name}=True"
    if value is None or value in WORDS:
        return f"{name} {value}" if value else name
    quoted = _QUOTED.fullmatch(value)
    return f"{name}={_number(value)}" if name in NUMBERS else f'{name}="{quoted[2] if quoted else value}"'


def as_fields(text: str, own: Collection[str]) -> str:
    """Return the message ``text`` with options written as fields of a recipe: ``--to pth`` becomes ``to: pth``.

    ``own`` are the names of the fields; other options and terminal commands in ``text`` stay as they are.
    """
    return _PIECE.sub(partial(_field, own), text) if "--" in text else text


def _field(own: Collection[str], found: re.Match[str]) -> str:
    command, option, value = found.groups()
    name = (option or "").replace("-", "_")
    if command or name not in own:
        return found[0]
    if name in SWITCHES:
        return f"{name}: true {value}" if value else f"{name}: true"
    if value is None or value in WORDS:
        return f"{name} {value}" if value else name
    return f"{name}: {_number(value) if name in NUMBERS else value}"


def _number(value: str) -> str:
    """Return the text of an option's numbers as a Python literal: ``1`` stays ``1``, and ``1,2`` becomes ``[1, 2]``."""
    return f"[{value.replace(',', ', ')}]" if "," in value else value
