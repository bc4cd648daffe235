"""The ``train:`` section of a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ALL_LINEAR",
    "ANNEALED",
    "CHOICES",
    "DATASET",
    "Augment",
    "Data",
    "Features",
    "Lora",
    "Named",
    "Pretrain",
    "Settings",
]

Named = str | Mapping[str, Any]
"""A source of clips: the path of a manifest, ``my_data.py:function``, or a map with ``hf_dataset`` or ``_target_``."""
DATASET = "hf_dataset"
"""The field with the path of a dataset that Hugging Face's ``datasets`` saved."""


@dataclass(frozen=True)
class Data:
    """The data of a run: the manifests (lists of clips) of each split, and how clips and texts become examples.

    A manifest has any of the formats that ``manifests/`` reads; a split with several manifests has the clips of all
    manifests. ``tokens`` is the file of the token list, ``segmenter`` the file of the tokeniser that cuts texts into
    these tokens. If ``segmenter`` is None, texts are cut into the longest tokens that fit.

    ``min_s`` and ``max_s`` are the shortest and the longest clip that is used, in seconds; other clips are counted and
    left out. ``cache`` is the folder for computed features. If it is None, features are computed each time. ``workers``
    is the number of processes that make batches. None means the default: on a CPU, there is no such process; on GPUs,
    there is one for each CPU core of the process, but at most eight. ``context`` is the number of tokens of an example
    in the task ``language_model``.
    """

    train: tuple[Named, ...] = ()
    dev: tuple[Named, ...] = ()
    test: tuple[Named, ...] = ()
    tokens: str | None = None
    segmenter: str | None = None
    min_s: float = 0.0
    max_s: float = math.inf
    cache: str | None = None
    workers: int | None = None
    context: int = 512


@dataclass(frozen=True)
class Features:
    """How the inputs of a model are made from sounds: ``log_mel`` or ``mfcc`` features, or ``waves`` (the samples).

    ``size`` is the number of features in a frame, ``rate`` the sampling rate in hertz. A frame covers ``window_s``
    seconds, and a new frame begins every ``step_s`` seconds. ``stack`` successive frames are joined
    (https://arxiv.org/abs/1507.06947): a model then gets ``stack * size`` numbers every ``stack * step_s`` seconds. If
    ``centred`` is true, the mean of each clip is subtracted.
    """

    kind: str = "log_mel"
    size: int = 40
    rate: int = 16_000
    window_s: float = 0.025
    step_s: float = 0.010
    stack: int = 1
    centred: bool = True


@dataclass(frozen=True)
class Augment:
    """How clips of ``train`` are changed at random; by default they are not changed.

    ``speed`` are factors of the speed; one of them is chosen for each clip. ``snr_db`` are the lowest and the highest
    signal-to-noise ratio of added noise, in decibels. ``noise`` are sound files with noise, or folders of such files
    (none: white noise).

    ``time_masks`` is the number of masks over time, ``time_width`` their largest width in frames of
    ``features.step_s``, and ``time_share`` their largest width as a share of the clip. ``freq_masks`` is the number of
    masks over frequencies, ``freq_width`` their largest width in features of a frame.
    """

    speed: tuple[float, ...] = ()
    snr_db: tuple[float, ...] = ()
    noise: tuple[str, ...] = ()
    time_masks: int = 0
    time_width: int = 100
    time_share: float = 0.2
    freq_masks: int = 0
    freq_width: int = 10


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) that are trained instead of the weights.

    ``targets`` are the names of the modules that get an adapter, as in PEFT's ``target_modules`` (``all-linear``: every
    linear layer but the output layer of a language model). If there are none, the weights themselves are trained.
    ``rank`` is the rank of an adapter, whose output is scaled by ``alpha / rank`` (``alpha`` None: twice the rank).
    ``dropout`` is the share of an adapter's inputs that are set to zero. ``save`` are the names of modules that are
    trained as a whole and saved with the adapters, such as a new output layer.
    """

    targets: tuple[str, ...] = ()
    rank: int = 16
    alpha: int | None = None
    dropout: float = 0.0
    save: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretrain:
    """How the task ``wav2vec2_pretrain`` masks and contrasts frames; None means the value in the model's configuration.

    ``crop_s`` is the longest piece of a clip in seconds: longer clips are cropped at random (None: never).
    ``mask_prob`` is the share of frames that masked spans would cover if none overlapped. ``mask_length`` is the number
    of frames of a span. ``negatives`` is the number of other frames with which a masked frame is contrasted.
    ``diversity`` is the weight of the diversity loss. ``gumbel`` has the highest and the lowest temperature of the
    Gumbel softmax, and the factor by which the temperature is multiplied at every step.
    """

    crop_s: float | None = None
    mask_prob: float | None = None
    mask_length: int | None = None
    negatives: int | None = None
    diversity: float | None = None
    gumbel: tuple[float, ...] = (2.0, 0.5, 0.999995)


@dataclass(frozen=True)
class Settings:
    """All settings of a run: together with the model and its initial weights, they decide what the run does.

    A batch has ``batch_size`` clips. If ``batch_seconds`` is not None, a batch has as many clips as fit into this
    length when each is padded to the longest clip. If ``epochs`` is not None, ``steps`` is computed from it. ``freeze``
    maps key patterns to the step from which their tensors are trained (None: never), ``lr_scale`` maps key patterns to
    a factor of the learning rate. ``decay`` is ``all`` if ``weight_decay`` applies to all parameters, ``matrices`` if
    it applies to matrices only.

    ``precision`` is ``float32`` (full precision), ``tf32`` (a GPU rounds the factors of products to 10 bits of
    mantissa) or ``bf16`` (autocast to bfloat16). ``compile`` says whether torch.compile is used: with ``auto``, it is
    used on a GPU if all batches have the same shape. For ``wav2vec2_ctc``, it is enough that all clips have the same
    length.

    ``final_lr`` is the share of ``lr`` at which a schedule ends, ``hold`` the number of steps in which the schedule
    ``tri_stage`` stays at ``lr``. The schedules ``plateau`` and ``newbob`` multiply the learning rate by ``anneal`` if
    evaluations do not improve by the share ``anneal_threshold``. ``clip`` is the largest gradient norm. ``patience`` is
    the number of evaluations in a row without a better ``metric`` after which the run ends. ``nonfinite`` is the number
    of steps in a row that may be skipped because their loss or gradient is not finite.

    ``decoding`` is how texts are decoded; ``beam`` is the number of hypotheses that a beam search keeps (None: 4 for
    ``joint``, 100 for ``ctc_beam``). ``lm`` is the ARPA file of a language model for ``ctc_beam``. The language model's
    natural log-probabilities are multiplied by ``lm_weight``, and ``word_bonus`` is added to the score for each word.
    If ``keep_optimizer`` is true, a run begins with the Adam moments that are saved in the source of its initial
    weights. ``loggers`` are the names of loggers, such as ``wandb``, that get a copy of the run's log.
    """

    task: str = "ctc"
    data: Data = field(default_factory=Data)
    features: Features = field(default_factory=Features)
    augment: Augment = field(default_factory=Augment)
    pretrain: Pretrain = field(default_factory=Pretrain)
    lora: Lora = field(default_factory=Lora)
    steps: int = 1000
    epochs: int | None = None
    batch_size: int = 32
    batch_seconds: float | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: str = "all"
    schedule: str = "cosine"
    warmup: int = 0
    hold: int = 0
    final_lr: float = 0.05
    anneal: float = 0.5
    anneal_patience: int = 0
    anneal_threshold: float = 0.0025
    clip: float | None = 5.0
    freeze: Mapping[str, int | None] = field(default_factory=dict)
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    ema: float | None = None
    precision: str = "float32"
    compile: str = "auto"
    gradient_checkpointing: bool = False
    label_smoothing: float = 0.0
    decoding: str = "ctc"
    beam: int | None = None
    lm: str | None = None
    lm_weight: float = 0.5
    word_bonus: float = 1.5
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 500
    keep: int = 1
    metric: str | None = None
    patience: int | None = None
    nonfinite: int = 10
    threads: int = 1
    deterministic: bool = False
    keep_optimizer: bool = False
    loggers: tuple[str, ...] = ()


ALL_LINEAR = "all-linear"
"""PEFT's name for every linear layer except the output layer of a language model."""
ANNEALED = ("plateau", "newbob")
"""Schedules that lower the learning rate by the metric of the evaluations."""
CHOICES = {
    "schedule": ("cosine", "linear", "constant", "tri_stage", "plateau", "newbob"),
    "decay": ("all", "matrices"),
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "tf32", "bf16"),
    "compile": ("auto", "on", "off"),
    "decoding": ("ctc", "ctc_beam", "attention", "joint"),
    "kind": ("log_mel", "mfcc", "waves"),
}
