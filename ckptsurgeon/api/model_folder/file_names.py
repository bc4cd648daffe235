"""Names of the files beside the weights of a model."""

from __future__ import annotations

__all__ = ["BYTE_PAIRS", "CHAT", "GENERATION", "OF_PEOPLE", "SECOND", "TOKENIZER", "VOCABULARIES"]

GENERATION = "generation_config.json"
OF_PEOPLE = ("readme", "license", "licence", "copying", "notice", "use_policy")
"""What names of files for people begin with: they speak of the model as it was."""
CHAT = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"
BYTE_PAIRS = ("tekken.json", "qwen.tiktoken", "tiktoken.model")
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    *BYTE_PAIRS,
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "dict.txt",
    "vocab-src.json",
    "prophetnet.tokenizer",
)
"""Where a tokeniser's vocabulary is, the first that is there."""
SECOND = ("dict.txt", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json")
"""Lists of tokens that a tokeniser may have beside its vocabulary: of the other language, of entities."""
