"""The folder of a study: its settings, its trials as JSON lines, their models, and the best recipe."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, FormatError
from ...planning.search.result import BEGUN, DONE, FAILED, Trial
from ...planning.search.space import Value
from ...storage.descriptors import sync
from ...storage.json_text import read_json
from ...storage.small_files import read_file
from ...storage.write.output_paths import output_error, output_lock
from ...storage.write.staged_file import write_text
from ...util.text import brief_repr, escape, listing

__all__ = ["BEST", "PICTURE", "Study", "opened_study"]

SETTINGS, LINES, TRIALS, BEST, PICTURE = "study.json", "trials.jsonl", "trials", "best.yaml", "scores.svg"
MOST_BYTES = 1 << 30
"""The largest size in bytes of the file with the lines of a study."""


@dataclass
class Study:
    """An open study: its folder, its settings, and its trials by number, in the order in which they began.

    ``events`` has an entry for each line: the number of a trial, and a boolean. It is true if the line records the end
    of the trial, and false if the line records the beginning.
    """

    folder: str
    settings: Mapping[str, Any]
    trials: dict[int, Trial] = field(default_factory=dict)
    events: list[tuple[int, bool]] = field(default_factory=list)

    def begin(self, number: int, values: Mapping[str, Value | list[str]]) -> Trial:
        """Return the unfinished trial with this number, or else a new one, which has been written to the JSON lines."""
        if number not in self.trials:
            self._take(Trial(number, dict(values)))
            self._write(self.trials[number])
        return self.trials[number]

    def end(self, trial: Trial) -> None:
        """Write the end of a trial (its score or its failure) to the JSON lines; it is on disk when this returns."""
        trial.state = DONE if trial.score is not None else FAILED
        self._take(trial)
        self._write(trial)

    def _take(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self.events.append((trial.number, trial.state != BEGUN))

    def _write(self, trial: Trial) -> None:
        path = self.path(LINES)
        line = json.dumps({**trial.to_json(), "time": round(time.time(), 3)}, allow_nan=False)
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                if trial.state != BEGUN:  # an end must not be lost: the trial would run again
                    sync(file.fileno())
        except OSError as error:
            raise output_error(path, error) from error

    def path(self, *names: str) -> str:
        """Return the path of a file in the study's folder."""
        return os.path.join(self.folder, *names)

    def write(self, name: str, text: str) -> None:
        """Write a small file of the study, either completely or not at all."""
        write_text(self.path(name), text, inputs=(), force=True)

    @contextmanager
    def room(self, number: int, *, keep: bool) -> Iterator[str]:
        """Yield an empty folder for the files of a trial; it is removed after the ``with`` block unless ``keep``."""
        path = self.path(TRIALS, f"{number:04}")
        shutil.rmtree(path, ignore_errors=True)
        try:
            os.makedirs(path)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            yield path
        finally:
            if not keep:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):
                    os.rmdir(self.path(TRIALS))

    def best(self) -> Trial | None:
        """Return the trial with the best score (the first one, if several have it); None if no trial has a score."""
        scored = [one for one in self.trials.values() if one.score is not None]
        sign = 1.0 if self.settings["maximize"] else -1.0
        return max(scored, key=lambda one: (sign * (one.score or 0.0), -one.number), default=None)


@contextmanager
def opened_study(folder: str, settings: Mapping[str, Any], *, wait: float | None = None) -> Iterator[Study]:
    """Open a study in a folder, or begin a new one there, and hold its lock during the run.

    Raises ConfigError if the folder has a study with other settings, or files but no study; OutputError if another run
    uses it, or if it cannot be written; FormatError if its files are damaged.
    """
    folder = folder.rstrip("/") or folder
    with output_lock(folder, wait):
        try:
            os.makedirs(folder, exist_ok=True)
            there = [name for name in os.listdir(folder) if not name.startswith(".")]
        except OSError as error:
            raise output_error(folder, error) from error
        study = Study(folder, settings)
        if SETTINGS in there:
            _check_same(folder, _read_settings(study.path(SETTINGS)), settings)
        elif there:
            raise ConfigError(
                f"{escape(folder)} is not the folder of a study, but it has files.",
                hint="Choose an empty or a new folder with --study.",
            )
        else:
            study.write(SETTINGS, json.dumps(dict(settings), indent=2, ensure_ascii=True) + "\n")
        _read_lines(study)
        yield study


def _read_settings(path: str) -> dict[str, Any]:
    try:
        found = read_json(read_file(path))
    except OSError as error:
        raise FormatError(f"{escape(path)} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise FormatError(f"{escape(path)} is not valid JSON: {escape(str(error))}.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{escape(path)} does not contain the settings of a study.")
    return found


_NOUNS = {
    "evaluate": "the evaluation", "task": "the SHA-256 of the configuration", "metric": "the metric",
    "maximize": "whether larger is better", "sampler": "the sampler",
    "seed": "the seed", "trials": "the number of trials of the grid",
}  # fmt: skip


def _check_same(folder: str, there: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if the study in a folder has settings (``there``) that differ from those of this run."""
    if there.get("sha256") != settings["sha256"]:
        raise ConfigError(
            f"{escape(folder)} is the study of another recipe: of {_said(there)}, not of {_said(settings)}.",
            hint="Choose another folder with --study, or remove this folder.",
        )
    known = there.get("models")
    known = known if isinstance(known, dict) else {}
    changed = [name for name, digest in settings["models"].items() if known.get(name) != digest]
    if changed:
        raise ConfigError(
            f"{escape(folder)} is a study of other models: {listing(changed)} "
            f"{'has' if len(changed) == 1 else 'have'} changed.",
            hint="Choose another folder with --study, or remove this folder.",
        )
    for name, noun in _NOUNS.items():
        if there.get(name) != settings.get(name):
            before, now = brief_repr(there.get(name), 200), brief_repr(settings.get(name), 200)
            raise ConfigError(
                f"{escape(folder)} is a study with other settings: {noun} was {before}, and is {now} now; its scores "
                "cannot be compared with new ones.",
                hint="Choose another folder with --study, or remove this folder.",
            )


def _said(settings: Mapping[str, Any]) -> str:
    return f"{escape(str(settings.get('recipe')))} (SHA-256 {escape(str(settings.get('sha256')))[:12]})"


def _read_lines(study: Study) -> None:
    """Read the trials of a study; a last line that a killed run left incomplete is removed from the file.

    Raises FormatError if the file cannot be read or a line is not a trial, OutputError if the file cannot be cut.
    """
    path = study.path(LINES)
    try:
        data = read_file(path, MOST_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FormatError(f"{escape(path)} cannot be read: {error.strerror}.") from error
    whole = data[: data.rfind(b"\n") + 1]
    for place, line in enumerate(whole.splitlines(), 1):
        trial = _trial(line)
        if trial is None:
            raise FormatError(
                f"{escape(path)}: line {place} is not a trial.",
                hint="Remove the study's folder to begin anew.",
            )
        study._take(trial)
    if len(whole) < len(data):
        try:
            os.truncate(path, len(whole))
        except OSError as error:
            raise output_error(path, error) from error


def _trial(line: bytes) -> Trial | None:
    try:
        row = read_json(line)
        number, score = row["trial"], row["score"]
        is_score = score is None or (isinstance(score, (int, float)) and not isinstance(score, bool))
        if type(number) is not int or number < 1 or not isinstance(row["values"], dict) or not is_score:
            return None
        if row["state"] not in (BEGUN, DONE, FAILED) or (row["state"] == DONE) != (score is not None):
            return None
        return Trial(
            number, row["values"], row["state"], score, str(row["why"]), float(row["merge_s"]), float(row["evaluate_s"])
        )
    except (ValueError, KeyError, TypeError):
        return None
