"""A wav2vec 2.0 in miniature, as transformers configures it, and sounds for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.tasks._task import Batch
from ckptsurgeon.trainer.tasks.wav2vec2_ctc import Wav2Vec2CTC
from ckptsurgeon.trainer.tasks.wav2vec2_pretrain import Wav2Vec2Pretraining

from .sounds import corpus

MINIATURE: Mapping[str, Any] = {
    "model_type": "wav2vec2", "architectures": ["Wav2Vec2ForPreTraining"], "hidden_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 256, "conv_dim": [64] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2], "num_feat_extract_layers": 7, "feat_extract_norm": "group",
    "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 8, "codevector_dim": 64,
    "proj_codevector_dim": 64, "num_codevectors_per_group": 32, "num_codevector_groups": 2, "num_negatives": 20,
    "mask_time_prob": 0.5, "mask_time_length": 5, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0, "final_dropout": 0.0,
    "layerdrop": 0.0,
}  # fmt: skip
SMALL: Mapping[str, Any] = {
    **MINIATURE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "codevector_dim": 8,
    "proj_codevector_dim": 8, "num_codevectors_per_group": 4, "num_negatives": 5,
}  # fmt: skip
LAYER_NORM: Mapping[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def model_of(fields: Mapping[str, Any], **other: Any) -> nn.Module:
    """A model with random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    return Wav2Vec2ForPreTraining(Wav2Vec2Config(**{**fields, **other, "attn_implementation": "eager"}))


def task_for(model: nn.Module, **pretrain: Any) -> Wav2Vec2Pretraining:
    """The task, which has met a model."""
    section = {"task": "wav2vec2_pretrain", "features": {"kind": "waves"}, "pretrain": pretrain}
    task = Wav2Vec2Pretraining(parse_settings(section, "x"), ())
    task.meet(model)
    return task


def batch_of(task: Wav2Vec2Pretraining, *samples: int, seed: int = 1) -> Batch:
    """Noise of so many samples each, masked by chance that is always the same for a seed."""
    torch.manual_seed(seed)
    waves = {f"{number}": torch.randn(size) for number, size in enumerate(samples)}
    task.inputs = lambda clip: waves[clip.path]  # type: ignore[assignment]
    from ckptsurgeon.trainer.data.sound import Clip

    return task.collate([task.example(Clip(name, "", name, len(wave) / 16_000)) for name, wave in waves.items()])


def ctc_model_of(**fields: Any) -> nn.Module:
    """A model with random weights and a CTC head of five tokens."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    return Wav2Vec2ForCTC(Wav2Vec2Config(**{**SMALL, "vocab_size": 5, **fields}))


class CTCOfNoise(Wav2Vec2CTC):
    """The task of fine-tuning, whose batches are of noise."""

    def batch(self, *samples: int, seed: int = 1) -> Batch:
        """Noise of so many samples each, and labels."""
        torch.manual_seed(seed)
        examples = [
            {"input": torch.randn(size), "label": torch.tensor([1, 2]), "seconds": 1.0, "name": f"{number}"}
            for number, size in enumerate(samples)
        ]
        return self.collate(examples)


def ctc_task_for(model: nn.Module) -> CTCOfNoise:
    """The task of fine-tuning, which has met a model."""
    section = {"task": "wav2vec2_ctc", "features": {"kind": "waves"}}
    task = CTCOfNoise(parse_settings(section, "x"), ("<blank>", "a", "b", "c", "d"))
    task.meet(model)
    return task


def ctc_stand_in(
    log_probs: Tensor, targets: Tensor, lengths: Tensor, sizes: Tensor, blank: int, **_: Any
) -> Tensor:  # fmt: skip
    """Something to go backward from. torch's own reads the lengths on the CPU, and waits if they are not there."""
    assert (lengths.device.type, sizes.device.type) == ("cpu", "cpu"), "lengths are waited for"
    assert targets.device == log_probs.device
    return log_probs.sum((0, 2))


def write(config: str = "pre.yaml", *, fields: Mapping[str, Any] = SMALL, clips: int = 12, **section: Any) -> str:
    """Write a configuration, the model's and tones to train on."""
    Path("net.json").write_text(json.dumps(fields))
    corpus("train.csv", ["a"] * clips, shortest=0.4)
    corpus("dev.csv", ["a"] * 4, shortest=0.4)
    train = {
        "task": "wav2vec2_pretrain", "data": {"train": "train.csv", "dev": "dev.csv"}, "features": {"kind": "waves"},
        "pretrain": {"crop_s": 0.4}, "batch_size": 4, "steps": 4, "warmup": 1, "evaluate_every": 2, "save_every": 2,
    }  # fmt: skip
    Path(config).write_text(yaml.safe_dump({"model": {"transformers": "net.json"}, "train": {**train, **section}}))
    return config
