"""Token lists of the toolkits, and which row of one vocabulary is which row of another. Nothing in a file is run."""

from .beside import tokens_beside, vocabulary_beside, vocabulary_in
from .lending import Lent, with_lent, with_padding
from .mapping import NEW_TOKENS, map_tokens
from .read import BYTES, VOCABULARY_BYTES, read_vocabulary, vocabulary_of
from .replacement import NewVocabulary, tokens_at
from .token_ids import LostId, MovedIds, Renumbering, ids_beyond, moved_ids, stale_ids
from .union import rows_in, united
from .vocabulary import Vocabulary
from .writing import token_file, with_added_tokens

__all__ = [
    "BYTES",
    "NEW_TOKENS",
    "VOCABULARY_BYTES",
    "Lent",
    "LostId",
    "MovedIds",
    "NewVocabulary",
    "Renumbering",
    "Vocabulary",
    "ids_beyond",
    "map_tokens",
    "moved_ids",
    "read_vocabulary",
    "rows_in",
    "stale_ids",
    "token_file",
    "tokens_at",
    "tokens_beside",
    "united",
    "vocabulary_beside",
    "vocabulary_in",
    "vocabulary_of",
    "with_added_tokens",
    "with_lent",
    "with_padding",
]
