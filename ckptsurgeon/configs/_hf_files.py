"""What a folder of transformers holds beside the weights: configuration, tokeniser, processors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ..target import Companion

__all__ = ["companions", "weights_folder_files"]

FILES = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "feature_extractor_config.json",
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json",
    "tokenizer_config.json", "video_preprocessor_config.json", "bpe.codes", "dict.txt", "emoji.json",
    "entity_vocab.json", "merges.txt", "normalizer.json", "phonemes.json", "prophetnet.tokenizer",
    "sentencepiece.bpe.model", "source.spm", "spiece.model", "spm_char.model", "target.spm", "target_vocab.json",
    "tokenizer.json", "tokenizer.model", "vocab-src.json", "vocab-tgt.json", "vocab.bpe", "vocab.json",
    "vocab.txt",
)  # fmt: skip
"""The names by which transformers finds such files. Never code, and nothing else that happens to lie there."""


def companions(config: Any, folder: str) -> tuple[Companion, ...]:
    """Return the files of an output folder: the configuration as it is used, then copies of those that lie beside."""
    return (Companion("config.json", text=config.to_json_string()), *_copies(folder, FILES))


def weights_folder_files(folder: str) -> tuple[Companion, ...]:
    """Return what lies beside the weights in a folder of transformers: nothing where it has no config.json."""
    copies = _copies(folder, ("config.json", *FILES))
    return copies if any(one.name == "config.json" for one in copies) else ()


def _copies(folder: str, names: Iterable[str]) -> tuple[Companion, ...]:
    paths = {name: os.path.join(folder, name) for name in sorted(names)}
    return tuple(Companion(name, path) for name, path in paths.items() if os.path.isfile(path))
