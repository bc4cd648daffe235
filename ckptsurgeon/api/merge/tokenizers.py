"""The tokeniser of an output that is merged by a recipe of mergekit, and the embedding rows that the recipe chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...planning.mergekit.configuration import Configuration
from ...planning.mergekit.fields import ModelReference
from ...planning.mergekit.tokenizer import TEMPLATES, TokenRow
from ...planning.plan.rows import VocabularyRows
from ...planning.target import Companion
from ...util.text import brief_repr, escape, listing
from ...vocabulary.union import TokenRowOverride, with_overrides, with_padding
from ...vocabulary.vocabulary import Vocabulary
from ..model_folder.documents import CHAT, TOKENIZER, json_text, read_object
from ..model_folder.embedded import TEMPLATE
from ..model_folder.folder import ModelFolder

__all__ = ["RowsRequest", "chosen_rows", "different", "embedded_template", "tokenizer_files", "wanted"]


def tokenizer_files(
    configuration: Configuration,
    folders: Sequence[ModelFolder],
    donor: int,
    find: Callable[[ModelReference], ModelFolder],
) -> tuple[tuple[Companion, ...], list[str]]:
    """Return (files for an output folder, notes), with the tokeniser and chat template that the recipe chooses.

    ``configuration`` is the parsed recipe. ``donor`` is the index of the model from which the output gets all other
    files. ``find`` returns the folder of a model.

    Raises ConfigError for an invalid chat template, and if the chosen model has no tokeniser.
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
            files = _with_template(files, template)
        else:
            notes.append("chat_template changes nothing: no model has a chat template")
    return files, notes


def embedded_template(configuration: Configuration, folders: Sequence[ModelFolder], donor: int) -> dict[str, str]:
    """Return the entry with the chat template that a recipe chooses, for the metadata of a GGUF output.

    Returns {} if the recipe chooses none, or if the model at index ``donor`` is not a GGUF file. Raises ConfigError for
    an invalid chat template.
    """
    if not configuration.chat_template or folders[donor].embedded is None:
        return {}
    template = _template(configuration.chat_template, folders)
    return {TEMPLATE: template} if template else {}


def wanted(
    configuration: Configuration, donor: ModelFolder, find: Callable[[ModelReference], ModelFolder]
) -> ModelFolder:
    """Return the folder of the model whose tokeniser the output gets: the one in the recipe, else ``donor``."""
    asked = configuration.tokenizer
    return find(asked.source) if asked is not None and isinstance(asked.source, ModelReference) else donor


def different(folders: Sequence[ModelFolder], names: Sequence[str], donor: int, other: ModelFolder) -> list[str]:
    """Return the names of the models whose vocabulary differs from the donor's.

    ``folders`` and ``names`` are the folders and names of the merged models. The donor, at index ``donor``, is the
    model whose configuration the output gets. ``other`` is the folder of the model whose tokeniser the output gets;
    this model is compared too, even if it is not one of the merged models. Models without a vocabulary are not
    included.
    """
    found = [name for name, one in zip(names, folders, strict=True) if not one.has_tokens_of(folders[donor])]
    return found if other.has_tokens_of(folders[donor]) or other in folders else [*found, other.path]


def _with_tokenizer(donor: ModelFolder, other: ModelFolder, where: str) -> tuple[Companion, ...]:
    """Return the files of ``donor`` with the tokeniser of ``other``; raises ConfigError if ``other`` has none.

    ``where`` is the name of the recipe's field with the tokeniser, for the message.
    """
    if not other.tokenizer and (other.embedded is not None or other.path.lower().endswith(".gguf")):
        raise ConfigError(
            f"{where} is {escape(other.path)}, whose tokeniser is inside the GGUF file.",
            hint="Make this model the base_model, or the first model, of the recipe: a GGUF output gets that model's "
            "tokeniser.",
        )
    if not other.tokenizer:
        raise ConfigError(
            f"{where} is {escape(other.path)}, which has no tokeniser.",
            hint="Write base, union or the path of a model that has a tokeniser.",
        )
    own = {one.name for one in donor.tokenizer}
    return (*(one for one in donor.files if one.name not in own), *other.tokenizer)


def _with_template(files: tuple[Companion, ...], template: str) -> tuple[Companion, ...]:
    """Return ``files`` with a new chat template: in chat_template.jinja and tokenizer_config.json (if present)."""
    found = [one for one in files if one.name not in (CHAT, "chat_template.json", TOKENIZER)]
    config = next((read_object(one.path) for one in files if one.name == TOKENIZER), None)
    if config is not None:
        found.append(Companion(TOKENIZER, text=json_text({**config, "chat_template": template})))
    return (*found, Companion(CHAT, text=template))


def _template(said: str, folders: Sequence[ModelFolder]) -> str:
    """Return the text of the chat template for ``said``, the field ``chat_template`` of a recipe; '' if there is none.

    "auto" is the template that most models have. Other values are the name of a built-in template, or the text of a
    template; raises ConfigError if it is neither.
    """
    if said == "auto":
        own = (one.chat_template or (one.embedded.chat_template if one.embedded else "") for one in folders)
        found = Counter(template.strip() for template in own if template.strip())
        return found.most_common(1)[0][0] if found else ""
    if said in TEMPLATES:
        return TEMPLATES[said]
    if "{" not in said or len(said) < 20:
        raise ConfigError(
            f"chat_template is {brief_repr(said, 40)}, which is neither the name nor the text of a template.",
            hint=f"Use auto, {', '.join(TEMPLATES)}, or the text of a template.",
        )
    return said


# Embedding rows that a recipe of mergekit chooses for single tokens.


@dataclass(frozen=True)
class RowsRequest:
    """The embedding rows that a mergekit recipe chooses for single tokens.

    ``tokens`` are the recipe's entries for single tokens, and ``numbers`` maps the models of the recipe to their
    indices. For any other token that a model lacks, the model gets the row of the model at index ``base``. If ``base``
    is None or has no such row, it gets the mean of the rows of all models that have the token. The output's number of
    rows is padded to a multiple of ``multiple``.
    """

    tokens: tuple[TokenRow, ...] = ()
    numbers: Mapping[ModelReference, int] | None = None
    multiple: int = 1
    base: int | None = None

    def added(self, tokens: Sequence[str]) -> tuple[str, ...]:
        """Return the tokens in the recipe that are not in the token list ``tokens``."""
        known = set(tokens)
        return tuple(one.token for one in self.tokens if one.token not in known)


def chosen_rows(
    asked: RowsRequest, every: Sequence[VocabularyRows], lists: Sequence[Vocabulary], tokens: Sequence[str]
) -> tuple[tuple[VocabularyRows, ...], list[str]]:
    """Return (for each model, the numbers of its embedding rows for the output's ``tokens``; notes).

    ``every`` has these numbers as the token lists give them, and ``asked`` the recipe's choices of other rows.
    ``lists`` are the token lists of the models. Raises ConfigError if the recipe chooses a row that does not exist.
    """
    places = {token: place for place, token in enumerate(tokens)}
    needed = [one for one in asked.tokens if one.force or _is_lacking(every, places[one.token])]
    lent = [_lent(one, places[one.token], asked.numbers or {}, every, lists) for one in needed]
    if asked.base is not None:
        spoken = {places[one.token] for one in asked.tokens}
        lent += _of_base(every, asked.base, spoken)
    return with_padding(with_overrides(every, lent), asked.multiple), list(_notes(asked.tokens, needed))


def _is_lacking(every: Sequence[VocabularyRows], place: int) -> bool:
    return any(rows.rows[place] is None for rows in every)


def _lent(
    one: TokenRow,
    place: int,
    numbers: Mapping[ModelReference, int],
    every: Sequence[VocabularyRows],
    lists: Sequence[Vocabulary],
) -> TokenRowOverride:
    if not one.source:
        has = "force: true, but no source" if one.force else "no source, although some models lack the token"
        raise ConfigError(
            f"the entry {escape(one.where)} of the recipe has {has}.",
            hint="Write source: MODEL, source: {kind: zero} or source: {kind: model_token, …}.",
        )
    if one.model is None:
        return TokenRowOverride(place, force=one.force)
    if one.model not in numbers:
        raise ConfigError(
            f"{escape(one.where)}.source is {escape(one.model.written)}, which is not one of the models.",
            hint="Add this model to the models of the recipe; if its weight is 0, only this row is taken from it.",
        )
    number = numbers[one.model]
    return TokenRowOverride(place, number, _row(one, every[number], lists[number]), one.force)


def _row(one: TokenRow, rows: VocabularyRows, tokens: Vocabulary) -> int:
    if isinstance(one.of, int):
        if one.of >= rows.size:
            raise ConfigError(
                f"{escape(one.where)}.source.token_id is {one.of}, but {escape(rows.source)} has {rows.size} rows.",
                hint=f"Use 0 to {rows.size - 1}.",
            )
        return one.of
    wanted = one.token if one.of is None else one.of
    row = tokens.tokens.index(wanted) if wanted in tokens.tokens else rows.size
    if row >= rows.size:
        raise ConfigError(
            f"{escape(one.where)}: the model {escape(rows.source)} has no row for the token "
            f"{escape(brief_repr(wanted))}.",
            hint="Take the row of another token: source: {kind: model_token, model: …, token: …}.",
        )
    return row


def _of_base(every: Sequence[VocabularyRows], base: int, spoken: set[int]) -> Iterator[TokenRowOverride]:
    """Yield the base's row for each token that another model lacks, except tokens that are in the recipe.

    ``every`` has the rows of each model, and ``base`` is the index of the base. ``spoken`` are the output rows of the
    tokens in the recipe.
    """
    for place, row in enumerate(every[base].rows):
        if isinstance(row, int) and place not in spoken and _is_lacking(every, place):
            yield TokenRowOverride(place, base, row)


def _notes(asked: Sequence[TokenRow], needed: Sequence[TokenRow]) -> Iterator[str]:
    if needed:
        tokens = [repr(one.token) + (" (of all models)" if one.force else "") for one in needed]
        yield f"rows chosen by tokenizer.tokens: {listing(tokens)}"
    idle = [repr(one.token) for one in asked if one not in needed]
    if idle:
        yield f"tokenizer.tokens changes nothing, because all models have the token: {listing(idle)}"
