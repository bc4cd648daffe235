"""Makes the file of hypotheses of a split: the recognised text and the transcript of each clip, most errors first."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.imports import require_package
from ..data.sound import Clip

__all__ = ["clip_sounds", "hypotheses", "hypotheses_file"]


def hypotheses_file(split: str) -> str:
    """Return the name of a split's file of hypotheses in a run folder."""
    return f"{split}.hypotheses.jsonl"


def clip_sounds(source: object, folder: str) -> dict[str, dict[str, Any]]:
    """Return, by clip name, the position of each clip's sound; {} if ``source`` has no clips.

    Each position is a dict: ``sound`` is the path of the sound file, relative to the run folder ``folder``; ``begin_s``
    and ``seconds`` say which part of the file is the clip.
    """
    clips: Sequence[Clip] = getattr(getattr(source, "split", None), "clips", ())
    start = os.path.abspath(folder)
    return {
        clip.where: {
            "sound": os.path.relpath(os.path.abspath(clip.path), start),
            "begin_s": clip.begin_s,
            "seconds": round(clip.seconds, 3),
        }
        for clip in clips
        if clip.path and clip.cell is None
    }


def hypotheses(rows: Sequence[Mapping[str, Any]], sounds: Mapping[str, Mapping[str, Any]] | None = None) -> bytes:
    """Return the content of a split's file of hypotheses; b"" if the task's rows have no texts.

    ``rows`` are the task's rows, one for each clip; ``sounds`` is the result of ``clip_sounds``. Each line of the file
    is a JSON object about one clip. ``clip`` is the line of the manifest that lists the clip, ``reference`` the
    transcript, and ``hypothesis`` the model's text. ``errors`` is the number of letters that were inserted, deleted or
    replaced, and ``cer`` the number of errors per letter of the reference. If ``sounds`` has an entry for the clip, the
    line also has the fields of this entry.
    """
    if not all({"clip", "reference", "hypothesis"} <= row.keys() for row in rows):
        return b""
    made = []
    for row, errors in zip(rows, _errors(rows), strict=True):
        share = round(errors / max(len(row["reference"]), 1), 4)
        texts = {name: row[name] for name in ("clip", "reference", "hypothesis")}
        made.append({"errors": errors, "cer": share, **texts, **(sounds or {}).get(row["clip"], {})})
    made.sort(key=lambda row: (-row["errors"], -row["cer"], row["clip"]))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode("utf-8", "surrogatepass")


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return, for each row, the Levenshtein distance in letters between its ``hypothesis`` and its ``reference``."""
    if not rows:
        return []
    jiwer = require_package("jiwer")
    found = jiwer.process_characters([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    return [
        sum(
            max(one.ref_end_idx - one.ref_start_idx, one.hyp_end_idx - one.hyp_start_idx)
            for one in chunks
            if one.type != "equal"
        )
        for chunks in found.alignments
    ]
