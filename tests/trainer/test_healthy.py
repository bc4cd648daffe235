"""Healthy networks of transformers of many kinds pass the checks, and each planted fault is found in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.training import trained_tensors_moved
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.job import Job
from ckptsurgeon.trainer.loop import TrainingLoop

from .sounds import corpus
from .test_checks import before

pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99,
}  # fmt: skip
WAVES = {
    **SIZES, "vocab_size": 12, "conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8],
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
}  # fmt: skip
TEXT: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {"model_type": "bert", **SIZES},
    "RobertaForSequenceClassification": {"model_type": "roberta", **SIZES, "max_position_embeddings": 40},
    "AlbertForSequenceClassification": {"model_type": "albert", **SIZES, "embedding_size": 16},
    "ElectraForSequenceClassification": {"model_type": "electra", **SIZES, "embedding_size": 16},
    "DebertaV2ForSequenceClassification": {"model_type": "deberta-v2", **SIZES},
    "GPT2ForSequenceClassification": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "pad_token_id": 0,
    },
    "LlamaForSequenceClassification": {
        "model_type": "llama", **SIZES, "num_key_value_heads": 2, "pad_token_id": 0,
    },
    "MixtralForSequenceClassification": {
        "model_type": "mixtral", **SIZES, "num_key_value_heads": 2, "num_local_experts": 4, "pad_token_id": 0,
    },
}  # fmt: skip
IMAGES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {"model_type": "vit", **SIZES, "image_size": 16, "patch_size": 8},
    "ConvNextForImageClassification": {
        "model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2,
    },
    "ResNetForImageClassification": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "SwinForImageClassification": {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
        "image_size": 16, "patch_size": 2,
    },
}  # fmt: skip
SOUNDS: dict[str, dict[str, Any]] = {
    "Wav2Vec2ForSequenceClassification": {"model_type": "wav2vec2", **WAVES, "feat_extract_norm": "layer"},
    "HubertForSequenceClassification": {"model_type": "hubert", **WAVES},
}

CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
    "Qwen2ForCausalLM": {
        "model_type": "qwen2", **SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe", **SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    },
    "MambaForCausalLM": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}  # fmt: skip
"""Trained to predict words; the outputs of the first two are tied to their embeddings."""
CTC: dict[str, dict[str, Any]] = {
    "Wav2Vec2ForCTC": {"model_type": "wav2vec2", **WAVES, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "HubertForCTC": {"model_type": "hubert", **WAVES, "feat_extract_norm": "layer"},
    "WavLMForCTC": {"model_type": "wavlm", **WAVES, "num_buckets": 20},
}  # fmt: skip
"""Trained to transcribe long clips of a letter or two."""
WORDS = ("<end>", *(f"word{number}" for number in range(98)))

DATA = """
import torch

class Examples(torch.utils.data.Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, place):
        return self.inputs[place], int(self.labels[place])

def draws():
    return torch.Generator().manual_seed(0)

def text():
    ids = torch.randint(5, 90, (32, 12), generator=draws())
    return Examples(ids, ids[:, 0] > 45)

def images():
    pixels = torch.randn(32, 3, 16, 16, generator=draws())
    return Examples(pixels, pixels.mean((1, 2, 3)) > 0)

def sounds():
    waves = torch.randn(32, 2000, generator=draws()) * torch.linspace(0.1, 1, 32)[:, None]
    return Examples(waves, torch.arange(32) > 15)
"""

NETS = """
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

def lora():
    net = BertForSequenceClassification(BertConfig(**%r))
    for layer in net.bert.encoder.layer:
        layer.attention.self.query = LoRA(layer.attention.self.query)
    return net

class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.spare = BertForSequenceClassification(BertConfig(**%r)), nn.Linear(32, 32)

    def forward(self, ids):
        return self.net(ids).logits
"""


def written(model: dict[str, Any], data: str) -> str:
    """Write what a run of a network needs; returns the configuration's path."""
    Path("examples.py").write_text(DATA)
    Path("nets.py").write_text(NETS % (SIZES, SIZES))
    Path("classes.txt").write_text("no\nyes\n")
    if "model_type" in model:
        Path("net.json").write_text(json.dumps(model))
        model = {"transformers": "net.json"}
    made = {"train": f"examples.py:{data}", "dev": f"examples.py:{data}", "tokens": "classes.txt"}
    train = {
        "task": "classify", "data": made, "steps": 6, "batch_size": 8, "evaluate_every": 6, "features": {"kind": "waves"},
    }  # fmt: skip
    Path("net.yaml").write_text(yaml.safe_dump({"model": model, "train": train}))
    return "net.yaml"


def of_task(task: str, model: dict[str, Any], data: dict[str, Any], **train: Any) -> str:
    """Write a configuration of a task that reads files; returns its path."""
    Path("net.json").write_text(json.dumps(model))
    section = {"task": task, "data": {"train": data["dev"], **data}, "steps": 6, "batch_size": 4, "evaluate_every": 6}
    document = {"model": {"transformers": "net.json"}, "train": {**section, **train}}
    Path("net.yaml").write_text(yaml.safe_dump(document))
    return "net.yaml"


def speaking(name: str, **train: Any) -> str:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: row for row, word in enumerate(WORDS)}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save("tokenizer.json")
    draw = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[row] for row in torch.randint(1, 99, (9,), generator=draw)) for _ in range(32)]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = {"architectures": [name], **CAUSAL[name], "vocab_size": 99, "bos_token_id": None, "eos_token_id": 0}
    data = {"dev": "texts.jsonl", "segmenter": "tokenizer.json", "context": 12}
    return of_task("language_model", model, data, **train)


def heard(name: str) -> str:
    corpus("sounds.csv", ["a", "b", "ab", "ba"] * 4)
    Path("tokens.txt").write_text("\n".join(["<pad>", "|", *"abcdefghij"]) + "\n")
    model = {"architectures": [name], **CTC[name], "pad_token_id": 0}
    return of_task("wav2vec2_ctc", model, {"dev": "sounds.csv", "tokens": "tokens.txt"}, features={"kind": "waves"})


def network(name: str) -> str:
    if name in CAUSAL or name in CTC:
        return speaking(name) if name in CAUSAL else heard(name)
    for data, models in (("text", TEXT), ("images", IMAGES), ("sounds", SOUNDS)):
        if name in models:
            labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
            return written({"architectures": [name], **labels, **models[name]}, data)
    return written({"_target_": f"nets.{name}"}, "text")


@pytest.mark.long
@pytest.mark.parametrize("name", [*TEXT, *IMAGES, *SOUNDS, *CAUSAL, *CTC, "lora", "Spare"])
def test_a_healthy_network_fails_no_check(name: str) -> None:
    found = cs.train(network(name), device="cpu")
    assert not [check for check in found.checks if check.status == "FAIL"]
    assert found.step == 6


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore::FutureWarning", "ignore::RuntimeWarning")  # of PEFT
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Qwen3MoeForCausalLM"])
def test_a_healthy_network_with_adapters_of_peft_fails_no_check(name: str) -> None:
    import transformers

    peft = pytest.importorskip("peft")
    config = speaking(name, lora={"targets": ["all-linear"], "rank": 4}, lr=0.05)
    fields = transformers.AutoConfig.from_pretrained("net.json")
    transformers.AutoModelForCausalLM.from_config(fields).save_pretrained("init")
    found = cs.train(config, init="init", device="cpu")
    assert not [check for check in found.checks if check.status == "FAIL"]
    cs.apply(cs.lora_merge("init", ["run/adapter"]), "merged/")
    read = transformers.AutoModelForCausalLM.from_pretrained
    ids, adapted = torch.arange(1, 11)[None], peft.PeftModel.from_pretrained(read("init"), "run/adapter")
    merged = read("merged").eval()(ids).logits
    torch.testing.assert_close(merged, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    assert (merged - read("init").eval()(ids).logits).abs().max() > 1e-4


def test_what_the_loss_does_not_depend_on_is_said() -> None:
    job = build_job(network("Spare"), device="cpu")
    loop = TrainingLoop(job, job.model()[0])
    loop.run()
    found = trained_tensors_moved(loop.state)
    assert found.status == "WARN"
    assert found.says.endswith("; the loss does not depend on 2 others: spare.weight, spare.bias")


def test_what_the_loss_depends_on_must_have_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    job = build_job(network("Spare"), device="cpu")
    loop = TrainingLoop(job, job.model()[0])
    real = nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: real(self, x).detach() if x.shape[-1] == 48 else real(self, x)
    )
    loop.run()
    found = trained_tensors_moved(loop.state)
    assert found.status == "FAIL"
    assert "never had a gradient: " in found.says
    assert "output.dense" in found.says
    assert "spare" not in found.says


def zeros(job: Job, tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.encoder.layer.0.output.dense.weight"].zero_()


def deaf(job: Job, tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.embeddings.LayerNorm.weight"].zero_()


def loud(job: Job, tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.encoder.layer.0.intermediate.dense.weight"].mul_(1000)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("spoil", "short", "status"),
    [(zeros, "varied", "FAIL"), (deaf, "dead", "FAIL"), (loud, "scale", "WARN"), (loud, "drawn", "FAIL")],
)
def test_a_planted_fault_is_found_in_a_network_of_transformers(
    spoil: Callable[[Job, dict[str, torch.Tensor]], None], short: str, status: str
) -> None:
    job = build_job(network("BertForSequenceClassification"), device="cpu")
    assert before(job)[short].status == "PASS"
    assert before(job, lambda tensors: spoil(job, tensors))[short].status == status
