"""Makes rows of new tokens from a donor: another model, whose tokeniser has these tokens (``--new-tokens omp``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...destinations.hf.files import CONFIG
from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import module_kinds
from ...engine.inputs import PlanInputs
from ...errors import ConfigError, PlanError
from ...planning.plan.plan import Plan
from ...planning.plan.rows import OMP, DonorRows, VocabularyRows
from ...planning.plan.step import Input, Step
from ...planning.target import TargetSpec
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, shape_text
from ...vocabulary.replacement import tokens_at
from ..inputs.inputs import names_of, plan_source
from ..inputs.kept_open import KeptOpen

__all__ = ["DonorChoice", "donor_choice", "with_donor"]

PICKS = 64
"""By default, at most this many rows of shared tokens are summed to make a new row, as in mergekit."""
BLOCK = 16 << 20
"""The size in bytes, in single precision, of the blocks of rows that are searched for NaN and zeros."""
INPUT, OUTPUT = "input", "output"
"""The roles of the two tensors of a network with a row for each token: the input embedding and the output layer."""
_OF = {"embedding": INPUT, "scaled embedding": INPUT, "linear": OUTPUT}


@dataclass(frozen=True)
class DonorChoice:
    """The folder of the donor (``path``), a model whose tokeniser has the new tokens.

    At most ``picks`` rows of shared tokens are summed to make the row of a new token.
    """

    path: str
    picks: int


def donor_choice(way: str, tokenizer: str, donor: str, picks: int | None) -> DonorChoice | None:
    """Return the donor that ``--donor`` names; without ``--donor``, the model in the folder of the new tokeniser.

    Returns None if the ``way`` of filling rows needs no donor. Raises ConfigError if a donor is needed but missing, or
    if one is given but not needed.
    """
    if way != OMP:
        if donor or picks is not None:
            option = "--donor" if donor else "--omp-k"
            raise ConfigError(f"{option} is only for --new-tokens omp.", hint=f"Leave {option} out.")
        return None
    if not tokenizer:
        raise ConfigError(
            "--new-tokens omp needs a new tokeniser: it fills the rows of new tokens with the help of a donor model "
            "that has them.",
            hint="Name the tokeniser with --tokenizer.",
        )
    if picks is not None and picks < 1:
        raise ConfigError(f"--omp-k {picks} is not a number above 0.")
    folder = donor or (tokenizer if os.path.isdir(tokenizer) else os.path.dirname(tokenizer) or os.curdir)
    if not os.path.isfile(os.path.join(folder, CONFIG)):
        what = f"there is no {CONFIG} in {escape(folder)}"
        if donor:
            open_checkpoint(donor).close()  # if it does not exist, that is the error
        raise ConfigError(
            f"--new-tokens omp needs a donor, a model that has the new tokens: {what}.",
            hint="Name the folder of a model of transformers with this tokeniser: --donor DIR.",
        )
    return DonorChoice(folder, picks or PICKS)


def with_donor(plan: Plan, choice: DonorChoice, tokens: Sequence[str], network: TargetSpec) -> Plan:
    """Return a plan whose new rows are made from those of a donor; ``tokens`` are the tokens of the new vocabulary.

    ``network`` is the network of the output. The rows of the donor, and the source's rows of shared tokens, are read
    once to check that they are finite. Raises ConfigError if the donor lacks tokens, PlanError if its rows cannot be
    used. If it raises, it closes the plan's inputs.
    """
    inputs, rows = plan.inputs, plan.rows
    assert isinstance(inputs, PlanInputs)
    assert rows is not None
    opened = list(inputs.sources)
    with KeptOpen(opened):
        donor = _Donor(choice.path)
        opened.append(donor.checkpoint)
        made = replace(rows, donor=donor.rows_of(tokens, rows, choice.picks), means={})
        kinds = module_kinds(network)
        at = len(plan.sources)
        steps = tuple(
            replace(step, rows=made, more=donor.inputs_of(step, kinds, at)) if step.rows is not None else step
            for step in plan.steps
        )
        notes = [_said(made, choice), *_checked(steps, made, opened, tokens)]
        name = names_of([*(one.path or one.name for one in plan.sources), choice.path])[-1]
        source = plan_source(name, donor.checkpoint, role="donor")
    return replace(
        plan, steps=steps, rows=made, sources=(*plan.sources, source), notes=(*plan.notes, *notes),
        inputs=replace(inputs, sources=tuple(opened)),
    )  # fmt: skip


def _said(rows: VocabularyRows, choice: DonorChoice) -> str:
    assert rows.donor is not None
    made, shared = len(rows.donor.wanted(rows)), len(rows.donor.shared(rows))
    return (
        f"{count(made, 'row')} of new tokens: each is a weighted sum of at most {choice.picks} rows of tokens that the "
        f"model shares with {escape(choice.path)} ({shared} tokens); the weights are those with which the rows of "
        f"these tokens approximate the token's row in {escape(choice.path)} (arXiv 2506.06607)"
    )


class _Donor:
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
                hint="Put its tokeniser into its folder.",
            )
        self._tokens = found.tokens
        self.checkpoint = open_checkpoint(path)

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
        """The keys of the input embedding and of the output layer; the same key twice if they are tied."""
        network, kinds = self._network, module_kinds(self._network)
        found: dict[str, list[str]] = {INPUT: [], OUTPUT: []}
        for key, axis in network.vocabulary.items():
            of = _OF.get(kinds.get(key, ""))
            if of and axis == 0 and len(network.tensors[key].shape) == 2:
                found[of].append(network.ties.get(key, key))
        inputs, outputs = (list(dict.fromkeys(keys)) for keys in found.values())
        if len(inputs) != 1 or len(outputs) > 1:
            raise PlanError(
                f"cannot tell which tensor of the donor {escape(self._path)} is its embedding; candidates: "
                f"{listing([*inputs, *outputs], where='') or 'none'}.",
                hint="Name another donor: --donor DIR.",
            )
        return {INPUT: inputs[0], OUTPUT: outputs[0] if outputs else inputs[0]}

    def _info(self, key: str) -> tuple[str, TensorInfo]:
        """Return the stored key and the header of a tensor of the donor; raises PlanError if it is not usable."""
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
                f"the embedding {escape(key)} of the donor {escape(self._path)} {what}; it must be floats of shape "
                f"{shape_text(wanted)}.",
                hint="If it is quantised, decode it first: ckpt convert DIR --dequantize -o plain/.",
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


# Checks of the values in rows: a row with NaN makes other rows NaN, and rows of zeros are useless.


def _checked(
    steps: Sequence[Step], rows: VocabularyRows, sources: Sequence[Checkpoint], tokens: Sequence[str]
) -> Iterator[str]:
    """Yield notes on new rows that become zero, because the donor's row is zero.

    Raises PlanError for rows with NaN, or if fewer rows of shared tokens than ``--omp-k`` are not zero.
    """
    donor = rows.donor
    assert donor is not None
    wanted, places = donor.wanted(rows), {place: at for at, place in enumerate(donor.rows) if place is not None}
    bases = {row: at for at, row in enumerate(rows.rows) if isinstance(row, int) and donor.rows[at] is not None}
    done: set[tuple[int, str]] = set()
    for step in steps:
        for one in step.inputs if step.rows is not None and step.more else ():
            if (one.source, one.key) in done:
                continue
            done.add((one.source, one.key))
            own = places if one is step.more[0] else bases
            zeros = _zeros(one, sources[one.source], own, lambda at: repr(tokens[at]))
            if own is places:
                yield from _zeros_said(one, zeros, rows, wanted, tokens)


def _zeros_said(
    one: Input, zeros: set[int], rows: VocabularyRows, wanted: Sequence[int], tokens: Sequence[str]
) -> Iterator[str]:
    assert rows.donor is not None
    shared = [at for at, row in enumerate(rows.rows) if isinstance(row, int) and rows.donor.rows[at] is not None]
    useful = len(shared) - len(zeros.intersection(shared))
    if useful < rows.donor.picks:
        raise PlanError(
            f"a new row would be a sum of {rows.donor.picks} rows, but only {count(useful, 'row')} of shared tokens "
            f"in {escape(one.key)} of the donor {'is' if useful == 1 else 'are'} not zero.",
            hint=f"Use fewer rows for each new row: --omp-k {useful}."
            if useful
            else "Name another donor: --donor DIR.",
        )
    empty = [repr(tokens[at]) for at in wanted if at in zeros]
    if empty:
        yield (
            f"{count(len(empty), 'new token')} with a zero row in {escape(one.key)} of the donor "
            f"{'gets a zero row' if len(empty) == 1 else 'get zero rows'}: {listing(empty)}"
        )


def _zeros(one: Input, source: Checkpoint, places: Mapping[int, int], name: Callable[[int], str]) -> set[int]:
    """Return the indices of the tokens whose rows in the tensor ``one`` of ``source`` are all zeros.

    ``places`` is {row: index of its token}; other rows are not read. Raises PlanError if one of these rows has NaN or
    infinite values; ``name`` returns the text of a token by its index.
    """
    import numpy as np

    from ...engine.compute.reading import read_part
    from ...tensors.ops.casts import cast

    info, wrong = source[one.key], []
    found: set[int] = set()
    each = max(1, BLOCK // (4 * info.shape[1]))
    for first in range(0, info.shape[0], each):
        last = min(first + each, info.shape[0])
        own = [row for row in range(first, last) if row in places]
        if not own:
            continue
        values = read_part(source, info, ((first, last), (0, info.shape[1])))
        largest = np.abs(cast(values, info.dtype, "float32")[0]).max(1)
        wrong += [name(places[row]) for row in own if not np.isfinite(largest[row - first])]
        found.update(places[row] for row in own if largest[row - first] == 0)
    if wrong:
        raise PlanError(
            f"{escape(one.key)} of {escape(source.path)} has NaN or infinite values in {count(len(wrong), 'row')}, "
            f"which cannot be summed: {listing(wrong)}.",
            hint="Find these values with ckpt check, or fill new rows in another way: --new-tokens mean.",
            details=wrong,
        )
    return found
