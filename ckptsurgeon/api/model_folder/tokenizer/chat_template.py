"""Notes on a chat template that is for another tokeniser, or that is cut short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from ....errors import ConfigError, SourceError
from ....util.text import listing
from ..documents import CHAT, TOKENIZER
from ..folder import ModelFolder
from .tokenizer_files import added_tokens, brief_token, local_tokens

__all__ = ["chat_notes", "template_fault"]

CONTROL = re.compile(r"<[|｜][^|｜<>\s{}'\"]{1,40}[|｜]>|<(?:start|begin|end)_of_[a-z_]{1,30}>")
"""Tokens of this form are rarely in a text by themselves."""
OPENS = frozenset(("autoescape", "block", "call", "filter", "for", "generation", "if", "macro", "raw", "trans", "with"))
"""Statements of jinja2, and of transformers (``generation``), that need an end."""
INSIDE = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"])*?"""
TAG = re.compile(
    rf"\{{%[-+]?\s*(?P<name>\w*)(?P<rest>{INSIDE})[-+]?%\}}|\{{\{{{INSIDE}\}}\}}|\{{#.*?#\}}|(?P<open>\{{[%{{#])",
    re.DOTALL,
)
RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
SETS = re.compile(r"[\s\w.,()]*=")
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
"""The statement that transformers adds to jinja2: it marks what the model writes, and stands alone as ``if`` does."""


def chat_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if a chat template cannot be parsed, or writes none of the control tokens of the tokeniser.

    The template is that of ``folder``; the tokens are those of ``read``, the same folder or one with the same tokeniser
    whose vocabulary is loaded already.
    """
    template = ""
    with suppress(ConfigError, SourceError):  # reported elsewhere
        template = folder.chat_template
    where = CHAT if any(one.name == CHAT for one in folder.files) else f"chat_template of {TOKENIZER}"
    if fault := template_fault(template):
        yield f"{where} cannot be parsed, so that no chat is written by it: {fault}"
    named = sorted({*CONTROL.findall(template)})
    tokens = {*local_tokens(read), *added_tokens(folder)} if named and local_tokens(read) else set[str]()
    others = sorted(one for one in tokens if CONTROL.fullmatch(one))
    if named and others and not tokens.intersection(named):
        names = listing([brief_token(one) for one in named], 3, where="")
        has = listing([brief_token(one) for one in others], 3, where="")
        yield f"{where} writes tokens that the tokeniser lacks, so that it splits them: {names}; it has {has}"


def template_fault(template: str) -> str:
    """Return the statement of a chat template that has no end, or ends nothing; "" if there is none.

    jinja2 is asked only about a template that seems to be cut: to import it would take a quarter of the time of
    ``ckpt inspect``. So other errors of syntax are not found; they end the first use of the template.
    """
    fault = _unbalanced(template)
    return "" if fault and _is_whole(template) else fault


def _unbalanced(template: str) -> str:
    open_, at = list[tuple[str, int]](), 0
    while match := TAG.search(template, at):
        at, line = match.end(), template.count("\n", 0, match.start()) + 1
        name = match["name"] or ""
        if match["open"]:
            return f"{match['open']} in line {line} has no end"
        if name == "raw" and (end := RAW.search(template, at)):
            at = end.end()
        elif name in OPENS or (name == "set" and not SETS.match(match["rest"])):
            open_.append((name, line))
        elif name.startswith("end") and (not open_ or open_.pop()[0] != name.removeprefix("end")):
            return f"{name} in line {line} ends nothing that is open"
    return f"{open_[-1][0]} in line {open_[-1][1]} has no end" if open_ else ""


def _is_whole(template: str) -> bool:
    """Whether jinja2 finds no error of syntax in a template; False if jinja2 is not installed."""
    try:
        from jinja2 import Environment, TemplateError, TemplateSyntaxError
    except ImportError:
        return False
    plain = GENERATION.sub(lambda one: f"{one[1]}{'endif' if one[2] else 'if true'}{one[3]}", template)
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(plain)
    except TemplateSyntaxError:
        return False
    except (TemplateError, RecursionError):  # too deep, for instance: it is not known whether it can be read
        return True
    return True
