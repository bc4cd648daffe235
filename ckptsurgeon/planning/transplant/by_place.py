"""Finds tensors that have a row for each token and get another number of rows, for notes.

Without --vocab, the rows keep their positions. The notes say that they are not mapped by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from ...util.text import listing

__all__ = [
    "BY_TOKEN",
    "EMBEDDING",
    "HEAD",
    "PLACE",
    "PositionalRows",
    "ShapeChange",
    "is_embedding",
    "is_of_labels",
    "is_of_tokens",
    "vocabulary_keys",
]

PLACE = "place"
"""The value of ``--vocab`` that copies rows by position, whatever their tokens are."""
HEAD = re.compile(r"^(\D*\.)?(lm_head|embed_out|output|output_layer|proj_out|decoder)\.weight$")
"""Matches the keys of output layers over a vocabulary; they are in no numbered module."""
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding|embeddings|shared)\.weight$"
)
"""Matches the keys of input embeddings of a vocabulary."""
BIAS = re.compile(r"^(\D*\.)?(lm_head|embed_out|output|output_layer|proj_out|decoder|predictions)\.bias$")
"""Matches the keys of biases that are added to the output layer."""
LABELS = re.compile(
    r"(^|\.)(\w*classifier|\w*classification_head|score|logits_proj)(\.(out_proj|out|linear|\d+))?"
    r"\.(weight|bias)$"
)
"""Matches the keys of layers with a row for each label, in transformers' classes for classification."""
LABELS_NOTE = "; labels are not compared"
BY_TOKEN = "--vocab SRC_TOKENS:DST_TOKENS"

_WORDS = frozenset(
    (
        "embed", "embedding", "embeddings", "emb", "embd", "wte", "vocab", "vocabulary", "ctc", "classifier", "logits",
        "predictions", "joint", "joiner", "generator",
    )
)  # fmt: skip
"""Words in the names of tensors that have a row for each token, or in the names of their modules."""
_SURE = frozenset(("ctc", "vocab", "vocabulary", "logits", "joint", "joiner"))
"""The words in ``_WORDS`` that are enough on their own: if a name has one, the first axis is always the vocabulary."""
_HEADS = frozenset(("lm_head", "output", "output_layer", "out", "proj_out", "decoder", "shared"))
"""Names of modules that have a tensor with a row for each token; the whole name must be equal."""
_AROUND = frozenset(("seq_lin", "decoder_layers"))
"""Names of modules that contain the output layer, in SpeechBrain and in NeMo."""
_OTHERS = frozenset(
    (
        "pos", "position", "positions", "positional", "relative", "rel", "type", "types", "segment", "patch", "time",
        "timestep", "wpe", "speaker", "spk", "lang", "language", "label", "class", "query", "norm", "layernorm", "ln",
        "bn", "mel", "stft", "freq", "freqs", "bin", "bins", "anchor", "anchors",
    )
)  # fmt: skip
"""Words in the names of tensors whose rows do not belong to tokens, or that have no rows."""

_PROJECTIONS = frozenset((
    "q", "k", "v", "qk", "kv", "qkv", "wq", "wk", "wv", "query", "queries", "key", "keys", "value", "values", "proj",
    "projection", "projector", "gate", "up", "down", "router", "expert", "experts", "adapter", "lora", "hidden",
))  # fmt: skip
"""Words in the names of projections, whose sizes are widths and not numbers of tokens."""

FEWEST = 10
"""If a classifier has fewer rows, they belong to labels, as no vocabulary is so small; others may belong to tokens."""

Sizes = tuple[int, int]
"""The size of an axis in the source, and in the destination."""


@dataclass(frozen=True)
class ShapeChange:
    """A tensor whose shape in the source, ``have``, differs from its shape in the destination, ``want``.

    ``names`` are all its keys in the destination, ``source_key`` is its key in the source.
    """

    names: tuple[str, ...]
    have: Sequence[int]
    want: Sequence[int]
    source_key: str = ""

    def sizes(self) -> list[Sizes]:
        """Return (size in source, size in destination) of each axis, without axes that have the size 1 in both."""
        return [pair for pair in zip(self.have, self.want, strict=True) if pair != (1, 1)]


class PositionalRows:
    """Finds which of the tensors with different shapes have a row for each token.

    If the destination declares the vocabulary axis of tensors, these declarations decide. Otherwise names and shapes
    decide (``_rows_of_tokens``).
    """

    def __init__(self, changes: Iterable[ShapeChange], declared: Mapping[str, int]) -> None:
        alike = [one for one in changes if len(one.have) == len(one.want)]
        self._sizes = dict(_declared_rows(alike, declared)) if declared else _rows_of_tokens(alike)
        tokens = {sizes for key, sizes in self._sizes.items() if not is_of_labels(key)}
        labels = {key: sizes for key, sizes in self._sizes.items() if is_of_labels(key)}
        self._labels = {key for key, sizes in labels.items() if max(sizes) < FEWEST or sizes not in tokens}
        self._labels -= declared.keys()

    def __contains__(self, key: str) -> bool:
        """Return whether the tensor ``key`` was found to have a row for each token, and not for each label."""
        return key in self._sizes and key not in self._labels

    def resized(self, keys: Iterable[str], unmapped: str = "", *, has_vocab: bool = True) -> list[str]:
        """Return notes on the resized tensors in ``keys`` that have a row for each token or each label.

        For tokens, they say that rows are copied by position, not by token; for labels, that labels are not compared.
        With --vocab, ``unmapped`` is a clause that says that it does not map these rows. ``has_vocab`` is false if the
        verb has no option --vocab, which the notes propose otherwise.
        """
        by_token = unmapped or (f"{BY_TOKEN} maps rows by token" if has_vocab else "")
        option = "--vocab-keys" if unmapped else BY_TOKEN if has_vocab else ""
        return [
            f"{listing(found, where='')} {'goes' if len(found) == 1 else 'go'} from {before} to {after} rows by "
            + ("position" if are_labels else "position, not by token" + (f"; {by_token}" if by_token else ""))
            + (_labels_note(before, after, option) if are_labels else "")
            for (before, after, are_labels), found in self._by_sizes(keys).items()
        ]

    def merged(self) -> list[str]:
        """Return notes on the tensors with a row for each token or each label: rows are merged by position."""
        return [
            f"{listing(found, where='')} ({before} and {after} rows) {'is' if len(found) == 1 else 'are'} merged by "
            + ("position" if are_labels else "position, not by token")
            + (_labels_note(before, after, "--vocab union") if are_labels else "; --vocab union merges rows by token")
            for (before, after, are_labels), found in self._by_sizes(self._sizes).items()
        ]

    def _by_sizes(self, keys: Iterable[str]) -> dict[tuple[int, int, bool], list[str]]:
        found: dict[tuple[int, int, bool], list[str]] = {}
        for key in keys:
            if key in self._sizes:
                found.setdefault((*self._sizes[key], key in self._labels), []).append(key)
        return found


def _declared_rows(changes: Iterable[ShapeChange], declared: Mapping[str, int]) -> Iterator[tuple[str, Sizes]]:
    """Yield (key, sizes) of each tensor whose declared vocabulary axis changes."""
    for one in changes:
        axis = next((declared[name] for name in one.names if name in declared), None)
        if axis is not None and axis < len(one.have) and one.have[axis] != one.want[axis]:
            yield one.names[0], (one.have[axis], one.want[axis])


def _rows_of_tokens(changes: Iterable[ShapeChange]) -> dict[str, Sizes]:
    """Return the sizes of the first axis of each tensor that has a row for each token, by the tensor's first key.

    Names and shapes decide. The candidates are matrices and biases whose only changed axis is the first. Candidates
    that change by the same sizes have a row for each token if one of these is true:

    - one of the matrices has a name that is certain, such as ``lm_head.weight``;
    - no other axis, and no vector other than a bias, changes by these sizes (if one does, a layer has become wider);
      and one of the matrices has the name of a vocabulary, or two look like an embedding and its output layer.
    """
    rows: list[tuple[ShapeChange, Sizes, int]] = []
    wider: set[Sizes] = set()
    for change in changes:
        sizes = change.sizes()
        differing = [(a, b) for a, b in sizes if a != b]
        if differing == sizes[:1] and (len(sizes) == 2 or (len(sizes) == 1 and _could_be_bias(change))):
            rows.append((change, sizes[0], len(sizes)))
        else:
            wider.update(differing)
    matrices = [(one.names, sizes) for one, sizes, axes in rows if axes == 2]
    sure = {sizes for names, sizes in matrices if any(map(_is_surely_of_tokens, names))}
    named = {sizes for names, sizes in matrices if _has_rows(names, 2)} - wider
    tokens = {sizes for names, sizes in matrices if _has_rows(names, 2) and not any(map(is_of_labels, names))} - wider
    tokens |= _paired(rows, wider) - wider
    return {
        one.names[0]: sizes
        for one, sizes, axes in rows
        if sizes in sure
        or (sizes in named and _has_rows(one.names, axes))
        or (sizes in tokens and not any(map(_has_other_rows, one.names)))
    }


def _paired(rows: Sequence[tuple[ShapeChange, Sizes, int]], wider: Set[Sizes]) -> set[Sizes]:
    """Return the (source, destination) sizes of matrices that, by shape, are an embedding and its output layer.

    ``rows`` has all tensors that change only along the first axis, and ``wider`` the (source, destination) sizes of
    other axes that change. Two matrices are a pair if the names of their modules differ in more than numbers, and one
    of them, the embedding, has no bias. If both sizes are multiples of 8, as widths are, the matrices must also look
    like tables for tokens (``_are_tables``).
    """
    keys = {one.names[0] for one, _, _ in rows}
    pairs: dict[Sizes, list[ShapeChange]] = {}
    for one, sizes, _ in rows:
        key = one.names[0]
        if max(sizes) >= FEWEST and "bias" not in key.rpartition(".")[2] and not _has_other_rows(key):
            pairs.setdefault(sizes, []).append(one)
    found = set()
    for sizes, some in pairs.items():
        modules = {_module(one.names[0]) for one in some}
        is_pair = _are_pair(modules) and any(f"{one}.bias" not in keys for one in modules)
        if is_pair and (any(size % 8 for size in sizes) or _are_tables(some, sizes, wider)):
            found.add(sizes)
    return found


def _are_tables(pair: Sequence[ShapeChange], sizes: Sizes, wider: Set[Sizes]) -> bool:
    """Return whether resized matrices are an embedding and its output layer rather than two projections.

    An embedding and its output layer have one column for each feature of the model, more rows than columns, and are in
    no numbered list. Two projections are recognised by their names, different numbers of columns, or fewer rows. If the
    results of projections are concatenated, an axis of another tensor changes by a multiple of their sizes.
    """
    if any(before * sizes[1] == after * sizes[0] for before, after in wider):
        return False
    if any(re.search(r"(^|\.)\d+\.", one.names[0]) for one in pair):
        return False
    named = any(_PROJECTIONS & _words(one.names[0].lower().split(".")) for one in pair)
    widths = {one.want[-1] for one in pair}
    return not named and len(widths) == 1 and max(sizes) > min(widths)


def _module(key: str) -> str:
    """Return the module of a weight (``head`` for ``head.weight``); another key, such as ``wte``, is unchanged."""
    module, _, last = key.rpartition(".")
    return module if last.startswith("weight") else key


def _are_pair(modules: Set[str]) -> bool:
    """Return whether there are two or more modules, whose names differ in more than digits (not ``a.0``, ``a.1``)."""
    return 1 < len(modules) == len({re.sub(r"\d+", "", one) for one in modules})


def _labels_note(before: int, after: int, option: str) -> str:
    """Return the end of a note on a classifier whose number of rows changes: it says that labels are not compared.

    ``before`` and ``after`` are the numbers of rows. If they are so large that the rows may belong to tokens, the text
    also mentions ``option``, which maps rows by token, unless it is ''.
    """
    return LABELS_NOTE + (
        f"; if the rows belong to tokens, use {option}" if option and max(before, after) >= FEWEST else ""
    )


def vocabulary_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys of output layers and input embeddings, which have a row for each token."""
    return [key for key in keys if any(one.search(key) for one in (HEAD, EMBEDDING, BIAS))]


def is_embedding(key: str) -> bool:
    """Return whether ``key`` has the name of a token embedding."""
    return EMBEDDING.search(key) is not None


def is_of_labels(key: str) -> bool:
    """Return whether ``key`` has the name of a classifier's last layer, which has a row for each label."""
    return LABELS.search(key) is not None


def is_of_tokens(key: str, axes: int) -> bool:
    """Return whether a tensor has a row for each token, by its key; ``axes`` is 2 for a matrix, 1 for its bias."""
    return bool(vocabulary_keys([key])) or _has_rows((key,), axes)


def _has_rows(names: Sequence[str], axes: int) -> bool:
    """Return whether a tensor has a row for each token: one of its names is that of an embedding or an output layer.

    ``axes`` is the number of dimensions of the tensor: 2 for a matrix, 1 for a bias.
    """
    return axes in (1, 2) and any(_is_of_tokens(name, bias=axes == 1) for name in names)


def _has_other_rows(name: str) -> bool:
    """Return whether a tensor's name shows that its rows do not belong to tokens, but to positions, for example."""
    return not _words(name.lower().split(".")[-3:]).isdisjoint(_OTHERS)


def _could_be_bias(change: ShapeChange) -> bool:
    """Return whether one of a tensor's names is the name of a bias."""
    return any("bias" in name.lower().rpartition(".")[2] for name in change.names)


def _is_of_tokens(name: str, *, bias: bool) -> bool:
    *modules, last = name.lower().split(".")
    if bias and "bias" not in last:
        return False
    parts = modules[-2:] if last in ("weight", "bias") else [*modules, last][-2:]
    words = _words(parts)
    is_named = not words.isdisjoint(_WORDS) or not _HEADS.isdisjoint(parts[-1:]) or not _AROUND.isdisjoint(parts)
    return words.isdisjoint(_OTHERS) and is_named


def _is_surely_of_tokens(name: str) -> bool:
    """Return whether a matrix with this name certainly has a row for each token."""
    words = _words(name.lower().split(".")[-3:-1])
    is_one = EMBEDDING.search(name) is not None or name.endswith(("lm_head.weight", "embed_out.weight"))
    return words.isdisjoint(_OTHERS) and (is_one or not words.isdisjoint(_SURE))


def _words(parts: Sequence[str]) -> set[str]:
    return {word for part in parts if part != "language_model" for word in re.split(r"[_\d]+", part)}
