"""The tokeniser of a merged model: whose it is, and with which chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...errors import ConfigError
from ...planning.mergekit.configuration import Configuration
from ...planning.mergekit.fields import Reference
from ...planning.mergekit.templates import TEMPLATES
from ...planning.target import Companion
from ...util.text import brief_repr, escape
from ..model_folder.folder import ModelFolder

__all__ = ["different", "tokenizer_files", "wanted"]


def tokenizer_files(
    configuration: Configuration,
    folders: Sequence[ModelFolder],
    donor: int,
    find: Callable[[Reference], ModelFolder],
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return the files of an output folder, and what is to be said of them; ``find`` gives the folder of a model.

    Raises ConfigError for a chat template that is none.
    """
    notes: list[str] = []
    files = folders[donor].files
    asked = configuration.tokenizer
    other = wanted(configuration, folders[donor], find)
    if asked is not None and other is not folders[donor]:
        files = _with_tokenizer(folders[donor], other, asked.where)
    if configuration.chat_template:
        template = _template(configuration.chat_template, folders)
        if template:
            files = folders[donor].with_template(files, template)
        else:
            notes.append("no model has a chat template to choose")
    return files, notes


def wanted(configuration: Configuration, donor: ModelFolder, find: Callable[[Reference], ModelFolder]) -> ModelFolder:
    """Return the model whose tokeniser the output has: the one that is named, else the donor."""
    asked = configuration.tokenizer
    return find(asked.source) if asked is not None and isinstance(asked.source, Reference) else donor


def different(folders: Sequence[ModelFolder], names: Sequence[str], donor: int, other: ModelFolder) -> list[str]:
    """Return the models whose vocabulary is another than the donor's; one without any counts as having the same."""
    found = [name for name, one in zip(names, folders, strict=True) if not one.has_tokens_of(folders[donor])]
    return found if other.has_tokens_of(folders[donor]) or other in folders else [*found, other.path]


def _with_tokenizer(donor: ModelFolder, other: ModelFolder, where: str) -> tuple[Companion, ...]:
    """Return the donor's files with another tokeniser; raises ConfigError where the other has none."""
    if not other.tokenizer:
        raise ConfigError(
            f"{where} is {escape(other.path)}, which has no tokeniser.", hint="Name base, union or another model."
        )
    own = {one.name for one in donor.tokenizer}
    return (*(one for one in donor.files if one.name not in own), *other.tokenizer)


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
