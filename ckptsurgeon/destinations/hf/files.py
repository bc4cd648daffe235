"""The small files in a model's folder: configuration, tokeniser, processors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...storage.read.base import Folder
from ...storage.read.uri import leads_out, open_source
from .sentence_modules import module_files

if TYPE_CHECKING:
    from ...planning.target import Companion

__all__ = [
    "ADAPTER",
    "ADAPTER_WEIGHTS",
    "ALPHABET",
    "CONFIG",
    "FLAGS",
    "GENERATION",
    "PREPROCESSOR",
    "PROCESSORS",
    "companions",
    "is_card",
    "is_of_tokenizer",
    "licence_files",
    "linked_away",
    "model_files",
    "tokenizer_beside",
]

CONFIG, ADAPTER, GENERATION = "config.json", "adapter_config.json", "generation_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ALPHABET, FLAGS = "alphabet.txt", "flags.txt"
"""The token list of Coqui STT, and its training flags in JSON, both in the folder of its checkpoints."""
SETTINGS = (
    CONFIG, ADAPTER, FLAGS, GENERATION, "hf_quant_config.json", "quant_config.json", "quantize_config.json",
    "quanto_qmap.json",
)  # fmt: skip
"""File names of configurations: model, adapter, training, generation, quantisation (the last four)."""
PREPROCESSOR = "preprocessor_config.json"
PROCESSORS = (
    "audio_tokenizer_config.json", "feature_extractor_config.json", PREPROCESSOR, "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
TOKENIZERS = (
    "added_tokens.json", "alphabet.json", ALPHABET, "bpe.codes", "byte_maps.json", "chat_template.jinja",
    "chat_template.json", "dict.txt", "emoji.json", "entity_vocab.json", "merges.txt", "normalizer.json",
    "phonemes.json", "prophetnet.tokenizer", "qwen.tiktoken", "sentencepiece.bpe.model", "sentencepiece.model",
    "source.spm", "special_tokens_map.json", "spiece.model", "spm.model", "spm_char.model", "target.spm",
    "target_vocab.json", "tekken.json", "tiktoken.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab-src.json", "vocab-tgt.json", "vocab.bpe", "vocab.json", "vocab.txt",
    "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
"""The file names of tokenisers that transformers or Coqui STT looks for; code is never copied."""
LICENCES = frozenset(("copying", "licence", "licences", "license", "licenses", "notice", "notices"))
"""Words in the names of files with the terms under which weights may be used and passed on."""
PLATE = "plate"
"""A file whose name has this word, such as licence_plate.txt, has no terms of use, in spite of the word "licence"."""
TEXTS = ("htm", "html", "md", "pdf", "rst", "txt")
"""File name endings of texts that people read, such as licences."""


def is_of_tokenizer(name: str) -> bool:
    """Return whether a file with this name belongs to a tokeniser and depends on its tokens."""
    return name in TOKENIZERS


def is_licence(name: str) -> bool:
    """Return whether a file with this name has terms of use, such as LICENSE-MODEL, NOTICE.txt or USE_POLICY.md."""
    stem, dot, suffix = name.lower().rpartition(".")
    if dot and suffix.isalpha() and suffix not in TEXTS:
        return False
    words = [one for one in re.split("[^a-z]+", stem if dot else suffix) if one]
    named = bool(words) and not LICENCES.isdisjoint((words[0], words[-1])) and PLATE not in words
    return not name.startswith(".") and (named or {"use", "policy"} <= set(words))


def is_card(name: str) -> bool:
    """Return whether a file with this name is a model card, which describes one model with its name and figures."""
    return name.lower().startswith("readme") and not is_licence(name)


def licence_files(folder: Folder) -> tuple[Companion, ...]:
    """Return the files in ``folder`` with terms of use, which must accompany the weights and outputs made from them."""
    return _copies(folder, filter(is_licence, folder.names()))


def companions(folder: str) -> tuple[Companion, ...]:
    """Return the small files in ``folder`` that an output also gets, except config.json and adapter_config.json."""
    source = open_source(folder or os.curdir)
    known = _copies(source, [name for name in _known() if name not in (CONFIG, ADAPTER)])
    return (*known, *_of_modules(source)) if isinstance(source, Folder) else known


def model_files(folder: Folder) -> tuple[Companion, ...]:
    """Return the small files in the folder of a model or an adapter."""
    return (*_copies(folder, _known()), *_of_modules(folder))


def linked_away(folder: Folder) -> tuple[str, ...]:
    """Return the names of small files that are links to files outside the folder; such links are never followed."""
    present = set(folder.names())
    known = [name for name in _known() if name in present] + list(filter(is_licence, folder.names()))
    return tuple(name for name in known if leads_out(os.path.join(folder.uri, name)))


def tokenizer_beside(path: str) -> tuple[Companion, ...]:
    """Return the files of the tokeniser that is in the same folder as the token list at ``path``."""
    return _copies(open_source(os.path.dirname(path) or os.curdir), sorted(TOKENIZERS))


def _known() -> list[str]:
    return sorted({*SETTINGS, *PROCESSORS, *TOKENIZERS})


def _of_modules(folder: Folder) -> tuple[Companion, ...]:
    """Return the files of the modules of sentence-transformers, which may be in subfolders."""
    from ...planning.target import Companion  # takes long to import

    return tuple(Companion(name, os.path.join(folder.uri, name)) for name in module_files(folder))


def _copies(folder: Any, names: Iterable[str]) -> tuple[Companion, ...]:
    """Return the files of a folder with the given ``names``, without links that lead out of the folder."""
    present = set(folder.names())
    paths = {name: os.path.join(folder.uri, name) for name in names if name in present}
    from ...planning.target import Companion  # takes long to import

    return tuple(Companion(name, path) for name, path in paths.items() if not leads_out(path))
