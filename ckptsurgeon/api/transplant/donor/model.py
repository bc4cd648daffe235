"""A donor: its open checkpoint, its tokens, and the tensors with a row for each token."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod

from ....checkpoint.checkpoint import Checkpoint
from ....checkpoint.opening import open_checkpoint
from ....destinations.hf.files import CONFIG
from ....destinations.hf.resizable import Resizable
from ....destinations.module_kinds import module_kinds
from ....errors import ConfigError, FormatError, PlanError
from ....planning.plan.rows import DonorRows, VocabularyRows
from ....planning.plan.step import Input, Step
from ....tensors.dtypes import DTYPES
from ....tensors.info import TensorInfo
from ....util.text import count, escape, listing, shape_text
from ....vocabulary.replacement import tokens_at

__all__ = ["Donor"]

INPUT, OUTPUT = "input", "output"
"""The roles of the two tensors of a network with a row for each token: the input embedding and the output layer."""
_OF = {"embedding": INPUT, "scaled embedding": INPUT, "linear": OUTPUT}


class Donor:
    """A donor: its open checkpoint, its tokens and its network."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._network = Resizable(os.path.join(path, CONFIG)).target({})
        except ConfigError as error:
            raise ConfigError(f"the donor: {error.message}", hint=error.hint) from None
        found = tokens_at(path)
        if found is None:
            raise ConfigError(
                f"the donor {escape(path)} has no list of tokens that can be read.",
                hint="Put the tokeniser of this model into the folder.",
            )
        self._tokens = found.tokens
        self.checkpoint = self._opened()

    def _opened(self) -> Checkpoint:
        try:
            return open_checkpoint(self._path)
        except FormatError as error:
            if error.rule != "no checkpoint":
                raise
            raise ConfigError(
                f"the donor {escape(self._path)} has no weights.",
                hint="Name the folder of a model that has weights and the new tokens: --donor DIR.",
            ) from error

    def rows_of(self, tokens: Sequence[str], rows: VocabularyRows, picks: int) -> DonorRows:
        """Return, for each of ``tokens`` (the new vocabulary), the index of its row in the donor.

        ``rows`` has the rows of the model that is resized, and ``picks`` is the number of rows that are summed. Raises
        ConfigError if a token is in neither model, or if no token is new; PlanError if the models share fewer than
        ``picks`` tokens.
        """
        places = {token: row for row, token in enumerate(self._tokens)}
        own = (*(places.get(token) for token in tokens), *[None] * rows.padded)
        lacking = [tokens[at] for at, row in enumerate(own[: len(tokens)]) if row is None and rows.rows[at] is None]
        if lacking:
            raise ConfigError(
                f"neither the model nor the donor {escape(self._path)} has {count(len(lacking), 'token')} of the new "
                f"tokeniser: {listing(list(map(repr, lacking)), where='')}.",
                hint="Name a donor with the new tokeniser: --donor DIR.",
            )
        found = DonorRows(self._size, picks, own)
        if not found.wanted(rows):
            raise ConfigError(
                "the new tokeniser has no new token, so --new-tokens omp has no effect.", hint="Leave it out."
            )
        shared = len(found.shared(rows))
        if shared < picks:
            raise PlanError(
                f"a new row would be a sum of {picks} rows, but the model and {escape(self._path)} share only "
                f"{count(shared, 'token')}.",
                hint=f"Use fewer rows for each new row: --omp-k {shared}."
                if shared
                else "Name another donor: --donor DIR.",
            )
        return found

    @cached_property
    def _size(self) -> int:
        return self._info(self._keys[INPUT])[1].shape[0]

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        """The keys of the input embedding and of the output layer, by role; the same key twice if they are tied.

        Raises PlanError if the network does not have exactly one input embedding, or has several output layers.
        """
        network, kinds = self._network, module_kinds(self._network)
        found: dict[str, list[str]] = {INPUT: [], OUTPUT: []}
        for key, axis in network.vocabulary.items():
            of = _OF.get(kinds.get(key, ""))
            if of and axis == 0 and len(network.tensors[key].shape) == 2:
                found[of].append(network.ties.get(key, key))
        inputs, outputs = (list(dict.fromkeys(keys)) for keys in found.values())
        if len(inputs) != 1 or len(outputs) > 1:
            raise PlanError(
                f"it is not known which tensors of the donor {escape(self._path)} are its embedding and its output "
                f"layer; candidates: {listing([*inputs, *outputs], where='') or 'none'}.",
                hint="Name another donor: --donor DIR.",
            )
        return {INPUT: inputs[0], OUTPUT: outputs[0] if outputs else inputs[0]}

    def _info(self, key: str) -> tuple[str, TensorInfo]:
        """Return the stored key and the header of a donor's tensor; raises PlanError if it does not fit the network."""
        stored, network = self.checkpoint, self._network
        names = {key, *(alias for alias, owner in network.ties.items() if owner == key)}
        if network.recognise is not None:
            names.update(old for old, new in network.recognise(stored).names.items() if new in names)
        there = next((name for name in sorted(names) if name in stored), "")
        info = stored[there] if there else None
        wanted = network.tensors[key].shape
        if info is None or info.shape != wanted or info.opaque or DTYPES[info.dtype].kind != "float":
            what = f"is {info.dtype} {shape_text(info.shape)}" if info is not None else "is missing"
            raise PlanError(
                f"the tensor {escape(key)} of the donor {escape(self._path)} {what}; it must be floats of shape "
                f"{shape_text(wanted)}.",
                hint=f"If the donor is quantised, decode it first: ckpt convert {escape(self._path)} --dequantize -o "
                "plain/.",
            )
        return there, info

    def inputs_of(self, step: Step, kinds: Mapping[str, str], at: int) -> tuple[Input, ...]:
        """Return the donor's embedding or output layer as a further input of ``step``.

        The step makes the output's tensor with the same role. ``kinds`` maps the keys of the output's tensors to the
        kinds of their modules, and ``at`` is the index of the donor in the plan's sources. Returns () if the tensor has
        only one number for each token, as a bias has. Raises PlanError if the tensor is neither an embedding nor an
        output layer.
        """
        if prod(step.shape) == step.shape[step.axis]:
            return ()
        of = _OF.get(kinds.get(step.tied_to or step.key, ""))
        if not of or step.axis or len(step.shape) != 2 or DTYPES[step.source_dtype].kind != "float":
            raise PlanError(
                f"cannot make new rows of {escape(step.key)}, {step.source_dtype} "
                f"{shape_text(step.shape)}, from rows of the donor.",
                hint="Fill new rows in another way: --new-tokens mean.",
            )
        key, info = self._info(self._keys[of])
        return (Input(at, key, info.dtype, info.shape),)
