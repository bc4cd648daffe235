"""The tokeniser of a merged model: whose it is, and with which chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..errors import ConfigError, PlanError
from ..mergekit import TEMPLATES, Configuration, Reference, Tokenizer
from ..target import Companion
from ..text import brief_repr, escape, listing
from .model_folders import ModelFolder

__all__ = ["different", "number_of", "tokenizer_files"]


def tokenizer_files(
    configuration: Configuration,
    numbers: Mapping[Reference, int],
    folders: Sequence[ModelFolder],
    names: Sequence[str],
    donor: int,
    *,
    by_token: bool = False,
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files of an output folder, and what is to be said of them.

    Raises PlanError where rows were to go token by token and do not (``by_token``), ConfigError for a chat template
    that is none.
    """
    notes: list[str] = []
    files = folders[donor].files
    asked = configuration.tokenizer
    others = different(folders, donor)
    if asked is not None:
        if not by_token:
            _check_rows(asked, [names[one] for one in others], names[donor])
        if isinstance(asked.source, Reference):
            files = _with_tokenizer_of(folders, donor, number_of(asked.source, asked.where, numbers))
    elif others and not by_token:
        notes.append(
            f"the vocabularies of {escape(names[donor])} and {listing([names[one] for one in others])} differ: "
            "rows are merged by their numbers"
        )
    if configuration.chat_template:
        template = _template(configuration.chat_template, folders)
        if template:
            files = folders[donor].with_template(files, template)
        else:
            notes.append("no model has a chat template to choose")
    return files, notes


def _check_rows(asked: Tokenizer, different: Sequence[str], donor: str) -> None:
    """Raise PlanError where rows would have to go by token."""
    if not (asked.tokens or asked.padded or different):
        return
    wanted = f"{asked.where} asks for tokens, or a size, of its own"
    if different:
        wanted = f"{asked.where} asks for rows by token: {escape(donor)} and {listing(different)} differ in theirs"
    raise PlanError(
        f"{wanted}.",
        hint="Give all models one vocabulary first, with ckpt transplant MODEL CONFIG --vocab THEIRS:WANTED.",
    )


def different(folders: Sequence[ModelFolder], donor: int) -> list[int]:
    """Return the models whose vocabulary is another than the donor's; one without any counts as having the same."""
    own = folders[donor].vocabulary
    return [n for n, one in enumerate(folders) if own and one.vocabulary and one.vocabulary != own]


def number_of(source: Reference, where: str, numbers: Mapping[Reference, int]) -> int:
    """Return the number of a model that a recipe names; raises ConfigError where it is none of the merged."""
    if source not in numbers:
        raise ConfigError(
            f"{where} is {escape(source.said)}, which is no model of the recipe.",
            hint=f"Name one of {', '.join(escape(one.said) for one in numbers)}, base or union.",
        )
    return numbers[source]


def _with_tokenizer_of(folders: Sequence[ModelFolder], donor: int, other: int) -> tuple[Companion, ...]:
    own = {one.name for one in folders[donor].tokenizer}
    return (*(one for one in folders[donor].files if one.name not in own), *folders[other].tokenizer)


def _template(said: str, folders: Sequence[ModelFolder]) -> str:
    """Return a template: the one that most models have, that of a name, or the text itself."""
    if said == "auto":
        found = Counter(one.chat_template.strip() for one in folders if one.chat_template.strip())
        return found.most_common(1)[0][0] if found else ""
    if said in TEMPLATES:
        return TEMPLATES[said]
    if "{" not in said or len(said) < 20:
        raise ConfigError(
            f"chat_template is {brief_repr(said, 40)}, which is no template.",
            hint=f"Use auto, {', '.join(TEMPLATES)}, or the text of one.",
        )
    return said
