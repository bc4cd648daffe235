"""Reads the tokens in the ``token_list`` of an ESPnet ``config.yaml``. A file name in place of tokens is an error."""

from __future__ import annotations

from ..errors import ConfigError
from ..storage.yaml_text import read_yaml
from ..util.text import brief_repr
from .vocabulary import Marks, Vocabulary, checked

__all__ = ["VOCABULARY"]


class _ESPnet:
    marks = (Marks(r"(?i:.*\.ya?ml)"),)

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the tokens in ``token_list``; raises ConfigError if the list is a file name, missing or malformed."""
        try:
            document = read_yaml(data.decode("utf-8"), name, exponents=False)
        except UnicodeDecodeError:
            raise ConfigError(f"{name} is not a valid configuration: it is not UTF-8.") from None
        tokens = document.get("token_list") if isinstance(document, dict) else document
        if isinstance(tokens, str):
            raise ConfigError(
                f"{name} has no tokens: its token_list is the file {brief_repr(tokens, 80)}.",
                hint="Give that file instead.",
            )
        if not isinstance(tokens, list):
            raise ConfigError(
                f"{name} has no list of tokens (token_list).", hint="Give the config.yaml that a run of ESPnet wrote."
            )
        if not all(isinstance(token, str) for token in tokens):
            raise ConfigError(
                f"the token_list of {name} has tokens that are not strings.",
                hint="Put quotation marks around tokens that YAML reads as numbers or truth values.",
            )
        return checked(name, tokens)


VOCABULARY = _ESPnet()
