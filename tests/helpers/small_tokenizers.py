"""Tokenisers of each kind that are trained in a moment, as transformers saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENGLISH = (
    "The quick brown fox jumps over the lazy dog while the other dogs sleep in the sun.",
    "A network of another size computes the same at the start; what it computes later is learned.",
    "Rows of tokens that both have are kept, and the rows of all others are new: 12 + 34 = 46!",
    "She sells sea shells by the sea shore; the shells she sells are surely sea shells.",
)
GERMAN = (
    "Der schnelle braune Fuchs springt über den faulen Hund, und der Hund schläft in der Sonne weiter.",
    "Ein Netz anderer Größe rechnet zu Anfang dasselbe; was es später rechnet, ist gelernt.",
    "The rows of tokens, the sea and the sun: diese Wörter kennen beide.",
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
_NAMES = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
KINDS = ("bytes", "metaspace", "wordpiece", "unigram")
"""Byte-level BPE, BPE with bytes for unknown letters, WordPiece, and a unigram model."""


def tokenizer(kind: str, texts: Sequence[str], size: int, special: Sequence[str] = SPECIAL) -> Any:
    """Return a tokeniser of the package tokenizers, trained on some texts; special tokens come first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    asked: dict[str, Any] = {"vocab_size": size, "special_tokens": list(special), "show_progress": False}
    made: Any
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **asked)
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(**{**asked, "special_tokens": [*special, "<0x0A>", "<0xC3>"]})
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**asked)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **asked)
    made.train_from_iterator(texts, trainer)
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>") if token in special]
    if len(ends) == 2:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
        )
    return made


def saved_tokenizer(made: Any, folder: Path, **settings: Any) -> Path:
    """Save a tokeniser as transformers does; returns the folder."""
    import transformers

    cls: Any = transformers.PreTrainedTokenizerFast
    known = {name: token for name, token in _NAMES.items() if made.token_to_id(token) is not None}
    cls(tokenizer_object=made, **{**known, **settings}).save_pretrained(folder)
    return folder
