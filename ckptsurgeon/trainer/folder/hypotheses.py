"""A file with a model's text for each clip of a split, and the right text: clips with the most errors first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.imports import require_package

__all__ = ["hypotheses", "hypotheses_file"]


def hypotheses_file(split: str) -> str:
    """Return the name that a split's file of hypotheses has in a run folder."""
    return f"{split}.hypotheses.jsonl"


def hypotheses(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the content of a split's file of hypotheses; b"" if the task's rows have no texts.

    Each line is a JSON object: ``errors`` (letters that were inserted, deleted or replaced), ``cer`` (errors per letter
    of the reference), ``clip`` (where it is listed), ``reference`` and ``hypothesis``.
    """
    if not all({"clip", "reference", "hypothesis"} <= row.keys() for row in rows):
        return b""
    made = []
    for row, errors in zip(rows, _errors(rows), strict=True):
        share = round(errors / max(len(row["reference"]), 1), 4)
        texts = {name: row[name] for name in ("clip", "reference", "hypothesis")}
        made.append({"errors": errors, "cer": share, **texts})
    made.sort(key=lambda row: (-row["errors"], -row["cer"], row["clip"]))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode("utf-8", "surrogatepass")


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return how many letters of each hypothesis differ from the reference (Levenshtein's distance)."""
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
