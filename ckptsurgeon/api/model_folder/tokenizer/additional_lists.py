"""Notes on missing token lists, and on token lists in addition to the model's main list.

Additional lists are those of a target language or of entities, and older files next to a tokenizer.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ....destinations.hf.files import is_of_tokenizer
from ....errors import ConfigError, SourceError
from ....storage.read.uri import scheme_of
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape, listing
from ....vocabulary.vocabulary import Vocabulary
from ..documents import VOCABULARIES
from ..folder import LARGEST, ModelFolder
from ..weights.shape_checks import DescribedTensor
from .tokenizer_files import added_tokens, brief_token, object_in

__all__ = ["further_list_notes", "missing_list_notes", "other_rule_notes", "shorter_list_notes"]

SETTINGS = "tokenizer_config.json"
DECODER = r"(^|\.)decoder\.embed_tokens\.weight$"
LISTS = {
    "target_vocab.json": DECODER, "vocab-tgt.json": DECODER, "vocab-src.json": r"(^|\.)encoder\.embed_tokens\.weight$",
    "entity_vocab.json": r"(^|\.)entity_embeddings\.entity_embeddings\.weight$",
}  # fmt: skip
"""{token list of Marian (``separate_vocabs``), FSMT or LUKE: pattern of the key of its embedding}"""
BYTES, BYTE_IDS, EXTRA = "ByT5Tokenizer", 259, 125
"""ByT5 has no token list: its ids are three special tokens, 256 bytes, and ``extra_ids`` (by default 125)."""
SHARED = r"(^|\.)shared\.weight$"
ALPHABET, CTC = "alphabet.json", r"^lm_head\.weight$"
"""The file with the labels by which Wav2Vec2ProcessorWithLM (pyctcdecode) decodes the outputs of the output layer."""


def further_list_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[Note]:
    """Yield a note on each additional token list that has ids for which its embedding or output layer has no row."""
    for name, pattern in LISTS.items():
        # several tokens may have the same id
        ids = [value for value in object_in(folder, name).values() if type(value) is int]
        yield from _beyond(name, 1 + max(ids, default=-1), tensors, pattern)
    settings = object_in(folder, SETTINGS)
    if settings.get("tokenizer_class") == BYTES:
        extra = settings.get("extra_ids", EXTRA)
        number = BYTE_IDS + extra if type(extra) is int else 0
        yield from _beyond(f"{BYTES} ({SETTINGS})", number, tensors, SHARED)
    labels = object_in(folder, ALPHABET).get("labels")
    yield from _beyond(ALPHABET, len(labels) if isinstance(labels, list) else 0, tensors, CTC)


@notes_of(NoteKind.TOKEN_IDS)
def _beyond(what: str, number: int, tensors: Sequence[DescribedTensor], pattern: str) -> Iterator[str]:
    own = next((one for one in tensors if len(one.shape) == 2 and re.search(pattern, one.key)), None)
    if own is not None and number > own.shape[0]:
        yield f"{what} has ids up to {number - 1}, but {escape(own.key)} has {count(own.shape[0], 'row')}"


# Older files next to a tokenizer.json. transformers 5 does not read them, but other programs may.

MERGES, OLDER = "merges.txt", "vocab.json"
COMPARED, FEW = 512, 0.02
"""The approximate number of merge rules that are compared, and the share of rules or tokens that may differ."""


@notes_of(NoteKind.VOCABULARY)
def shorter_list_notes(folder: ModelFolder, number: int) -> Iterator[str]:
    """Yield a note if a vocab.json of ``number`` tokens lacks many tokens of the BPE tokenizer.json next to it."""
    found = _rules_in_whole(folder)
    own = len(found.tokens) - len(added_tokens(folder).intersection(found.tokens)) if found is not None else 0
    if number < own * (1 - FEW):
        lacks = f"{OLDER} has {count(number, 'token')}, but {WHOLE} has {own:,} without added tokens"
        yield f"{lacks}: programs that read {OLDER} do not know the other tokens"


@notes_of(NoteKind.VOCABULARY)
def other_rule_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the rules of merges.txt make tokens that tokenizer.json lacks, or if their number differs.

    Differences of at most 2 % get no note. For the tokens, only a sample of the rules is compared.
    """
    found = _rules_in_whole(folder)
    if found is None or all(one.name != MERGES or scheme_of(one.path) for one in folder.files):
        return
    try:
        data = folder.read(MERGES, LARGEST).strip()
    except (ConfigError, SourceError):
        return
    number = data.count(b"\n") + bool(data) - data.startswith(b"#version")
    sample = _sampled_rules(data)
    made = {"".join(rule) for rule in sample}
    other = made.difference(found.tokens)
    if len(other) > FEW * len(made):
        makes = f"{len(other)} of {count(len(made), 'token')} that merge rules of {MERGES} make (a sample)"
        examples = listing([brief_token(one) for one in sorted(other)], 3, where="")
        yield f"{makes} are not in {WHOLE}: programs that read {MERGES} split texts into different tokens: {examples}"
    elif abs(number - found.rules) > FEW * found.rules:
        has = f"{MERGES} has {count(number, 'merge rule')}, but {WHOLE} has {found.rules:,}"
        yield f"{has}: programs that read {MERGES} split texts into different tokens"


def _rules_in_whole(folder: ModelFolder) -> Vocabulary | None:
    """Return the token list of tokenizer.json if it has merge rules, else None."""
    found = folder.token_list if folder.vocabulary == WHOLE else None
    return found if found is not None and found.kind == "BPE" and found.rules else None


def _sampled_rules(data: bytes) -> list[list[str]]:
    """Return about ``COMPARED`` merge rules of a merges.txt, evenly spread, each as a list of its two parts.

    ``data`` is the content of the file. To save time, other lines are not decoded.
    """
    found, step = [], len(data) // COMPARED + 1
    for at in range(0, len(data), step):
        begin = data.rfind(b"\n", 0, at) + 1
        end = data.find(b"\n", at)
        rule = data[begin : end if end >= 0 else len(data)]
        if not rule.startswith(b"#version"):
            found.append(rule.decode(errors="replace").split())
    return found


# Token lists that are missing, so that the tokeniser cannot be loaded.

WHOLE = "tokenizer.json"
TOGETHER = {
    "Bertweet": ("vocab.txt", "bpe.codes"),
    "BioGpt": ("vocab.json", "merges.txt"),
    "CTRL": ("vocab.json", "merges.txt"),
    "FSMT": ("vocab-src.json", "vocab-tgt.json", "merges.txt"),
    "Flaubert": ("vocab.json", "merges.txt"),
    "M2M100": ("vocab.json", "sentencepiece.bpe.model"),
    "Marian": ("source.spm", "target.spm", "vocab.json"),
    "Phobert": ("vocab.txt", "bpe.codes"),
    "Speech2Text": ("vocab.json", "sentencepiece.bpe.model"),
    "XLM": ("vocab.json", "merges.txt"),
}
"""{name of a transformers class without ``Tokenizer``: files that it needs if there is no tokenizer.json}"""
WITH_LIST = frozenset((
    *TOGETHER, "Albert", "Bart", "Barthez", "Bert", "BigBird", "Blenderbot", "Bloom", "CLIP", "Camembert", "CodeGen",
    "CodeLlama", "Cohere", "Deberta", "DebertaV2", "DistilBert", "Electra", "Esm", "GPT2", "GPTNeoX", "Gemma",
    "Herbert", "LayoutLM", "LayoutLMv2", "LayoutLMv3", "Llama", "Longformer", "Luke", "MBart", "MBart50", "MPNet",
    "MT5", "MobileBert", "Nllb", "OpenAIGPT", "Pegasus", "PreTrained", "Qwen2", "Reformer", "RemBert", "Roberta",
    "SeamlessM4T", "Siglip", "SpeechT5", "T5", "TokenizersBackend", "Vits", "Wav2Vec2CTC", "Wav2Vec2Phoneme", "Whisper",
    "XGLM", "XLMRoberta", "XLNet",
))  # fmt: skip
"""Tokeniser classes of transformers that have a token list, without the ending Tokenizer or TokenizerFast.

Classes of other libraries and byte-level classes (ByT5, Canine, Perceiver) may have no token list.
"""
PIECES = {"source.spm", "target.spm"}
OTHER_LISTS = ("vocab.bpe", "vocab-tgt.json", "bpe.codes", "byte_maps.json", "target.spm")
"""Other files with tokens or merge rules from which a tokeniser may be loaded."""
ELSEWHERE = re.compile(r"token|vocab|spm|sentencepiece|bpe|\.model$", re.IGNORECASE)
"""Matches names of files and subfolders that may belong to a tokeniser with custom code."""


@notes_of(NoteKind.TOKENISER_FILES)
def missing_list_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if a folder has files of a tokeniser, but not the token lists from which it can be loaded.

    There is no note if tokenizer_config.json names no known class or refers to custom code (``auto_map``), or if the
    folder has other files or subfolders that may contain tokens. Only the names of files are read.
    """
    names = {one.name for one in folder.files} | set(folder.linked)
    settings = object_in(folder, SETTINGS)
    others = (one for one in folder.left if not is_of_tokenizer(one))
    is_inside = folder.embedded is not None  # the tokens are inside a GGUF file
    if is_inside or WHOLE in names or "auto_map" in settings or any(map(ELSEWHERE.search, others)):
        return
    named = settings.get("tokenizer_class")
    kind = re.sub("Tokenizer(Fast)?$", "", named) if isinstance(named, str) else ""
    if not kind and names & PIECES:
        kind = "Marian"
    lists = names.intersection((*VOCABULARIES, *OTHER_LISTS))
    lacking = [one for one in TOGETHER.get(kind, ()) if one not in names]
    if lists and lacking:
        has = listing(sorted(lists), 3, where="")
        need = f"{kind}Tokenizer needs {listing(lacking, 3, where='')} for its tokens, and the folder has only {has}"
        yield f"{escape(need)}: the tokeniser cannot be loaded"
    elif SETTINGS in names and not lists and kind in WITH_LIST:
        yield (
            f"the folder has {SETTINGS}, but no list of tokens ({WHOLE}, {_examples(kind)}): the tokeniser cannot "
            "be loaded"
        )


def _examples(kind: str) -> str:
    return ", ".join(TOGETHER.get(kind, ("vocab.json", "vocab.txt", "tokenizer.model")))
