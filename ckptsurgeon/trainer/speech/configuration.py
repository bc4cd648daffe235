"""The configuration that comes with demo data: a model of Coqui STT's shape, with settings that were seen to train."""

from __future__ import annotations

__all__ = ["configuration"]

_TEMPLATE = """\
# A speech recogniser of Coqui STT's shape for the utterances beside it: ckpt train {lang}.yaml
model:
  name: deepspeech
  alphabet: {lang}/alphabet.txt
  n_input: 120        # 40 log-mel energies of each of 3 frames
  n_context: 1        # and those before and after
  n_hidden: 128
  dropout: 0
train:
  task: ctc
  data:
    train: {lang}/train.csv
    dev: {lang}/dev.csv
    test: {lang}/test.csv
    tokens: {lang}/alphabet.txt
    cache: {lang}/features
  features: {{kind: log_mel, size: 40, stack: 3}}
  steps: 500
  batch_size: 32
  lr: 4e-3           # 8e-3 may stay where all is blank
  warmup: 30
  weight_decay: 1e-4
  clip: 5
  evaluate_every: 100
  save_every: 100
"""


def configuration(lang: str) -> str:
    """Return the configuration of a language's demo data, to lie beside its folder."""
    return _TEMPLATE.format(lang=lang)
