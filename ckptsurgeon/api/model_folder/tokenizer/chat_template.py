"""Notes on a chat template that is for another tokeniser, or that is truncated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from ....errors import ConfigError, SourceError
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import listing
from ..documents import CHAT, TOKENIZER
from ..folder import ModelFolder
from .tokenizer_files import added_tokens, brief_token, local_tokens

__all__ = ["chat_notes", "template_fault"]

CONTROL = re.compile(r"<[|｜][^|｜<>\s{}'\"]{1,40}[|｜]>|<(?:start|begin|end)_of_[a-z_]{1,30}>")
"""Matches control tokens. Ordinary text rarely contains strings of this form."""
OPENS = frozenset(("autoescape", "block", "call", "filter", "for", "generation", "if", "macro", "raw", "trans", "with"))
"""Statements of jinja2, and transformers' own statement ``generation``, that need an end statement."""
INSIDE = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"])*?"""
TAG = re.compile(
    rf"\{{%[-+]?\s*(?P<name>\w*)(?P<rest>{INSIDE})[-+]?%\}}|\{{\{{{INSIDE}\}}\}}|\{{#.*?#\}}|(?P<open>\{{[%{{#])",
    re.DOTALL,
)
RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
SETS = re.compile(r"[\s\w.,()]*=")
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
"""The statement that transformers adds to jinja2. ``generation`` and ``endgeneration`` enclose the model's answer."""


@notes_of(NoteKind.UNREADABLE_FILE)
def chat_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if a chat template cannot be parsed, or if the tokeniser has none of its control tokens.

    ``folder`` has the template. ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a
    folder with the same tokeniser whose vocabulary is already in memory.
    """
    template = ""
    with suppress(ConfigError, SourceError):  # an unreadable file is reported by other notes
        template = folder.chat_template
    where = CHAT if any(one.name == CHAT for one in folder.files) else f"chat_template of {TOKENIZER}"
    if fault := template_fault(template):
        yield f"{where} cannot be parsed, so no chat can be formatted with it: {fault}"
    named = sorted({*CONTROL.findall(template)})
    tokens = {*local_tokens(read), *added_tokens(folder)} if named and local_tokens(read) else set[str]()
    others = sorted(one for one in tokens if CONTROL.fullmatch(one))
    if named and others and not tokens.intersection(named):
        names = listing([brief_token(one) for one in named], 3, where="")
        has = listing([brief_token(one) for one in others], 3, where="")
        yield Note(
            NoteKind.VOCABULARY,
            f"{where} writes tokens that the tokeniser lacks, so that they are split into pieces: {names}; the "
            f"tokeniser has {has}",
        )


def template_fault(template: str) -> str:
    """Return text on the first statement of a chat template without its end or beginning; "" if there is none.

    An example is ``{% if %}`` without ``{% endif %}``. jinja2 is imported only to confirm such a fault, because this
    import takes a quarter of the time of ``ckpt inspect``. So other syntax errors are not found here; they are raised
    when the template is used.
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
            return f"{name} in line {line} has no matching start"
    return f"{open_[-1][0]} in line {open_[-1][1]} has no end" if open_ else ""


def _is_whole(template: str) -> bool:
    """Return whether jinja2 finds no syntax error in a template; False if jinja2 is not installed."""
    try:
        from jinja2 import Environment, TemplateError, TemplateSyntaxError
    except ImportError:
        return False
    plain = GENERATION.sub(lambda one: f"{one[1]}{'endif' if one[2] else 'if true'}{one[3]}", template)
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(plain)
    except TemplateSyntaxError:
        return False
    except (TemplateError, RecursionError):  # nested too deeply, for instance: the template may be valid
        return True
    return True
