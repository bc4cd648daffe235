"""Token lists of the toolkits, and which row of one vocabulary is which row of another. Nothing in a file is run."""

from .beside import tokens_beside, vocabulary_beside
from .lending import Lent, with_lent, with_padding
from .mapping import NEW_TOKENS, map_tokens
from .read import BYTES, read_vocabulary
from .union import rows_in, united
from .vocabulary import Vocabulary
from .writing import token_file, with_added_tokens

__all__ = [
    "BYTES",
    "NEW_TOKENS",
    "Lent",
    "Vocabulary",
    "map_tokens",
    "read_vocabulary",
    "rows_in",
    "token_file",
    "tokens_beside",
    "united",
    "vocabulary_beside",
    "with_added_tokens",
    "with_lent",
    "with_padding",
]
