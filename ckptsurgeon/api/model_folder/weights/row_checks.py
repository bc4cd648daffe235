"""Notes on tensors with a row for each token, position or label, if config.json has another number of rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ....planning.transplant.by_place import BIAS, HEAD, is_embedding, is_of_labels
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, count, escape
from ..config import has_parts, vocabulary_size, vocabulary_sizes
from ..documents import BYTE_PAIRS, TOKENIZER
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import added_tokens, is_ctc, local_tokens, object_in
from .shape_checks import UNLOADED, DescribedTensor, follows, is_number

__all__ = ["has_more_rows", "label_notes", "output_notes", "position_notes", "token_count", "without_token_notes"]

# Output layers: like the embedding, they have a row for each token of the vocabulary.

_OF_TOKENS = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|ForMaskedLM|ForPreTraining|MTModel)$")
"""Matches names of transformers' classes with an output layer over the vocabulary."""
_BIASED = re.compile(r"(ForMaskedLM|ForPreTraining)$")
"""Matches names of transformers' classes whose output layer over the vocabulary has a bias."""
_GENERATING = re.compile(r"(ForConditionalGeneration|MTModel)$")
_DECODER = re.compile(r"(^|\.)(en|de)coder\.embed_tokens\.weight$")
_LOGITS = "final_logits_bias"
_MULTIPLE, _MOST = 32, 128
"""Padding makes the number of rows a multiple of ``_MULTIPLE``, and adds fewer than ``_MOST`` rows."""


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def output_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if an output layer does not have ``vocab_size`` rows, although the embedding has.

    There is no note if the configuration refers to custom code (``auto_map``).
    """
    rows, known = vocabulary_size(config), set(vocabulary_sizes(config))
    names = config.get("architectures")
    classes = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
    if not rows or config.get("auto_map") or not classes or not all(map(_OF_TOKENS.search, classes)):
        return
    embeddings = [one for one in tensors if len(one.shape) == 2 and is_embedding(one.key) and one.shape[0] in known]
    widths = {one.shape[1] for one in embeddings}
    for one in tensors if embeddings else ():
        number = _rows(one, widths, classes)
        is_other = number not in known and not (one.is_quantised and _is_padded(number, known))
        if number and is_other and is_number(one) and not (has_parts(config) and "lm_head" not in one.key):
            has = f"{escape(one.key)} has {count(number, 'column' if one.key == _LOGITS else 'row')}"
            yield follows(one, f"config.json says {rows} (vocab_size), but {has}")
            return


def _is_padded(number: int, known: Collection[int]) -> bool:
    """Return whether ``number`` may be the number of rows of a vocabulary that was padded for a quantisation kernel.

    ``known`` has the vocabulary sizes that the configuration states.
    """
    return number % _MULTIPLE == 0 and any(0 < number - one < _MOST for one in known)


def _rows(one: DescribedTensor, widths: set[int], classes: Sequence[str]) -> int:
    """Return the number of tokens for which a tensor has values, if it is an output layer or a bias of one; else 0.

    The ``embed_tokens`` of an encoder or a decoder count as output layers, too.
    ``widths`` has the widths of the embeddings, and ``classes`` the names in ``architectures``.
    """
    if len(one.shape) == 2 and one.shape[1] in widths and (HEAD.search(one.key) or _DECODER.search(one.key)):
        return one.shape[0]
    if one.key == _LOGITS and len(one.shape) == 2 and all(map(_GENERATING.search, classes)):
        return one.shape[1]
    return one.shape[0] if len(one.shape) == 1 and BIAS.search(one.key) and all(map(_BIASED.search, classes)) else 0


# Learned embeddings of positions and token types, and other sizes that a single field determines.


class _Size(NamedTuple):
    """A field of config.json that determines the size of an axis of some tensors: size = value of the field + ``more``.

    ``axis`` is the axis. ``pattern`` matches the modules of these tensors, and ``kinds`` has the model types that have
    them.
    """

    field: str
    kinds: tuple[str, ...]
    pattern: str
    more: int = 0
    axis: int = 0


_ROBERTA = ("camembert", "longformer", "roberta", "xlm-roberta")
_BERT = ("albert", "bert", "bert-generation", "convbert", "distilbert", "electra", "megatron-bert")
_BART = ("bart", "biogpt", "mbart", "mvp", "opt", "plbart")
_T5 = ("longt5", "mt5", "pop2piano", "switch_transformers", "t5", "umt5")
_POSITIONS = (
    _Size("max_position_embeddings", (*_BERT, *_ROBERTA, "mpnet"), r"position_embeddings"),
    _Size("max_position_embeddings", ("clip_text_model",), r"embeddings\.position_embedding"),
    _Size("max_position_embeddings", ("gpt_neo",), r"wpe"),
    _Size("n_positions", ("gpt2", "gpt_bigcode"), r"wpe"),
    _Size("max_position_embeddings", _BART, r"embed_positions", more=2),
    _Size("max_source_positions", ("whisper",), r"encoder\.embed_positions"),
    _Size("max_target_positions", ("whisper",), r"decoder\.embed_positions"),
)
_SIZES = (
    *_POSITIONS,
    _Size("type_vocab_size", (*_BERT, *_ROBERTA), r"token_type_embeddings"),
    _Size("relative_attention_num_buckets", (*_T5, "mpnet"), r"relative_attention_bias"),
    _Size("num_mel_bins", ("whisper",), r"encoder\.conv1", axis=1),
)
_UNUSED = {**dict.fromkeys(_ROBERTA, 2), "mpnet": 2, **dict.fromkeys(_BART, 2)}
"""{model type: number of rows at the beginning of the position embedding that no token uses}"""
_NO_LIMIT = 10**6
"""A ``model_max_length`` of at least this number means that there is no limit; transformers writes 1e30."""


def position_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[Note]:
    """Yield notes if config.json or the tokeniser contradicts the number of positions, token types or channels."""
    config = folder.config
    if has_parts(config) or config.get("auto_map"):
        return
    notes = [note for size in _SIZES for note in _other_size(size, tensors, config)]
    yield from notes
    if not notes and config.get("model_type") != "whisper":  # Whisper's tokeniser states the length of prompts instead
        yield from _too_long(tensors, folder)


def _found(size: _Size, tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> list[DescribedTensor]:
    pattern = re.compile(rf"(^|\.){size.pattern}\.weight$")
    fitting = tensors if config.get("model_type") in size.kinds else ()
    return [one for one in fitting if len(one.shape) > 1 and pattern.search(one.key) and is_number(one)]


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _other_size(size: _Size, tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    declared = config.get(size.field)
    if type(declared) is not int:
        return
    for one in _found(size, tensors, config):
        if one.shape[size.axis] != declared + size.more:
            has = f"{escape(one.key)} has {count(one.shape[size.axis], 'channel' if size.axis else 'row')}"
            unused = f", {size.more} of which are not for positions" if size.more else ""
            yield follows(one, f"config.json says {declared} ({size.field}), but {has}{unused}")
            return


@notes_of(NoteKind.VOCABULARY)
def _too_long(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the tokeniser allows longer texts (``model_max_length``) than the model has positions."""
    longest = object_in(folder, TOKENIZER).get("model_max_length")
    rows = [one for size in _POSITIONS for one in _found(size, tensors, folder.config)]
    if not rows or type(longest) is not int or longest >= _NO_LIMIT:
        return
    positions = rows[0].shape[0] - _UNUSED.get(str(folder.config.get("model_type")), 0)
    if longest > positions:
        has = f"{escape(rows[0].key)} has positions for {count(positions, 'token')}"
        yield f"{TOKENIZER} says {longest} (model_max_length), but {has}: longer texts fail, even with truncation=True"


# Labels: the classifier has a row for each label.

_OF_LABELS = re.compile(r"For(Sequence|Token|Image|Audio)Classification$")
_DEFAULT = re.compile(r"LABEL_\d+")
"""Matches the names that transformers gives to labels without a name."""


def label_notes(
    tensors: Sequence[DescribedTensor], classes: Sequence[str], config: Mapping[str, Any]
) -> Iterator[Note]:
    """Yield notes on labels that contradict the rows of the classifier, or each other.

    ``classes`` are the names in ``architectures``; there are no notes if one of them is not a classifier.
    """
    if not classes or not all(map(_OF_LABELS.search, classes)):
        return
    found = [
        one for one in tensors
        if is_of_labels(one.key) and one.key.endswith(".weight") and len(one.shape) == 2 and is_number(one)
        and not any(map(str.isdigit, one.key.split(".")))
    ]  # fmt: skip
    if found:
        yield from _numbers({one.shape[0] for one in found}, found[-1], config)
    yield from _contradictions(config)


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _numbers(rows: set[int], last: DescribedTensor, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the classifier's number of rows is not the number of labels, or if a row has no label.

    If ``num_labels`` and ``id2label`` disagree, transformers 5 uses ``num_labels``, and earlier versions use
    ``id2label``. ``rows`` has the numbers of rows of all tensors of the classifier; ``last`` is one of these tensors.
    """
    labels = config.get("id2label")
    numbers = {"id2label": len(labels) if isinstance(labels, dict) else None, "num_labels": config.get("num_labels")}
    known = {name: number for name, number in numbers.items() if type(number) is int}
    odd = {name: number for name, number in known.items() if number not in rows}
    has = f"{escape(last.key)} has {count(last.shape[0], 'row')}"
    if odd:
        (name, number), *others = odd.items()
        when = "" if len(known) == 1 or others else " 5" if name == "num_labels" else " before 5"
        why = UNLOADED.replace("transformers", f"transformers{when}")
        yield f"config.json has {count(number, 'label')} ({name}), but {has}: {why}"
    elif isinstance(labels, dict) and len(rows) == 1:
        lacking = [row for row in range(last.shape[0]) if str(row) not in labels]
        if lacking and all(map(str.isdecimal, labels)):
            yield Note(
                NoteKind.VOCABULARY,
                f"id2label of config.json has no label for row {lacking[0]}, but {has}: pipelines of transformers fail",
            )


@notes_of(NoteKind.VOCABULARY)
def _contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if ``label2id`` contradicts ``id2label``; the default names (``LABEL_0``) are not compared."""
    labels, rows = config.get("id2label"), config.get("label2id")
    if not isinstance(labels, dict) or not isinstance(rows, dict) or _is_default(rows) or _is_default(labels.values()):
        return
    for name, row in rows.items():
        other = labels.get(str(row))
        if isinstance(name, str) and isinstance(other, str) and name.casefold() != other.casefold():
            first, second = brief_repr(name), brief_repr(other)
            yield (
                f"label2id of config.json says that row {escape(str(row))} is {first}, but id2label says {second}: "
                "transformers names predictions as id2label does"
            )
            return


def _is_default(names: Any) -> bool:
    return all(isinstance(one, str) and _DEFAULT.fullmatch(one) for one in names)


LARGER = ("csm", "kyutai_speech_to_text", "mllama", "molmo2", "moshi")
"""Model types whose embedding has more rows than ``vocab_size``: 8 for images in mllama, more for audio in others."""


def has_more_rows(folder: ModelFolder) -> bool:
    """Return whether models of this type have more rows than tokens by design."""
    return str(folder.config.get("model_type")).startswith(LARGER)


SPARE, SHARE = 127, 25
"""An embedding may have up to ``SPARE`` rows without a token (for padding), or 1 for every ``SHARE`` tokens.

Such rows are added for speed, or for tokens that are added later. Of published models, Phi-2 has most: 51,200 rows for
50,295 tokens.
"""
EIGHT, HUNDREDTH, FEW = 8, 100, 2
"""Without padding to a multiple of ``EIGHT``, up to ``FEW`` rows, or 1 in ``HUNDREDTH``, may have no token."""


def token_count(folder: ModelFolder, read: ModelFolder) -> int:
    """Return the number of tokens of a local tokeniser; 0 if its files may not list all tokens.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser
    whose vocabulary is already in memory.
    """
    tokens = local_tokens(read) if read.token_list is not None and read.token_list.is_whole else ()
    if folder.vocabulary in BYTE_PAIRS or not tokens:
        return 0
    return len(tokens) + len(added_tokens(read) - {*tokens})


@notes_of(NoteKind.VOCABULARY)
def without_token_notes(folder: ModelFolder, read: ModelFolder, most: DescribedTensor) -> Iterator[str]:
    """Yield a note if too many rows of an embedding, or any rows of a CTC output layer, have no token.

    ``most`` is the embedding or output layer with most rows. ``read`` is the folder from which the vocabulary is read:
    ``folder`` itself, or a folder with the same tokeniser whose vocabulary is already in memory.
    """
    known = token_count(folder, read)
    if not known or has_more_rows(folder):
        return
    spare = most.shape[0] - known
    is_padded = most.shape[0] % EIGHT == 0 or spare <= max(FEW, most.shape[0] // HUNDREDTH)
    is_many = spare > 0 if HEAD.search(most.key) and is_ctc(folder) else spare > max(SPARE, known // SHARE)
    is_said = is_many or (spare > 0 and not is_padded)
    if is_said:
        has = f"{escape(most.key)} has {count(most.shape[0], 'row')}"
        lack = f"{count(spare, 'row')} {'has' if spare == 1 else 'have'} no token"
        yield f"{escape(folder.vocabulary)} has {count(known, 'token')}, but {has}: {lack}"
