"""Reads speech from datasets that Hugging Face's `datasets` has stored: saved to a folder, or in its cache.

A configuration has ``{hf_dataset: PATH, split: train, text: sentence, audio: audio}``. PATH is a folder that
``save_to_disk`` wrote, or a folder in the cache (``~/.cache/huggingface/datasets/…``). The tables are memory-mapped,
and sounds are read one at a time, so a dataset may be larger than the memory. No code of a dataset is run.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...storage.small_files import read_file
from ...util.did_you_mean import did_you_mean
from ...util.text import brief_repr, escape, listing
from ..config.settings import DATASET
from ..data.arrow import OFFSETS, Cell, open_table
from ..data.sound import Clip

__all__ = ["read_dataset"]

FIELDS = (DATASET, "split", "text", "audio")
INFO, STATE, SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"
TEXTS = ("text", "sentence", "transcription", "transcript", "normalized_text", "label")
"""Columns that may have the transcript or the class; used if the configuration has no field ``text``."""
DEEPEST = 6
"""The number of folder levels of the cache that are searched for a dataset."""
SAVE = "To download and save a dataset, run in Python: datasets.load_dataset(NAME).save_to_disk(FOLDER)."
LARGEST = 64 << 20
"""The largest JSON file of a dataset that is read, in bytes."""


def read_dataset(named: Mapping[str, Any], *, texts: bool = True) -> list[Clip]:
    """Return the clips of a dataset.

    ``named`` is the dataset's entry in the configuration, ``{hf_dataset: PATH, split: …, text: …, audio: …}``. If
    ``texts`` is false, no transcripts are read. Raises ConfigError if the split or a column is missing. Also raises
    ConfigError if there are several possible splits or columns, and the entry names none of them.
    """
    unknown = [one for one in named if one not in FIELDS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], FIELDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(FIELDS)}."
        raise ConfigError(f"a dataset in train.data has the unknown field {escape(unknown[0])}.", hint=hint)
    wrong = next((one for one in FIELDS if one in named and not isinstance(named[one], str)), None)
    if wrong is not None:
        raise ConfigError(f"the field {wrong} of a dataset in train.data is {brief_repr(named[wrong])}, not a string.")
    path = named[DATASET]
    if not os.path.isdir(path):
        what = "is a file" if os.path.exists(path) else "does not exist"
        hint = did_you_mean(path, f"Give a folder that save_to_disk wrote, or one in the cache of datasets. {SAVE}")
        raise ConfigError(f"the dataset {escape(path)} {what}.", hint=hint)
    folder, files = _files(path, named.get("split", ""))
    features = _features(folder)
    audio = _audio(folder, features, named.get("audio", ""))
    text = _text(folder, features, named.get("text", "")) if texts else None
    clips = [clip for file in files for clip in _clips(file, folder, audio, text, features.get(text or ""))]
    if not clips:
        raise ConfigError(f"the dataset {escape(folder)} contains no clips.")
    return clips


def _files(path: str, split: str) -> tuple[str, list[str]]:
    """Return the folder that contains the tables of a split, and the paths of these tables in order.

    Raises ConfigError if the folder has another split, or several splits of which none is chosen.
    """
    if os.path.isfile(os.path.join(path, SPLITS)):
        splits = _json(path, SPLITS).get("splits")
        names = [one for one in splits if isinstance(one, str)] if isinstance(splits, list) else []
        path = os.path.join(path, _chosen(path, names, split))
    elif os.path.isfile(os.path.join(path, STATE)):
        own = _json(path, STATE).get("_split")
        if split and isinstance(own, str) and own != split:
            raise ConfigError(
                f"{escape(path)} is the split {escape(own)}, not {escape(split)}.",
                hint=f"Leave split out, or give the folder of {escape(split)}.",
            )
    if os.path.isfile(os.path.join(path, STATE)):
        return path, _listed(path)
    return _cached(path, split)


def _listed(path: str) -> list[str]:
    """Return the paths of the tables in ``path``, the folder of a split that save_to_disk wrote.

    Raises ConfigError if the folder lists no valid tables, or only selects some of their rows.
    """
    state = _json(path, STATE)
    listed = state.get("_data_files")
    given = [one.get("filename") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if state.get("_indices_files"):
        raise ConfigError(
            f"the dataset {escape(path)} selects rows of its tables by a file of indices, which is not supported.",
            hint="Save the dataset again without indices: dataset.flatten_indices().save_to_disk(FOLDER).",
        )
    names = [name for name in given if isinstance(name, str) and os.path.basename(name) == name]
    other = next((name for name in given if name not in names), None)
    if other is not None or len(names) < len(given):
        raise ConfigError(
            f"{escape(path)}: {STATE} lists {brief_repr(other)}, which is not the name of a file in the folder."
        )
    if not names:
        raise ConfigError(f"{escape(path)}: {STATE} lists no data files.")
    return [os.path.join(path, name) for name in names]


_OF_CACHE = re.compile(r"(.+?)(?:-(\d{5})-of-(\d{5}))?\.arrow")
"""The file name of a table in the cache: ``librispeech-train.100-00000-of-00014.arrow``."""


def _cached(path: str, split: str) -> tuple[str, list[str]]:
    """Return the folder of the only dataset in or below ``path``, and the paths of the tables of its ``split``.

    ``path`` is a folder in the cache of `datasets`. Raises ConfigError if it contains no dataset or several, or if
    tables are missing.
    """
    found = sorted(_with_info(path))
    if len(found) != 1:
        why = f"has several datasets: {listing(found, 4, where='')}" if found else "is not the folder of a dataset"
        hint = "Give one of these folders." if found else f"It has no {INFO}. {SAVE}"
        raise ConfigError(f"{escape(path)} {why}.", hint=hint)
    (folder,) = found
    splits = _json(folder, INFO).get("splits")
    tables: dict[str, list[tuple[int, int, str]]] = {}
    for name in sorted(os.listdir(folder)):
        match = _OF_CACHE.fullmatch(name)
        of = match[1].rpartition("-")[2] if match else ""
        if match and (not isinstance(splits, dict) or of in splits):  # other files are cached results of map()
            tables.setdefault(of, []).append((int(match[2] or 0), int(match[3] or 1), name))
    chosen = _chosen(folder, list(tables), split)
    several = sorted(tables[chosen])
    if len({of for _, of, _ in several}) > 1:
        raise ConfigError(
            f"{escape(folder)} has tables of the split {escape(chosen)} whose names give different numbers of tables.",
            hint="Remove the tables of the older download.",
        )
    if [number for number, _, _ in several] != list(range(several[0][1])):
        raise ConfigError(
            f"{escape(folder)} has only {len(several)} of the {several[0][1]} tables of the split {escape(chosen)}.",
            hint="Load the dataset again with the library datasets, which downloads the missing tables.",
        )
    return folder, [os.path.join(folder, name) for _, _, name in several]


def _with_info(path: str) -> Iterator[str]:
    """Yield the folders at or below ``path`` that contain tables (.arrow) and a dataset_info.json."""
    for folder, inner, names in os.walk(path):
        if INFO in names and any(name.endswith(".arrow") for name in names):
            yield folder
        if os.path.relpath(folder, path).count(os.sep) + 1 >= DEEPEST:
            inner.clear()


def _chosen(path: str, splits: Sequence[str], split: str) -> str:
    """Return ``split`` if it is in ``splits``, or the only split if ``split`` is ''; else raise ConfigError."""
    if split in splits or (not split and len(splits) == 1):
        return split or splits[0]
    there = f"Its splits are {', '.join(map(escape, splits))}." if splits else ""
    if split or not splits:
        raise ConfigError(f"{escape(path)} has no {f'split {escape(split)}' if split else 'splits'}.", hint=there)
    raise ConfigError(f"{escape(path)} has several splits.", hint=f"Choose one with split: NAME. {there}")


def _features(folder: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the type of each column of a dataset (its feature, as a dict), by the column's name.

    Raises ConfigError if the dataset does not list its columns.
    """
    found = _json(folder, INFO).get("features")
    if not isinstance(found, dict):
        raise ConfigError(f"{escape(folder)}: {INFO} does not list the columns (features).")
    return {name: value if isinstance(value, dict) else {} for name, value in found.items()}


def _audio(folder: str, features: Mapping[str, Mapping[str, Any]], named: str) -> str:
    return _column(
        folder, features, named, "audio", [one for one, it in features.items() if it.get("_type") == "Audio"]
    )


def _text(folder: str, features: Mapping[str, Mapping[str, Any]], named: str) -> str:
    return _column(folder, features, named, "text", [name for name in TEXTS if name in features])


def _column(folder: str, features: Mapping[str, object], named: str, field: str, likely: Sequence[str]) -> str:
    """Return the name of the column that the user named, or of the only likely column.

    ``named`` is the column that the user named, or ''. ``likely`` are the columns that may be meant if ``named`` is ''.
    Raises ConfigError if there is no column ``named``, or if ``named`` is '' and there is not exactly one likely
    column. ``field`` is the field of the configuration in which the user names the column, for the message.
    """
    if named in features:
        return named
    if not named and len(likely) == 1:
        return likely[0]
    why = (
        f"has no column {escape(named)}" if named else f"has {'several columns' if likely else 'no column'} for {field}"
    )
    more = f": {', '.join(map(escape, likely))}" if likely and not named else ""
    hint = f"Write {field}: COLUMN; the columns are {listing(list(features), 12, where='')}."
    raise ConfigError(f"{escape(folder)} {why}{more}.", hint=hint)


def _clips(file: str, folder: str, audio: str, text: str | None, kind: Mapping[str, Any] | None) -> Iterator[Clip]:
    """Yield the clips of the table ``file``; ``audio`` and ``text`` are column names, ``kind`` is the type of ``text``.

    If the column ``text`` is a ClassLabel (indices of classes), the text of a clip is the name of its class. Raises
    ConfigError if a column is missing or has no sounds, or if a text is not a string.
    """
    columns = (audio,) if text is None else (audio, text)
    table = open_table(file, columns)
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise ConfigError(f"{escape(file)} has no column {escape(lacking[0])}, which {INFO} lists.")
    if not _has_sounds(table.column(audio).type):
        raise ConfigError(
            f"{escape(file)}: the column {escape(audio)} has no sounds: its type is "
            f"{escape(str(table.column(audio).type), 100)}.",
            hint="Write audio: COLUMN for a column of the type Audio, a struct with the fields bytes and path.",
        )
    names = (kind or {}).get("names") if (kind or {}).get("_type") == "ClassLabel" else None
    paths = _paths(table.column(audio))
    values = [""] * len(table) if text is None else table.column(text).to_pylist()
    for row, (value, path) in enumerate(zip(values, paths, strict=True)):
        where = f"{escape(file)}, row {row}"
        if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        if not isinstance(value, str):
            raise ConfigError(f"{where}: the column {escape(text or '')} has {brief_repr(value)}, not a string.")
        if path is None:
            yield Clip(file, value, where, math.nan, cell=Cell(audio, row))
        else:
            yield Clip(os.path.join(folder, path), value, where, math.nan)


def _has_sounds(kind: Any) -> bool:
    """Return whether an Arrow type is the type of a column of sounds: a struct of their bytes and paths.

    The type of a field that is null in all rows may be null.
    """
    fields = {one.name: str(one.type) for one in kind} if str(kind).startswith("struct<") else {}
    return fields.get("bytes") in (*OFFSETS, "null") and fields.get("path") in ("string", "large_string", "null")


def _paths(column: Any) -> Iterator[str | None]:
    """Yield, for each sound in a column, the path of its file, or None if its bytes are in the table.

    None is also yielded for a row without a sound.
    """
    for chunk in column.chunks:
        stored, paths = chunk.field("bytes").is_valid().to_pylist(), chunk.field("path").to_pylist()
        yield from (None if has or not path else path for has, path in zip(stored, paths, strict=True))


def _json(folder: str, name: str) -> Mapping[str, Any]:
    """Return the JSON object in a file of a dataset; raises ConfigError if it cannot be read."""
    path = os.path.join(folder, name)
    try:
        found = json.loads(read_file(path, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{escape(path)} cannot be read: {escape(str(error), 120)}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{escape(path)} is not a JSON object.")
    return found
