"""``resize``: gives a model another width, depth or number of heads, experts or channels, by its configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ...checkpoint.opening import open_checkpoint
from ...planning.plan.plan import Plan
from ...planning.resizing.fields import role_of
from ..inputs.argument_types import Fields, Files, Kept, Path, Rules, checked
from ..inputs.inputs import close_plan
from ..inputs.metadata import check_metadata, with_metadata
from .found_changes import found_changes
from .layers_together import SHAPING, check_together
from .network import asked_network
from .optimizer.plan import optimizer_plan
from .request import Request, paths_of
from .resized_weights import ResizedWeights
from .vocabulary_choices import VocabularyChoices

__all__ = ["resize"]


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
    align_experts: bool = False,
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

    ``layers`` says which layers the output has: a list of the source's layers (``0..23,8..31``), or a word. For more
    layers, the word is "repeat", "interleave" or "identity" (copies that only pass their input on); for fewer layers,
    it is "first" or "evenly". ``keep`` maps a field to the indices of the heads, channels or experts that are kept,
    such as ``0..3,6``. By default, those with the largest weights are kept or, with ``by``, those that contribute most.
    ``by`` is a file of statistics that ``stats`` made of this model. With ``by``, ``layers`` may be "influential": the
    layers that change their input most. ``merge_experts`` makes fewer experts by merging groups of them: "similar"
    (each other expert is merged with the kept expert that has the most similar row in the router), or a list of groups,
    such as ``0+4,1+5``. If ``by`` has how often experts are used, the merge weights experts by that. If
    ``align_experts`` is set, the channels of each expert are first put into the order in which they are most like those
    of the expert that is used most in its group. ``new_channels`` is "init" (new channels are initialised and
    contribute nothing at first) or "copy". ``new_width`` is "copy" (the width is repeated) or "init" (the new
    dimensions are 0 at first, and the epsilons of norms in the configuration are reduced to fit). The default is "copy"
    if the new width is a multiple of the old one, else "init". ``noise`` is a number from 0 to 1. Each weight that
    reads copies (of a width, of heads or of channels) is changed at random (``seed``), by at most this share of its
    value, so that copies learn different things. The sum of the contributions of the copies stays the same.

    ``tokenizer`` is another tokeniser: its folder or its file of tokens. Tokens that the model's own tokeniser has,
    too, keep their rows. ``new_tokens`` (init, mean, zero, subword, omp) says how the other rows are made, and
    ``token_map`` maps tokens to differently written ones, as in ``transplant``. With omp, each new row is a weighted
    sum of at most ``omp_k`` (64) rows of tokens that the model and ``donor`` share. The weights are chosen so that the
    same sum of the donor's rows approximates the donor's row of the new token. ``donor`` is the folder of a model that
    has the new tokens, by default the folder of the tokeniser.

    ``trim`` has text files: the vocabulary is cut to the tokens that these texts use, and the tokens from which the
    tokeniser's merges build them. If ``keep_special`` is false, unused special tokens are left out, too. With
    ``tokenizer`` or ``trim``, ``vocab_size`` becomes the number of tokens, rounded up to a multiple of ``pad_to``, and
    token ids in the configuration are replaced by the new ids. Without both, a new ``vocab_size`` in ``set`` adds rows
    at the end, or cuts rows that have no token.

    With ``optimizer``, the plan makes the state of an optimizer of torch, not the weights. ``optimizer`` is a file with
    the state of the optimizer that trained ``source``; it may be ``source`` itself, a checkpoint of a training. It may
    also be the folder of a checkpoint of transformers' Trainer. The moments change as the gradients of the weights do;
    parameters whose moments cannot be computed begin with a new state. ``Optimizer.load_state_dict`` takes what
    torch.load reads from the output, a .pth file.

    ``dtype``, ``seed``, ``root`` and ``metadata`` are as in ``transplant``; by default the dtype of the source is kept.

    The notes of the plan say, for each field, whether the network computes the same afterwards. Raises ConfigError for
    a field or value that is not possible, PlanError if it is not known how a tensor changes, and the errors of
    ``transplant``.
    """
    if metadata:
        check_metadata(metadata)
    tokens = VocabularyChoices(
        os.fspath(tokenizer or ""), paths_of(trim), keep_special, pad_to, new_tokens, token_map,
        os.fspath(donor or ""), omp_k,
    )  # fmt: skip
    asked = Request(
        os.fspath(source), model_type, expert, layers or "", new_channels, new_width, noise, merge_experts,
        align_experts, os.fspath(by or ""), tokens, os.fspath(config or ""), os.fspath(optimizer or ""), dtype, seed,
        root,
    )  # fmt: skip
    asked.check()
    network = asked_network(asked, set, keep)
    with open_checkpoint(asked.path, root) as opened:
        found = found_changes(asked, network, opened)
    shaping = [name for name in network.given if role_of(network.base.main_name(name)) in SHAPING]
    if shaping and asked.model_type is None:
        check_together(found.stages.first, found.stages.last, shaping)
    weights = ResizedWeights(asked, network, found)
    plan = weights.plan()
    if asked.optimizer:
        close_plan(plan)
        plan = optimizer_plan(
            asked.optimizer, weights.moments(), arguments=weights.arguments, notes=weights.said, others=[asked.path]
        )
    return with_metadata(plan, metadata) if metadata else plan
