"""Reads the files that ``stats`` writes, and checks whether their statistics belong to a checkpoint."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError
from ...storage.read.uri import shown
from ...util.text import escape
from ..inputs.argument_types import Path
from .weight_prints import are_of

__all__ = [
    "INFLUENCE",
    "INPUTS",
    "LOAD",
    "MERGED",
    "NOTE",
    "OF_RANDOM",
    "RANDOM",
    "SALIENCY",
    "Statistics",
    "check_belongs",
    "random_notes",
    "read_statistics",
    "said_in",
    "said_of_merged",
]

NOTE = "ckptsurgeon.stats"
"""The metadata entry that records the model and the inputs of the statistics."""
MERGED = "merged"
"""The field of this entry for statistics of several models that were merged while they ran."""
RANDOM = "random"
"""The field of this entry, or of each model in ``MERGED``, that is true if the inputs were drawn at random."""
OF_RANDOM = "the inputs are random: their statistics say little about the real use of the model; give real inputs"
"""The note on such statistics, when they are made."""
INPUTS, LOAD, INFLUENCE, SALIENCY = "inputs", "load", "influence", "saliency"
"""Endings of keys: mean squares of inputs, use of experts, influence of a layer, and contribution of experts."""


@dataclass(frozen=True)
class Statistics:
    """The statistics in a file: {key: list of numbers} (mean squares, loads, influences), and notes on them."""

    path: str
    values: Mapping[str, Sequence[float]]
    notes: Sequence[str] = ()

    def inputs(self, key: str) -> Sequence[float] | None:
        """Return the mean square of each input of the layer with the weight ``key``; None if there is none."""
        return self.values.get(f"{key.rpartition('.')[0]}.{INPUTS}")

    def load(self, keys: Sequence[str]) -> Sequence[float] | None:
        """Return each expert's frequency of use, from the router among the modules of ``keys``; None if unknown."""
        names = (f"{key.rpartition('.')[0]}.{LOAD}" for key in keys)
        return next((self.values[name] for name in names if name in self.values), None)

    def saliency(self, keys: Sequence[str]) -> Sequence[float] | None:
        """Return the contribution of each expert, from the modules of ``keys``; None if the file does not have it."""
        names = (f"{key.rpartition('.')[0]}.{SALIENCY}" for key in keys)
        return next((self.values[name] for name in names if name in self.values), None)

    def influences(self, number: int, changed: Callable[[], Sequence[str]]) -> list[float]:
        """Return the influence of each layer in the list with ``number`` layers.

        If there are several such lists (of encoder and decoder), it is the one whose path ``changed`` returns. Raises
        ConfigError if the file has no such list, or has several.
        """
        lists: dict[str, dict[int, float]] = {}
        for key, values in self.values.items():
            path, _, place = key.removesuffix(f".{INFLUENCE}").rpartition(".")
            if key.endswith(f".{INFLUENCE}") and re.fullmatch("[0-9]{1,6}", place) and len(values) == 1:
                lists.setdefault(path, {})[int(place)] = values[0]
        fitting = {path: own for path, own in lists.items() if sorted(own) == list(range(number))}
        paths = changed() if len(fitting) > 1 else fitting
        found = [own for path, own in fitting.items() if path in paths]
        if len(found) != 1:
            raise ConfigError(
                f"the influences of one list of {number} layers are needed, but {escape(self.path)} has "
                f"{len(found) or 'no'} such lists.",
                hint="List the layers that are kept: --layers 0..7,10.",
            )
        return [found[0][place] for place in range(number)]


def read_statistics(path: Path, source: Checkpoint) -> Statistics:
    """Return the statistics in a file that ``stats`` made from ``source``; raises ConfigError for another model."""
    name = os.fspath(path)
    with open_checkpoint(name, unwrap=False) as opened:
        said = said_in(opened)
        check_belongs(said, name, source)
        keys = [key for key in opened if key.rpartition(".")[2] in (INPUTS, LOAD, INFLUENCE, SALIENCY)]
        values = {key: opened.tensor(key).reshape(-1).tolist() for key in keys}
        return Statistics(name, values, tuple(random_notes(said, os.path.basename(name))))


def random_notes(said: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield a note if the statistics in the file ``name`` are of random inputs; ``said`` is the file's record."""
    if said.get(RANDOM) is True:
        yield (
            f"{escape(name)}: the statistics are of random inputs, and say little about the real use of the model; "
            "make them with ckpt stats --inputs FILE"
        )


def said_in(opened: Checkpoint) -> Mapping[str, Any]:
    """Return what a file of statistics records about its model and inputs; raises ConfigError for any other file."""
    try:
        said = json.loads(opened.metadata[NOTE])
        if isinstance(said["weights"], list):
            return dict(said)
    except (KeyError, TypeError, ValueError):
        pass
    raise ConfigError(
        f"{escape(opened.path)} has no statistics: ckpt stats did not write it.",
        hint="Make statistics with ckpt stats, and give the file that it writes.",
    )


def said_of_merged(said: Mapping[str, Any], name: str, source: Checkpoint) -> tuple[int, Mapping[str, Any]]:
    """Return the index of ``source`` among models that were merged while they ran, and the file's record about it.

    ``said`` is what the file ``name`` records: the result of ``said_in``. Raises ConfigError if the file has no
    statistics of such a merge, or if ``source`` is not one of its models.
    """
    merged = said.get(MERGED)
    if not isinstance(merged, Mapping) or not isinstance(merged.get("models"), list):
        raise ConfigError(
            f"{escape(name)} has no statistics of the inputs that layers get in a merged model.",
            hint="Make them with ckpt stats MODEL --inputs FILE --gram --merged-with OTHER=FILE -o STATISTICS.",
        )
    for number, one in enumerate(merged["models"]):
        if isinstance(one, Mapping) and are_of(one, source):
            return number, one
    names = ", ".join(escape(str(one.get("model")), 80) for one in merged["models"] if isinstance(one, Mapping))
    raise ConfigError(
        f"{escape(name)} has the statistics of a merge of other models, {names}, not of {escape(shown(source.path))}.",
        hint="Merge the models of the statistics, or make statistics of these models.",
    )


def check_belongs(said: Mapping[str, Any], name: str, source: Checkpoint, kind: str = "") -> None:
    """Raise ConfigError if the statistics in the file ``name`` are of another model than ``source``.

    ``said`` is the file's record about the model: the result of ``said_in``. ``kind`` is the option of ``stats`` that
    makes the statistics, without dashes; "" if there is none.
    """
    if not are_of(said, source):
        model, option = escape(shown(source.path)), f" --{kind}" if kind else ""
        what = f"another model, {escape(str(said.get('model')), 80)}" if MERGED not in said else "a merge of models"
        raise ConfigError(
            f"{escape(name)} has the statistics of {what}, not of {model}.",
            hint=f"Make statistics of this model: ckpt stats {model} --inputs FILE{option} -o NEW_FILE.",
        )
