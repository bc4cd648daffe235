"""The texts and losses of weights that ckpt trained are those of Coqui STT itself, which make oracle-coqui records."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from torch.nn import functional as F  # noqa: N812 - what everybody calls it

import ckptsurgeon as cs
from ckptsurgeon.storage.yaml_text import read_yaml
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.data.inputs import FeatureExtractor
from ckptsurgeon.trainer.models.deepspeech import DeepSpeech
from fixtures.record_coqui import BEAM, GOLDEN, LETTERS, READ, write_clips

SEEN = json.loads((GOLDEN / "texts.json").read_text())


def files() -> None:
    for name in ("net.yaml", "alphabet.txt", "weights.safetensors"):
        shutil.copy(GOLDEN / name, name)
    assert [os.path.basename(path) for path in write_clips(Path.cwd(), "read", READ)] == [one["clip"] for one in SEEN]


@pytest.mark.long
def test_a_beam_search_reads_the_texts_that_coqui_reads() -> None:
    files()
    texts = cs.transcribe(
        "weights.safetensors", [one["clip"] for one in SEEN], config="net.yaml", beam=BEAM, device="cpu"
    ).sounds
    assert [one.text for one in texts] == [one["coqui"] for one in SEEN]
    assert sum(one["coqui"] != one["said"] for one in SEEN) >= 4  # also where it reads something else than was said


def test_the_loss_of_each_clip_is_that_of_coqui() -> None:
    files()
    settings = parse_settings(read_yaml(Path("net.yaml").read_text(), "net.yaml")["train"], "net.yaml")
    features = FeatureExtractor(settings.features)
    model = DeepSpeech(len(LETTERS) + 2, n_input=26, n_context=9, n_hidden=24, dropout=0.0).eval()
    cs.load_into(model, "weights.safetensors")
    for one in SEEN:
        frames = features(torch.from_numpy(soundfile.read(one["clip"], dtype="float32")[0]))
        length = torch.tensor([len(frames)])
        labels = torch.tensor([[" ", *LETTERS].index(letter) for letter in one["said"]])
        with torch.no_grad():
            found = model(frames[None], length).transpose(0, 1)
        loss = F.ctc_loss(found, labels[None], length, torch.tensor([len(labels)]), len(LETTERS) + 1, reduction="sum")
        assert abs(float(loss) - one["loss"]) < 1e-3, one
