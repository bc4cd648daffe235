"""Reads the fields of a mergekit configuration for the output's tokeniser; defines the named chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...util.text import brief_repr
from .fields import ModelReference, at, fault, reference, table, text

__all__ = ["TEMPLATES", "TokenRow", "Tokenizer", "read_tokenizer"]

# Named chat templates: each writes a conversation as the makers of its format do.

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
"""https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}
"""
"""https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/"""

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' %}{{ '### Instruction:\\n' }}
{%- elif message['role'] == 'user_context' %}{{ '### Input:\\n' }}
{%- elif message['role'] == 'assistant' %}{{ '### Response:\\n' }}{% endif -%}
{{ message['content'] | trim + '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif -%}
"""
"""https://github.com/tatsu-lab/stanford_alpaca#data-release"""

_MISTRAL = """\
{{- bos_token -}}
{%- set system = namespace(text='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' %}{% set system.text = message['content'] + '\\n\\n' %}
{%- elif message['role'] == 'user' %}{{ ' [INST] ' + system.text + message['content'] + ' [/INST]' }}
{%- set system.text = '' %}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif -%}
{%- endfor -%}
"""
"""https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3"""

_EXAONE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif -%}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif -%}
"""
"""https://huggingface.co/LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct"""

TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL,
}  # fmt: skip

"""{name: chat template}: the templates that a configuration may refer to."""


FIELDS = ("source", "tokens", "pad_to_multiple_of")
KINDS = ("zero", "model_token")


@dataclass(frozen=True)
class TokenRow:
    """An entry of a configuration that sets the embedding row of ``token`` for models that lack the token.

    With ``force`` the row is set for all models. It is a row of ``model``, or zeros if ``model`` is None. ``of`` says
    which row of the model this is: the row of another token (a string), the row with an index (an integer), or the row
    of ``token`` itself (None). ``source`` is false if the entry has no field ``source``, and so names no row.
    """

    where: str
    token: str
    source: bool = False
    model: ModelReference | None = None
    of: str | int | None = None
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """The output's tokeniser, and the embedding rows that the configuration sets for single tokens.

    ``source`` is "base" for the base's tokeniser, "union" for the tokens of all models, or a model whose tokeniser is
    used. The number of rows is padded to a multiple of ``multiple``.
    """

    where: str
    source: str | ModelReference
    tokens: tuple[TokenRow, ...] = ()
    multiple: int = 1

    @property
    def is_detailed(self) -> bool:
        """Whether the configuration sets the rows of single tokens, or pads the number of rows."""
        return bool(self.tokens) or self.multiple > 1


def read_tokenizer(given: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokeniser that a configuration sets, None if it sets none; raises ConfigError for wrong values."""
    if "tokenizer" not in given:
        source = given.get("tokenizer_source")
        return Tokenizer("tokenizer_source", _source("tokenizer_source", source)) if source else None
    if "tokenizer_source" in given:
        raise fault("tokenizer_source", "and tokenizer are both given", "Leave one out.")
    entries = table("tokenizer", given["tokenizer"], FIELDS)
    tokens = entries.get("tokens", {})
    if not isinstance(tokens, dict):
        raise fault("tokenizer.tokens", f"is {brief_repr(tokens)}, not a map of tokens")
    return Tokenizer(
        "tokenizer",
        _source("tokenizer.source", entries.get("source", "union")),
        tuple(_row(at("tokenizer.tokens", str(token)), token, row) for token, row in tokens.items()),
        _multiple(entries.get("pad_to_multiple_of")),
    )


def _source(where: str, data: Any) -> str | ModelReference:
    return data if data in ("base", "union") else reference(where, data)


def _multiple(data: Any) -> int:
    """Return the value of ``pad_to_multiple_of``: the number of rows is padded to a multiple of it; 1 if not set.

    Raises ConfigError for a value that is not a whole number.
    """
    if data is None or (type(data) is int and data == 0):
        return 1
    if type(data) is not int or data < 0:
        raise fault(
            "tokenizer.pad_to_multiple_of",
            f"is {brief_repr(data)}, not a number of rows",
            "Use a whole number, as in 64.",
        )
    return data


def _row(where: str, token: Any, data: Any) -> TokenRow:
    if not isinstance(token, str) or not token:
        raise fault(where, "is not a string", "Write the token in quotes.")
    given = table(where, data, ("source", "force"))
    force = given.get("force", False)
    if not isinstance(force, bool):
        raise fault(at(where, "force"), f"is {brief_repr(force)}, not true or false")
    if "source" not in given:
        return TokenRow(where, token, force=force)
    source, inside = given["source"], at(where, "source")
    if not isinstance(source, dict) or "kind" not in source:
        return TokenRow(where, token, True, reference(inside, source), force=force)
    if source["kind"] not in KINDS:
        raise fault(at(inside, "kind"), f"is {brief_repr(source['kind'])}", f"Use {' or '.join(KINDS)}.")
    if source["kind"] == "zero":
        table(inside, source, ("kind",))
        return TokenRow(where, token, True, force=force)
    entries = table(inside, source, ("kind", "model", "token", "token_id"), ("model",))
    return TokenRow(
        where, token, True, reference(at(inside, "model"), entries["model"]), _token(inside, entries), force
    )


def _token(where: str, entries: Mapping[str, Any]) -> str | int:
    """Return the token whose row is used, or the index of the row; raises ConfigError for both or neither."""
    if ("token" in entries) == ("token_id" in entries):
        both = "has both token and token_id" if "token" in entries else "has neither token nor token_id"
        raise fault(where, both, "Give the token whose row is used, or the index of the row.")
    if "token" in entries:
        return text(at(where, "token"), entries["token"])
    number = entries["token_id"]
    if type(number) is not int or number < 0:
        raise fault(at(where, "token_id"), f"is {brief_repr(number)}, not the index of a row")
    return number
