"""``resize``: gives a model another width, depth or number of heads, experts or channels, by its configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...destinations.hf.ignored_keys import ignored_keys
from ...destinations.hf.resizable import Resizable
from ...destinations.module_kinds import module_kinds
from ...destinations.resizable_model import resizable
from ...errors import ConfigError, PlanError
from ...planning.keys.spelling import numberless, quoted
from ...planning.plan.plan import Plan
from ...planning.plan.step import REPEAT
from ...planning.quantised import computing
from ...planning.quantised_error import dequantise
from ...planning.resizing.axes import grouped
from ...planning.resizing.change import Change
from ...planning.resizing.depth import final_keys
from ...planning.resizing.fields import role_of
from ...planning.resizing.repeat import Noise
from ...planning.target import TargetSpec
from ...planning.transplant.options import Options
from ...storage.read.spec import SourceSpec
from ...tensors.dtypes import DTYPES
from ...util.text import escape, listing
from ..from_pretrained import class_of
from ..inputs.argument_types import Fields, Files, Kept, Path, Rules, checked
from ..inputs.arguments import check_metadata, check_seed, plain_arguments, rules_as_text, with_metadata
from ..inputs.inputs import close_plan
from ..inputs.operations import operate
from ..model_folder.config_differences import DIFFERENT
from ..transplant.opening import plan_into
from .another_type import AnotherType
from .arguments import fields_of, kept_of
from .choices import Choices
from .donor import donor_choice, with_donor
from .merging import check_merge
from .optimizer_plan import ResizedNetwork, optimizer_plan
from .scores import Measures
from .stages import Stages
from .stored_statistics import read_statistics
from .vocabulary import VocabularyChoices, vocabulary_step

__all__ = ["resize"]

CONFIG = "config.json"
TWICE = "-stored-twice"
"""Added to the key of a second copy of a tensor; the output does not get this copy."""
NEW_CHANNELS = ("init", "copy")
_MOMENTS = re.compile(r"(^|\.)(optim\w*|exp_avg(_sq)?|adam_[mv]|momentum_buffer)($|\.)")
"""Matches dotted paths of the state of an optimizer."""


@checked
def resize(
    source: Path,
    *,
    set: Fields = (),
    model_type: str | None = None,
    expert: int | None = None,
    layers: str | None = None,
    keep: Kept = None,
    new_channels: str | None = None,
    new_width: str | None = None,
    noise: float | None = None,
    merge_experts: str | None = None,
    by: Path | None = None,
    tokenizer: Path | None = None,
    trim: Files = (),
    keep_special: bool = True,
    pad_to: int = 1,
    new_tokens: str = "init",
    token_map: Rules = (),
    donor: Path | None = None,
    omp_k: int | None = None,
    config: Path | None = None,
    optimizer: Path | None = None,
    dtype: str | None = None,
    seed: int = 0,
    root: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a model of another size: the network that its config.json describes if some fields have new values.

    To find the axes of tensors that a field changes, the network is built on the meta device with both values.
    ``source`` is the folder of a model of transformers, or a checkpoint with its configuration as ``config``: a
    config.json, or a file in our format that names the user's code or a bundled network. ``set`` maps fields to new
    values, or has strings FIELD=VALUE: the width (hidden_size), or the number of layers, heads, key and value heads,
    feed-forward channels (intermediate_size) or experts.

    ``model_type`` is another model type for the output. For a dense network, it is a type with experts: ``set`` has
    their number, and each expert becomes a copy of the feed-forward layer. For a network with experts, it is a dense
    type: expert ``expert`` of each layer becomes the feed-forward layer. The rest of the network must be the same in
    both types. Fields that both types have keep their values.

    ``layers`` says which layers the output has: a list of the source's layers (``0..23,8..31``); for more layers
    "repeat", "interleave" or "identity" (copies that only pass their input on); for fewer "first" or "evenly". ``keep``
    maps a field to the indices of the heads, channels or experts that are kept, such as ``0..3,6``. By default, those
    with the largest weights are kept or, with ``by``, those that contribute most. ``by`` is a file of statistics that
    ``stats`` made of this model. With ``by``, ``layers`` may be "influential": the layers that change their input most.
    ``merge_experts`` makes fewer experts by merging groups of them: "similar" (each other expert is merged with the
    kept expert that has the most similar row in the router), or a list of groups, such as ``0+4,1+5``. If ``by`` has
    how often experts are used, the merge weights experts by that. ``new_channels`` is "init" (new channels are
    initialised and contribute nothing at first) or "copy". ``new_width`` is "copy" (the width is repeated, by default
    if it is a multiple of the old one) or "init": the new dimensions are 0 at first, and the epsilons of norms in the
    configuration are reduced to fit. ``noise`` is a number from 0 to 1: each weight that reads copies (of a width, of
    heads or of channels) is changed at random (``seed``), by at most this share of its value, so that copies learn
    different things. The sum of what the copies contribute stays the same.

    ``tokenizer`` is another tokeniser: its folder or its file of tokens. Tokens that the model's own tokeniser has,
    too, keep their rows. ``new_tokens`` (init, mean, zero, subword, omp) says how the other rows are made, and
    ``token_map`` maps tokens to differently written ones, as in ``transplant``. With omp, each new row is a weighted
    sum of at most ``omp_k`` (64) rows of tokens that the model and ``donor`` share; the weights are those with which
    the donor's rows approximate its row of the new token. ``donor`` is the folder of a model that has the new tokens,
    by default the folder of the tokeniser.

    With ``trim``, text files, the vocabulary is cut to the tokens that these texts use, and the tokens from which the
    tokeniser's merges build them; if ``keep_special`` is false, unused special tokens are left out, too. With
    ``tokenizer`` or ``trim``, ``vocab_size`` becomes the number of tokens, rounded up to a multiple of ``pad_to``, and
    token ids in the configuration are replaced by the new ids. Without both, a new ``vocab_size`` in ``set`` adds rows
    at the end, or cuts rows that have no token.

    With ``optimizer``, the plan makes the state of an optimizer of torch, not the weights: ``optimizer`` is a file with
    the state of the optimizer that trained ``source`` (it may be ``source`` itself, a checkpoint of a training), or the
    folder of a checkpoint of transformers' Trainer. The moments change as the gradients of the weights do; parameters
    whose moments cannot be computed begin with a new state. ``Optimizer.load_state_dict`` takes what torch.load reads
    from the output, a .pth file.

    ``dtype``, ``seed``, ``root`` and ``metadata`` are as in ``transplant``; by default the dtype of the source is kept.

    The notes of the plan say, for each field, whether the network computes the same afterwards. Raises ConfigError for
    a field or value that is not possible, PlanError if it is not known how a tensor changes, and the errors of
    ``transplant``.
    """
    check_metadata(metadata)
    check_seed(seed)
    if new_channels is not None and new_channels not in NEW_CHANNELS:
        raise ConfigError(f"--new-channels {escape(new_channels)} is unknown.", hint="Use init or copy.")
    if noise is not None and not 0 <= noise <= 1:
        raise ConfigError(f"--noise {noise} is not a number from 0 to 1.", hint="Write, for example, --noise 0.1.")
    if new_width is not None and new_width not in NEW_CHANNELS:
        raise ConfigError(f"--new-width {escape(new_width)} is unknown.", hint="Use copy or init.")
    if merge_experts is not None:
        check_merge(merge_experts)
    if root is not None and _MOMENTS.search(root):
        raise ConfigError(
            f"--root {escape(root)} is the state of an optimizer, which cannot be resized like weights.",
            hint="Choose the weights, and name the file of the optimizer's state with --optimizer.",
        )
    path = os.fspath(source)
    base = resizable(_config(path, config))
    corpora = [os.fspath(one) for one in ([trim] if isinstance(trim, str | os.PathLike) else trim or ())]
    asked = VocabularyChoices(os.fspath(tokenizer or ""), corpora, keep_special, pad_to, new_tokens, token_map,
                              os.fspath(donor or ""), omp_k)  # fmt: skip
    vocabulary = None
    kept = {base.main_name(name): value for name, value in kept_of(keep).items()}
    given = fields_of(set, is_needed=model_type is None and not (tokenizer or trim))
    _check_known(base, asked, model_type, given)
    if model_type is None:
        _check_same_type(expert)
        fields = {base.main_name(name): value for name, value in given.items()}
        vocabulary = vocabulary_step(base, fields, asked)
    elif tokenizer or trim:
        raise ConfigError(
            "--as changes only the model type, not the vocabulary.", hint="Leave --tokenizer and --trim out."
        )
    else:
        donor_choice(new_tokens, "", asked.donor, omp_k)
    with open_checkpoint(path, root) as opened:
        _refuse_codes(opened)
        found = read_statistics(by, opened) if by is not None else None
        name, influences = (os.path.basename(found.path), found.influences) if found is not None else ("", None)
        choices = Choices(
            layers or "",
            kept,
            new_channels or "",
            new_width or "",
            Noise(noise or 0.0, seed),
            merge_experts or "",
            name,
            influences,
            vocabulary,
        )
        first = base.target({})
        computed = _computed(opened, first)
        rows, stored_twice = _as_named(opened, first, computed)
        stages: Stages | AnotherType
        if model_type is None:
            stages = Stages(base, fields, choices, Measures(lambda: named(), found))
        else:
            stages = AnotherType(base, model_type, given, expert, choices)
        first_change = len(rows)  # rows before it only give tensors their names, which moments do not need
        rows += stages.splits

        @cache
        def named() -> Checkpoint:
            return operate([opened], rows)[0].checkpoint if rows else opened

        changes = list(stages.changes())
        _check_noise(noise, changes)
        dtypes = {info.dtype for info in opened.values() if DTYPES[info.dtype].is_floating}
    freed = _untied(first, stages.last)
    rows += [{"copy": quoted(owner), "into": [quoted(owner), quoted(alias)]} for owner, alias in freed]
    for change in changes:
        own = [row for row in change.rows if next(iter(row.values())) not in computed]
        if len(own) < len(change.rows) and change.is_exact:
            change.is_exact = None  # the table is computed anew for the new size; the old table is not repeated
        rows += [*grouped(own, [key for key in stages.keys if key not in computed]), *change.after]
    policies: dict[str, str] = {}
    for key, policy in (row for change in changes for row in change.policies.items()):
        policies[numberless(key)] = max(policy, policies.get(numberless(key), ""), key=len)  # parts, if it has any
    options = Options.of(
        exclude=[*stored_twice, *(key for change in changes for key in change.left)],
        rules=[rule for change in changes for rule in change.renamed],
        on_mismatch=policies, on_missing="init" if computed else stages.on_missing,
        dtype=dtype or (dtypes.pop() if len(dtypes) == 1 else None),
    )  # fmt: skip
    options = replace(options, vocabulary=vocabulary.options if vocabulary else None)
    arguments = plain_arguments(
        model_type=model_type, expert=expert, layers=layers,
        keep={name: list(value) for name, value in kept.items()}, new_channels=new_channels,
        new_width=new_width, noise=noise, merge_experts=merge_experts, by=by and os.path.basename(by), dtype=dtype,
        tokenizer=os.path.basename(asked.tokenizer.rstrip("/")), pad_to=pad_to if pad_to > 1 else 0,
        trim=list(map(os.path.basename, corpora)), no_keep_special=not keep_special, new_tokens=new_tokens,
        token_map=rules_as_text(token_map), donor=os.path.basename(asked.donor.rstrip("/")), omp_k=omp_k, root=root,
        optimizer=optimizer and os.path.basename(os.fspath(optimizer).rstrip("/")), set=given,
    )  # fmt: skip
    try:
        plan = plan_into(
            [SourceSpec(path)], stages.last, options, seed=seed, arguments=arguments, root=root, rows=rows,
            others=vocabulary.lists if vocabulary else (), change=vocabulary.new if vocabulary else None,
            by_place=vocabulary is None or vocabulary.new is None,
        )  # fmt: skip
    except PlanError as error:  # its hints are options of transplant
        hint = (
            "The layers of this model do not all have the same tensors: choose other layers with --layers."
            if layers
            else "Check the source with ckpt check."
        )
        raise PlanError(error.message, hint=hint, details=error.details) from None
    if vocabulary is not None and vocabulary.donor is not None and vocabulary.new is not None:
        plan = with_donor(plan, vocabulary.donor, vocabulary.new.new.tokens, stages.last)
    if computed and isinstance(stages, Stages):
        made = _computed({}, stages.last)
        lost = [step.key for step in plan.steps if step.reason == "missing" and step.key not in made]
        if lost:
            raise PlanError(
                f"the output needs {listing(lost)}, which no chosen layer of the source has.",
                hint="Choose other layers with --layers.",
            )
    repeated = {key: times for change in changes for key, times in change.repeated.items()}
    if repeated:
        policies = {key: f"{REPEAT}:{times}" for key, times in repeated.items()}
        steps = (replace(step, policy=policies.get(step.key, step.policy)) for step in plan.steps)
        plan = replace(plan, steps=tuple(steps))
    if not base.is_known:
        for change in changes:
            change.is_exact = None if change.is_exact else change.is_exact  # its code may do anything else
    notes = [change.note(is_tested=stages.is_tested) for change in changes]
    notes += base.said(list(stages.overrides), stages.overrides)
    notes += [f"{escape(alias)} is a copy of {escape(owner)}, to which it was tied" for owner, alias in freed]
    others = [final_keys(note) for note in plan.notes if not note.startswith(DIFFERENT)]  # the user asked for this
    target = replace(plan.target, overrides=stages.overrides)
    plan = replace(plan, verb="resize", target=target, notes=(*notes, *stages.said, *others))
    if optimizer is not None:
        close_plan(plan)
        network = ResizedNetwork(
            first, stages.last, module_kinds(first), rows[first_change:], policies if not repeated else {},
            frozenset(key for pair in freed for key in pair), vocabulary is not None and vocabulary.new is not None,
            frozenset(key for change in changes for key in change.unlike),
        )  # fmt: skip
        plan = optimizer_plan(
            os.fspath(optimizer), network, arguments=arguments, notes=notes[: len(changes)], others=[path]
        )
    return with_metadata(plan, metadata)


def _refuse_codes(source: Checkpoint) -> None:
    """Raise PlanError if weights of ``source`` are quantised; a configuration with quantisation is refused earlier."""
    if source.codes:
        coded = source.codes.tensors
        raise computing([(source.path, one, "a change of its size") for one in coded], dequantise("resize"))


def _check_known(base: Resizable, asked: VocabularyChoices, model_type: str | None, fields: Mapping[str, Any]) -> None:
    """Raise ConfigError if another model type or vocabulary is asked for, but the network is not of transformers."""
    wanted: dict[str, Any] = {
        "--as": model_type,
        "--tokenizer": asked.tokenizer,
        "--trim": asked.corpora,
        "--donor": asked.donor,
    }
    wanted.update({f"--set {escape(name)}": True for name in fields if role_of(name) == "vocabulary"})
    given = next((option for option, value in wanted.items() if value), "")
    if given and not base.is_known:
        raise ConfigError(
            f"{given} is only for networks of transformers, which {escape(os.path.basename(base.path))} is not.",
            hint="Leave it out. For another vocabulary, use ckpt transplant --vocab.",
        )


def _check_noise(noise: float | None, changes: Sequence[Change]) -> None:
    """Raise ConfigError if ``--noise`` is given, but nothing is copied."""
    if noise and not any("noise" in row for change in changes for row in change.rows):
        raise ConfigError(
            "--noise changes copies of a width, of heads or of channels, but this command makes no copies.",
            hint="Leave it out, or use --new-channels copy.",
        )


def _check_same_type(expert: int | None) -> None:
    if expert is not None:
        raise ConfigError(
            "--expert needs --as: it chooses the expert that becomes the feed-forward layer of a dense model.",
            hint="Name the type of the dense model, for example, --as llama.",
        )


def _config(path: str, config: Path | None) -> str:
    if config is not None:
        return os.fspath(config)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    found = os.path.join(folder, CONFIG)
    if "://" in path or not os.path.isfile(found):
        open_checkpoint(path).close()  # if it does not exist, that is the error
        raise ConfigError(
            f"there is no {CONFIG} in the folder of {escape(path)}, and without it the network is not known.",
            hint="Name the configuration with --config, or fetch the whole folder first.",
        )
    return found


def _computed(source: Mapping[str, Any], network: TargetSpec) -> list[str]:
    """Return tensors that the source lacks because the class computes them when it loads, such as tables of sines."""
    if network.kind != "transformers":
        return []
    absent = [key for key in network.tensors if key not in source and key not in network.ties]
    patterns = ignored_keys(class_of(network), network.cache_key, is_missing=True) if absent else []
    return [key for key in absent if any(re.search(pattern, key) for pattern in patterns)]


def _as_named(
    source: Checkpoint, first: TargetSpec, computed: Sequence[str]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return operations that give tensors the names and shapes of their network, and the keys to leave out later.

    A tied tensor is changed under its first key; if it is also stored under another key, the second copy is left out.

    Raises PlanError if the source lacks tensors of the network that its configuration describes, other than those in
    ``computed``.
    """
    rows: list[Mapping[str, Any]] = []
    names = {key for key in source if key in first.tensors}
    if first.recognise is not None:
        found = first.recognise(source)
        rows += found.operations
        for old, new in found.names.items():
            if old != new and new in first.tensors:
                rows.append({"copy": quoted(old), "into": [quoted(new)]})
                names.add(new)
    owners = {first.ties.get(key, key) for key in names}
    owners.update(computed)
    missing = [] if rows else [key for key in first.tensors if first.ties.get(key, key) not in owners]
    wrong = [key for key in names if key in source and source[key].shape != first.tensors[key].shape]
    if missing or (wrong and not rows):
        what = f"does not have {listing(missing)}" if missing else f"has other shapes: {listing(wrong)}"
        raise PlanError(
            f"{escape(source.path)} does not fit its configuration: it {what}.",
            hint="Run ckpt fits, which lists the differences.",
        )
    left = []
    for alias, owner in first.ties.items():
        if alias in names and owner in names:
            rows.append({"copy": quoted(alias), "into": [quoted(f"{alias}{TWICE}")]})
            left.append(f"{quoted(alias)}{TWICE}")
        elif alias in names:
            rows.append({"copy": quoted(alias), "into": [quoted(owner)]})
            names.add(owner)
    return rows, left


def _untied(first: TargetSpec, last: TargetSpec) -> list[tuple[str, str]]:
    """Return (key, other key) of tensors that are tied in the network of the source, but not in that of the output."""
    pairs = [(owner, alias) for alias, owner in first.ties.items() if alias in last.tensors]
    return [(owner, alias) for owner, alias in pairs if last.ties.get(alias, alias) != last.ties.get(owner, owner)]
