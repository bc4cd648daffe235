"""Chooses which file of a folder to read: an index, the only checkpoint, or one of the files of a training run."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..errors import FormatError
from ..storage.folder_files import broken_links
from ..storage.read.base import File, Folder
from ..util.text import count, escape, listing
from ._espnet_pack import META, packed_weights
from .base import limits
from .base.format_table import (
    EXPORTED,
    HDF5,
    INDEX,
    PREFERRED,
    has_index,
    has_weights,
    indexed_name,
    is_weights,
    missing_shards,
    shard_name,
    shards_among,
    tensor_rank,
)
from .base.untrusted import parse_json

__all__ = [
    "Choice",
    "broken_link_of_run",
    "choose",
    "chosen_of_run",
    "example_of_run",
    "note_of",
    "only_pickle",
]

# Chooses one of the checkpoints that a training run of ESPnet leaves in its folder.
#
# A run leaves one file per epoch, ``checkpoint.pth`` to resume from, the best epochs (``valid.acc.best.pth``), and
# averages. ESPnet's recipes decode with ``valid.acc.ave.pth`` (espnet2/main_funcs/average_nbest_models.py, asr.sh).

_KINDS = (
    (re.compile(r"valid\.acc\.ave\.pth"), "the average that ESPnet decodes with"),
    (re.compile(r"(?:train|valid)\..+\.ave\.pth"), "the only average"),
    (re.compile(r"(?:train|valid)\..+\.ave_\d+best\.pth"), "the only average"),
    (re.compile(r"(?:train|valid)\..+\.best\.pth"), "the only best epoch"),
)
"""Pairs of a pattern of file names and the reason (for a note) why a matching file is read; the best pair is first."""


def chosen_of_run(names: Sequence[str]) -> tuple[str, str]:
    """Return (file name, reason) of the checkpoint to read in an ESPnet run; ('', '') if the choice is not clear.

    ``names`` has the names of the run's checkpoints. ``_KINDS`` lists patterns of names, the best first. The first
    pattern that matches a name decides. The choice is not clear if several names match this pattern, or if no pattern
    matches.
    """
    for pattern, why in _KINDS:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            return (found[0], why) if len(found) == 1 else ("", "")
    return "", ""


def broken_link_of_run(names: Sequence[str], broken: Sequence[str]) -> str:
    """Return the broken link that would be chosen instead of the files ``names`` if its target existed; '' if none.

    ``broken`` has the names of all broken links. A link is preferred over a file if ``_KINDS`` ranks the name of
    the link at least as high as the name of the file.
    """
    for pattern, _ in _KINDS:
        for name in broken:
            if pattern.fullmatch(name):
                return name
        if any(pattern.fullmatch(name) for name in names):
            return ""
    return ""


def example_of_run(names: Sequence[str]) -> str:
    """Return the best of several checkpoint names; a hint shows this name as an example of a file to pass."""
    found = [name for pattern, _ in _KINDS for name in names if pattern.fullmatch(name)]
    return (found or list(names))[0]


_PICKLED = ".pkl"
"""The suffix of pickles, which may contain anything: a pickle is read only if the folder has no other candidate."""
_FIRST_OF_GGUF = re.compile(r"-00001-of-\d{5}\.gguf$")
"""Matches the first file of a model that llama.cpp split; there is no index, so this file is read instead."""


@dataclass(frozen=True)
class Choice:
    """The file to read, with the reason (``why``) and the other candidates of the folder.

    ``file`` is the open file, if it had to be opened to make the choice.
    """

    name: str
    others: Sequence[str] = ()
    why: str = ""
    file: File | None = None


def only_pickle(names: Sequence[str]) -> list[str]:
    """Return [name] of the only name that ends in ``.pkl`` among file names; [] if there is none, or several."""
    found = [name for name in names if name.lower().endswith(_PICKLED)]
    return found if len(found) == 1 else []


def choose(folder: Folder, names: Sequence[str]) -> Choice:
    """Return the file to read in a folder; raises FormatError if there is none, or if the choice is not clear."""
    indexes = [name for name in names if indexed_name(name)]
    shards = shards_among(names)
    singles = [name for name in names if is_weights(name) and (name not in shards or _FIRST_OF_GGUF.search(name))]
    _check_stale(folder, indexes, singles)
    candidates = [*indexes, *singles]
    _check_links(folder, candidates)
    if not candidates and not shards and (packed := packed_weights(folder, names)):
        entry, name = next(iter(packed.items()))
        return Choice(name, [path for path in packed.values() if path != name], f", the {escape(entry)} of {META}")
    if not candidates and not shards:
        exports = ([name for name in names if name.lower().endswith(kind)] for kind in (EXPORTED, HDF5))
        candidates = next(filter(None, exports), only_pickle(names))
    if not candidates:
        raise _none(folder, sorted(shards))
    known = {indexed_name(name).lower() for name in indexes}
    loose = [name for name in names if name in shards and not has_index(name, known)]
    if len(candidates) == 1:
        return Choice(candidates[0], loose)
    for name in [one for preferred in PREFERRED for one in (preferred + INDEX, preferred)]:
        if name in candidates:
            return Choice(name, _without(candidates + loose, name))
    meant, why = chosen_of_run(candidates)
    if meant:
        return Choice(meant, _without(candidates + loose, meant), f", {why}")
    ranks = set(map(tensor_rank, candidates))
    if None not in ranks and len(ranks) > 1:
        raise _no_axes(folder, candidates, len(ranks))
    return _by_index(folder, indexes, candidates, loose)


def note_of(choice: Choice, read: Collection[str]) -> list[str]:
    """Return [note] on the chosen file and on the folder's other checkpoints; [] if there is nothing to say.

    ``read`` has the names of the files that were read, such as shards: they are not listed as other checkpoints. There
    is always a note if the choice has a reason (``why``).
    """
    others = [name for name in choice.others if name not in read]
    shown = listing(others, len(others) if len(others) < 3 else 1, where="")  # keeps the note on one line
    also = f"; also in the folder: {shown}" if others else ""
    return [f"read {escape(choice.name)}{choice.why}{also}"] if choice.why or others else []


def _without(names: Sequence[str], one: str) -> list[str]:
    return [name for name in names if name != one]


def _check_stale(folder: Folder, indexes: Sequence[str], singles: Sequence[str]) -> None:
    """Raise FormatError if a folder has the same checkpoint as a single file and as shards with an index.

    mlx-lm writes an index beside a single file, too; this index lists only that file.
    """
    for index in indexes:
        rival = indexed_name(index)
        if rival in singles and not _lists_only(folder, index, rival):
            raise FormatError(
                f"{escape(folder.uri)} has both {escape(rival)} and {escape(index)}; one of them may be out of date.",
                hint=f"Pass the path of the file to read, {_example(folder, rival)} or {_example(folder, index)}.",
                rule="stale index",
            )


def _lists_only(folder: Folder, index: str, name: str) -> bool:
    with closing(folder.file(index)) as file:
        return _named(file) == {name}


def _check_links(folder: Folder, candidates: Sequence[str]) -> None:
    """Raise SourceError if the checkpoint that would be read is a broken link.

    No other file is read in place of the link, because it would be a different checkpoint. ``candidates`` has the names
    of the checkpoints that exist.
    """
    if has_weights(candidates):
        return
    broken = [name for name in broken_links(folder) if is_weights(name)]
    lost = broken_link_of_run(candidates, broken) or ("" if candidates else next(iter(broken), ""))
    if lost:
        folder.file(lost).close()  # raises an error whose message has the target


def _none(folder: Folder, shards: Sequence[str]) -> FormatError:
    if not shards:
        return FormatError(f"{escape(folder.uri)} contains no checkpoint.", rule="no checkpoint")
    missing, many = missing_shards(shards, most=2)
    others = f"; missing: {', '.join(map(escape, missing))}" if missing else ""
    others += f" and {many - len(missing):,} more" if many > len(missing) else ""
    fetch = f"{'them' if many > 1 else 'it'} and the {INDEX}" if missing else f"the {INDEX} too"
    return FormatError(
        f"{escape(folder.uri)} has {count(len(shards), 'shard')}, but no index{others}.",
        hint=f"Fetch {fetch}, or pass a shard to read it alone, for example {_example(folder, shards[0])}.",
        details=shards,
        rule="no checkpoint",
    )


def _no_axes(folder: Folder, files: Sequence[str], ranks: int) -> FormatError:
    """Return the error for the files of several ranks of tensor parallelism without their index."""
    return FormatError(
        f"{escape(folder.uri)} has the files of {ranks} ranks of tensor parallelism, but no ranks.json, which says "
        "along which axes their tensors are joined.",
        hint="Copy ranks.json from the folder that ckpt wrote. If vLLM saved these files, which has no such index, use "
        "the model that vLLM loaded.",
        details=files,
        rule="no ranks.json",
    )


def _by_index(folder: Folder, indexes: Sequence[str], candidates: Sequence[str], loose: Sequence[str]) -> Choice:
    """Return the index of shards as the Choice, if the folder has one index and all other candidates are its shards.

    ``candidates`` has the names of all checkpoints, including ``indexes``; ``loose`` has the names of shards without an
    index. Raises FormatError if there is no index or several, or if a candidate is not a shard.
    """
    if len(indexes) == 1:
        file = folder.file(indexes[0])
        own = _named(file)
        if own.issuperset(_without(candidates, indexes[0])):
            return Choice(indexes[0], loose, file=file)
        file.close()
        candidates = [name for name in candidates if name not in own]
    raise FormatError(
        f"{escape(folder.uri)} has several checkpoints: {listing(candidates)}.",
        hint=f"Pass one of them, for example {_example(folder, example_of_run(candidates))}.",
        details=candidates,
        rule="several checkpoints",
    )


def _named(index: File) -> set[str]:
    """Return the names of the files that an index lists; empty if the index is invalid.

    No error is raised here for an invalid index: reading the index raises it later.
    """
    if index.size > limits.INDEX_BYTES:
        return set()
    try:
        found = parse_json(index.read(0, index.size))["weight_map"].values()
        return {shard_name(name) for name in found if isinstance(name, str)}
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()


def _example(folder: Folder, name: str) -> str:
    return escape(os.path.join(folder.uri, name))
