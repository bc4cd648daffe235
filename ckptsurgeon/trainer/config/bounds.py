"""Finds settings that are out of bounds, that contradict each other, and that have no effect."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping

from ...util.text import escape
from .settings import ANNEALED, Lora, Settings

__all__ = ["find_fault", "useless_settings"]

FROM: Mapping[str, float] = {
    "steps": 1, "epochs": 1, "hold": 0, "anneal_patience": 0, "anneal_threshold": 0,
    "batch_size": 1, "accumulate": 1, "weight_decay": 0, "warmup": 0, "final_lr": 0, "betas": 0,
    "freeze": 0, "lr_scale": 0, "label_smoothing": 0, "beam": 1, "lm_weight": 0, "seed": 0, "evaluate_every": 1,
    "save_every": 1, "keep": 1, "patience": 1, "nonfinite": 0, "threads": 1, "data.min_s": 0, "augment.time_masks": 0,
    "augment.time_width": 1, "augment.time_share": 0, "augment.freq_masks": 0,
    "augment.freq_width": 1, "augment.snr_db": -100, "lora.rank": 1, "lora.alpha": 1,
    "lora.dropout": 0, "data.workers": 0, "data.context": 1, "features.size": 1,
    "features.rate": 1, "features.stack": 1, "pretrain.mask_prob": 0, "pretrain.mask_length": 1,
    "pretrain.negatives": 1, "pretrain.diversity": 0,
}  # fmt: skip
"""{setting: lowest allowed value}."""
ABOVE: Mapping[str, float] = dict.fromkeys(
    (
        "lr",
        "anneal",
        "eps",
        "clip",
        "batch_seconds",
        "ema",
        "augment.speed",
        "data.max_s",
        "features.window_s",
        "features.step_s",
        "pretrain.crop_s",
        "pretrain.gumbel",
    ),
    0,
)
"""{setting: lower limit}; the value must be above this limit."""
TO: Mapping[str, float] = {
    "augment.speed": 10,
    "augment.snr_db": 200,
    "augment.time_share": 1,
    "final_lr": 1,
    "seed": 2**63 - 1,
    "threads": 1024,
    "data.workers": 1024,
    "pretrain.mask_prob": 1,
}
"""{setting: highest allowed value}; more than 1024 threads or workers are certainly a mistake."""
BELOW: Mapping[str, float] = {
    "anneal": 1,
    "anneal_threshold": 1,
    "ema": 1,
    "label_smoothing": 1,
    "betas": 1,
    "lora.dropout": 1,
}
"""{setting: upper limit}; the value must be below this limit."""
MAY_BE_INFINITE = ("clip", "data.max_s")
INSTEAD: Mapping[str, str] = {
    "lr": "; to leave tensors untrained, list them in train.freeze",
    "clip": ", or null so as not to clip",
}
"""{setting: advice}; the advice is added to the message about a value that is out of bounds."""


def find_fault(made: Settings) -> str:
    """Return a message on the first setting that is out of bounds or contradicts another; '' if all are valid."""
    if len(made.betas) != 2:
        return f"train.betas are {list(made.betas)}; they must be two numbers, each {_allowed('betas')}"
    for key in dict.fromkeys([*FROM, *ABOVE]):
        for name, value in _values(made, key):
            if not _in_bounds(key, value):
                return f"train.{name} is {value}; it must be {_allowed(key)}{INSTEAD.get(key, '')}"
    if made.schedule == "tri_stage" and made.final_lr == 0:
        return "train.final_lr is 0; it must be above 0 for the schedule tri_stage, which falls exponentially"
    if made.epochs is None and made.warmup >= made.steps:
        return (
            f"train.warmup {made.warmup} is not below train.steps {made.steps}: the learning rate would never reach "
            "train.lr; write a smaller warmup, or --set warmup=0 for none"
        )
    if len(made.pretrain.gumbel) != 3 or made.pretrain.gumbel[2] > 1:
        return (
            f"train.pretrain.gumbel is {list(made.pretrain.gumbel)}; it must be the highest temperature, the lowest, "
            "and the factor, at most 1, by which the temperature is multiplied at every step"
        )
    ratios = made.augment.snr_db
    if (why := _fault_of_lora(made)) != "":
        return why
    if ratios and (len(ratios) != 2 or ratios[0] > ratios[1]):
        return f"train.augment.snr_db is {list(ratios)}; it must be the lowest ratio and the highest, as in [5, 20]"
    if made.augment.noise and not ratios:
        return "train.augment.noise needs snr_db, the lowest and the highest ratio of speech to noise, as in [5, 20]"
    if made.lm is not None and made.decoding != "ctc_beam":
        return f"train.lm needs train.decoding: ctc_beam, but train.decoding is {made.decoding}"
    if not math.isfinite(made.word_bonus):
        return f"train.word_bonus is {made.word_bonus}; it must be finite"
    if made.data.min_s > made.data.max_s:
        return "train.data.min_s is above train.data.max_s: every clip would be left out"
    return ""


def _fault_of_lora(made: Settings) -> str:
    """Return a message on settings that contradict the LoRA adapters of ``train.lora``; '' if none does."""
    if made.lora == Lora():
        return ""
    if not made.lora.targets:
        return "train.lora has no targets: list the modules that get an adapter, as in targets: [q_proj, v_proj]"
    for name in ("freeze", "lr_scale", "keep_optimizer"):
        if getattr(made, name):
            return (
                f"train.{name} applies to the weights, but with train.lora only adapters are trained; "
                f"leave train.{name} or train.lora out"
            )
    return ""


def _values(made: Settings, key: str) -> Iterator[tuple[str, float]]:
    """Yield each number in the setting ``key``, such as ``lora.rank``, as a pair (its name in messages, the number).

    The value of the setting may be a number, a list of numbers, or a mapping to numbers.
    """
    section, _, name = key.rpartition(".")
    value = getattr(getattr(made, section) if section else made, name)
    if isinstance(value, Mapping):
        yield from ((f"{key} {escape(pattern)}", one) for pattern, one in value.items() if one is not None)
    elif isinstance(value, tuple):
        yield from ((key, one) for one in value)
    elif value is not None:
        yield key, value


def _in_bounds(key: str, value: float) -> bool:
    if isinstance(value, float) and math.isinf(value):
        return value > 0 and key in MAY_BE_INFINITE
    low = value > ABOVE[key] if key in ABOVE else value >= FROM[key]
    return low and value <= TO.get(key, math.inf) and value < BELOW.get(key, math.inf)


def _allowed(key: str) -> str:
    """Return a text with the allowed values of the setting ``key``, such as ``above 0, finite``."""
    least = f"above {ABOVE[key]:g}" if key in ABOVE else f"{FROM[key]:g} or more"
    most = f", at most {TO[key]}" if key in TO else ""
    finite = ", finite" if key in ABOVE and key not in (*TO, *BELOW, *MAY_BE_INFINITE) else ""
    return f"{least}{most}{finite}{f', below {BELOW[key]:g}' if key in BELOW else ''}"


BEAM_SEARCHES = ("ctc_beam", "joint")
"""The values of ``train.decoding`` that use ``train.beam``."""
UNSMOOTHED = ("ctc", "wav2vec2_ctc", "wav2vec2_pretrain", "espnet")
"""The bundled tasks that do not use ``train.label_smoothing``."""


OF_SOUNDS = ("data.cache", "data.min_s", "data.max_s", "features", "augment")
"""Settings that the task ``language_model`` does not use."""


OF_TASK = {"pretrain": "wav2vec2_pretrain", "data.context": "language_model"}
"""Settings that one bundled task uses."""
OF_SCHEDULES = {
    "hold": ("tri_stage",),
    "final_lr": ("cosine", "linear", "tri_stage"),
    **dict.fromkeys(("anneal", "anneal_patience", "anneal_threshold"), ANNEALED),
}
"""Settings that some values of ``train.schedule`` use."""


def _is_set(made: Settings, key: str) -> bool:
    """Return whether the setting ``key``, such as ``data.cache``, has another value than by default."""
    value, usual = operator.attrgetter(key)(made), operator.attrgetter(key)(Settings())
    return bool(value != usual)


def useless_settings(made: Settings) -> list[str]:
    """Return a note for the user on each setting that has no effect."""
    return [
        f"train.freeze {escape(pattern)}: step {step} is not below train.steps {made.steps}, "
        "so the tensors are never trained"
        for pattern, step in made.freeze.items()
        if step is not None and step >= made.steps
    ] + [*_never_falls(made), *_without_effect(made)]


def _never_falls(made: Settings) -> Iterator[str]:
    """Yield a note if the last stage of ``tri_stage`` is never reached."""
    if made.schedule == "tri_stage" and made.warmup + made.hold >= made.steps:
        yield (
            f"train.warmup {made.warmup} + train.hold {made.hold} is not below train.steps {made.steps}: with "
            "train.schedule tri_stage, the learning rate never falls"
        )


def _without_effect(made: Settings) -> list[str]:
    """Return notes on settings that have no effect, because of another setting or because they need another setting.

    A user's own task may use ``train.beam`` and ``train.augment.freq_masks`` in its own way, so they get no note there.
    """
    usual, is_bundled = Settings(), ":" not in made.task
    words = [f"train.{name}" for name in ("lm_weight", "word_bonus") if getattr(made, name) != getattr(usual, name)]
    without = [f"{name} has no effect without train.lm" for name in words if made.lm is None]
    if is_bundled and made.beam is not None and made.decoding not in BEAM_SEARCHES:
        without.append(f"train.beam has no effect with train.decoding {made.decoding}, which is not a beam search")
    if made.label_smoothing and made.task in UNSMOOTHED:
        without.append(f"train.label_smoothing has no effect on the task {made.task}")
    if is_bundled and made.augment.freq_masks and made.features.kind == "waves":
        without.append("train.augment.freq_masks has no effect on waves, which have no frequencies to mask")
    if made.batch_seconds is not None and made.batch_size != usual.batch_size:
        without.append("train.batch_size has no effect on training with train.batch_seconds")
    if made.task == "language_model":
        without += [f"train.{key} has no effect on texts, only on sounds" for key in OF_SOUNDS if _is_set(made, key)]
    if is_bundled:
        without += [
            f"train.{key} has no effect on the task {made.task}; only {task} would use it"
            for key, task in OF_TASK.items()
            if _is_set(made, key) and made.task != task
        ]
    if _is_set(made, "eps") and made.optimizer == "sgd":
        without.append("train.eps has no effect with train.optimizer sgd; only adamw would use it")
    return without + [
        f"train.{name} has no effect with train.schedule {made.schedule}; only {', '.join(kinds)} would use it"
        for name, kinds in OF_SCHEDULES.items()
        if _is_set(made, name) and made.schedule not in kinds
    ]
