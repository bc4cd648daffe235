"""Causal language models are trained on packed texts: every token is predicted once, and the loss is transformers'."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError
from ckptsurgeon.trainer.checks.weights import loaded_tensors
from ckptsurgeon.trainer.evaluation import evaluate
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.init_checkpoint import read_init
from ckptsurgeon.trainer.job.job import Job
from ckptsurgeon.trainer.run.records import data_digests
from ckptsurgeon.trainer.run.resuming import check_data

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ("the", "cat", "dog", "sleeps", "runs", "here")


def model(end: int | None = 0, words: tuple[str, ...] = WORDS) -> None:
    """Save a small Llama and the tokeniser of a few words, as the folder llama."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=end,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained("llama")
    vocab = {token: row for row, token in enumerate(("<end>", *words, "<unk>"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save("llama/tokenizer.json")


def job(texts: list[str], **settings: Any) -> Job:
    """A job on these texts, one in each line of JSON."""
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = {"train": "texts.jsonl", "dev": "texts.jsonl", "segmenter": "llama/tokenizer.json", "context": 4}
    section = {"task": "language_model", "steps": 4, "batch_size": 2, **settings}
    section["data"] = {**data, **settings.get("data", {})}
    Path("lm.yaml").write_text(yaml.safe_dump({"model": {"transformers": "llama/config.json"}, "train": section}))
    return build_job("lm.yaml", device="cpu")


TEXTS = ["the cat sleeps here", "the dog runs", "here the cat runs", "dog"]
IDS = [1, 2, 4, 6, 0, 1, 3, 5, 0, 6, 1, 2, 5, 0, 3, 0]


def test_every_token_but_the_first_is_predicted_once_from_those_before_it() -> None:
    model()
    made = job(TEXTS)
    for source in (made.train, made.dev):
        assert source is not None
        pairs = []
        for batch in source.read(3, 1):
            for inputs, labels, length in zip(
                batch.inputs.tolist(), batch.labels.tolist(), batch.lengths.tolist(), strict=True
            ):
                pairs += list(zip(inputs[:length], labels[:length], strict=True))
                assert set(labels[length:]) <= {-100}
        assert sorted(pairs) == sorted(pairwise(IDS))
    assert made.notes[:2] == (
        "train: 4 texts, 16 tokens in 4 rows of 4", "dev: 4 texts, 16 tokens in 4 rows of 4",
    )  # fmt: skip


def test_the_order_follows_from_seed_and_epoch_and_may_be_entered_anywhere() -> None:
    model()
    train = job(TEXTS * 5).train
    whole = [batch.names for batch in train.read(1, 0)]
    assert [batch.names for batch in train.read(1, 0, 3)] == whole[3:]
    assert len(whole) == train.size(0)
    assert [batch.names for batch in train.read(1, 1)] != whole


def test_the_loss_is_that_of_transformers() -> None:
    model()
    made = job(TEXTS)
    net = transformers.LlamaForCausalLM.from_pretrained("llama")
    assert made.dev is not None
    found = evaluate(net, made.task, made.dev.read(0, 0), settings=made.settings)
    total, tokens = 0.0, 0
    for begin in range(0, 15, 4):
        row = torch.tensor([IDS[begin : begin + 5]])
        with torch.no_grad():
            total += float(net(input_ids=row, labels=row).loss) * (row.shape[1] - 1)
        tokens += row.shape[1] - 1
    assert tokens == 15
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert found["perplexity"] == pytest.approx(2.718281828 ** (total / tokens), rel=1e-5)


def test_a_run_learns_by_adapters_and_merges_into_a_folder_that_transformers_opens() -> None:
    model()
    job(TEXTS * 10, steps=40, batch_size=8, lr=0.02, evaluate_every=20, lora={"targets": ["all-linear"], "rank": 4},
        data={"context": 8})  # fmt: skip
    found = cs.train("lm.yaml", init="llama", run="run")
    assert found.ok, found.checks
    (padding,) = (one for one in found.checks if one.name == "independent of batch and padding")
    assert (padding.status, padding.says.endswith(" with more padding (equal within 0.1 %)")) == ("PASS", True), padding
    assert found.figures["loss"] < 1.7 < 2.0 < found.first_loss
    cs.apply(cs.lora_merge("llama", "run/adapter"), "tuned")
    merged, info = transformers.LlamaForCausalLM.from_pretrained("tuned", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    made = job(TEXTS * 10, data={"context": 8})
    assert made.dev is not None
    again = evaluate(merged, made.task, made.dev.read(0, 0), settings=made.settings)
    assert again["loss"] == pytest.approx(found.best, rel=1e-4)


def test_a_model_without_an_end_gets_nothing_between_texts_and_a_note() -> None:
    model(end=None)
    made = job(["the cat", "the dog"])
    assert next(made.train.read(0, 0)).inputs.tolist() == [[1, 2, 1]]
    assert "the model has no eos_token_id: no token is put between texts" in made.notes


def test_tokens_that_the_tokeniser_does_not_know_are_counted() -> None:
    model()
    made = job(["the cat", "the bird and the dog"])
    assert made.notes[0] == "train: 2 texts, 9 tokens in 2 rows of 4; 2 of the tokens are the unknown token"


def test_texts_that_splits_share_are_counted() -> None:
    model()
    Path("dev.jsonl").write_text('{"text": "the dog"}\n{"text": "the cat"}\n{"text": " "}\n')
    made = job(["the cat", "dog", " "], data={"dev": "dev.jsonl"})
    assert made.notes[2:] == ("1 of 2 texts of dev is also in train: figures on dev are too optimistic",)


def byte_level(texts: list[str]) -> None:
    """Save byte-level BPE without an unknown token that has only the letters of these texts, as the model's own."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    made.train_from_iterator(
        texts, tokenizers.trainers.BpeTrainer(vocab_size=1, special_tokens=["<end>"], show_progress=False)
    )
    made.save("llama/tokenizer.json")


def test_letters_that_the_tokeniser_loses_and_blank_texts_are_counted() -> None:
    model()
    byte_level(["a cat", "\u00e9"])
    lost = "; the tokeniser has no token for 4 characters in 2 texts, and leaves them out: 'Z', '\u00e1'"
    blank = "; 2 texts have nothing but spaces"
    made = job(["a c\u00e1t ZZ", "a cat \u00e9", "Z", "", " "])
    assert made.notes[0].partition("; ")[1:] == ("; ", f"{lost}{blank}"[2:])
    assert job(["a cat \u00e9"]).notes[0].count(";") == 0


def test_a_letter_in_an_added_token_is_not_lost() -> None:
    model()
    byte_level(["a cat"])
    made = tokenizers.Tokenizer.from_file("llama/tokenizer.json")
    made.add_tokens(["<\u00e1>"])
    made.save("llama/tokenizer.json")
    assert "1 character in 1 text" in job(["a cat <\u00e1>", "\u00e1"]).notes[0]


@pytest.mark.parametrize(
    ("files", "data", "why"),
    [
        ({}, {"train": "none.txt"}, "none.txt cannot be read: No such file"),
        ({"a.txt": b"\xff\xfe"}, {"train": "a.txt"}, "a.txt is not UTF-8"),
        (
            {"a.txt": b"a\r\n" * 9000 + b"\xff"},
            {"train": "a.txt"},
            "a.txt is not UTF-8: invalid start byte at byte 27000",
        ),
        (
            {"a.jsonl": b'{"text": "cat"}\n' * 2000 + b'{"text": "\xff"}\n'},
            {"train": "a.jsonl"},
            "a.jsonl is not UTF-8: invalid start byte at byte 32010",
        ),
        ({"a.txt": b""}, {"train": "a.txt"}, "train.data.train has only 1 token: there is no next token"),
        ({"a.csv": b"text\nthe cat\n"}, {"dev": "a.csv"}, "a.csv is neither a plain text file nor a .jsonl file"),
        (
            {"a.jsonl": b'{"text": "cat"}\n{"words": "cat"}\n'},
            {"train": "a.jsonl"},
            "a.jsonl:2 has no field text with a string",
        ),
        (
            {"a.jsonl": b'{"text": "a \\ud800"}\n'},
            {"train": "a.jsonl"},
            "a.jsonl:1: the text contains \\ud800, half of a letter in UTF-16",
        ),
        ({"a.jsonl": b'{"text": \n'}, {"train": "a.jsonl"}, "a.jsonl:1 is not JSON"),
        ({}, {"segmenter": None}, "the task language_model needs the tokeniser of the model"),
        ({}, {"segmenter": "lm.yaml"}, "lm.yaml cannot be read"),
        ({}, {"context": 0}, "train.data.context is 0; it must be 1 or more"),
        ({}, {"train": {"_target_": "a.b"}}, "train.data.train must be the path of a text file"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error(files: dict[str, bytes], data: dict[str, Any], why: str) -> None:
    model()
    for name, content in files.items():
        Path(name).write_bytes(content)
    with pytest.raises(CheckpointError) as found:
        job(TEXTS, data=data)
    assert why in found.value.said


def test_other_texts_have_another_digest() -> None:
    model()
    first, same, other = (data_digests(job([text]))["train"] for text in ("the cat", "the cat", "the dog"))
    assert first == same != other
    ids = np.array([WORDS.index("the") + 1, WORDS.index("cat") + 1, 0], dtype="<i4")
    assert first == hashlib.sha256(ids.tobytes()).hexdigest()


def test_a_resumed_run_notices_other_texts() -> None:
    model()
    was = data_digests(job(["the cat"]))
    with pytest.raises(CheckpointError, match="has other texts for train than when run was started"):
        list(check_data(job(["the dog"]), was, "run"))


def test_a_resumed_run_says_that_the_tokeniser_is_another_one() -> None:
    """The digest of the tokens changes, too: it was said that the texts are other ones."""
    model()
    was = data_digests(job(["the cat"]))
    model(words=tuple(reversed(WORDS)))
    now = job(["the cat"])
    assert data_digests(now)["train"] != was["train"]
    with pytest.raises(CheckpointError, match=r"llama/tokenizer\.json cuts texts differently than when run was"):
        list(check_data(now, was, "run"))


def test_a_tokeniser_of_another_model_is_an_error() -> None:
    model(words=(*WORDS, "and", "more"))
    with pytest.raises(CheckpointError, match="the token id 8, but the model's vocabulary has 8 entries"):
        job(["more"])


def test_batches_of_texts_have_no_seconds() -> None:
    """They had batch_size texts, and nothing said so."""
    model()
    with pytest.raises(cs.ConfigError, match="train.batch_seconds: texts have no length in seconds"):
        job(TEXTS, batch_seconds=20).model()


def test_a_model_without_an_output_layer_is_an_error() -> None:
    model()
    config = json.loads(Path("llama/config.json").read_text())
    Path("llama/config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    with pytest.raises(CheckpointError, match="trains a causal model of transformers, but this is LlamaModel"):
        job(TEXTS)


def test_what_resize_sets_to_zero_is_not_taken_for_weights_that_were_lost() -> None:
    model()
    job(TEXTS)
    plan = cs.resize("llama", set={"num_hidden_layers": 4, "intermediate_size": 96}, layers="identity")
    cs.apply(plan, "grown")
    path = Path("lm.yaml")
    path.write_text(path.read_text().replace("llama/", "grown/"))
    found = cs.train("lm.yaml", init="grown", check_only=True, device="cpu")
    said = {check.name: (check.status, check.says) for check in found.checks}
    assert said["no constant tensors"] == (
        "PASS",
        "39 tensors; constant by their initialisers: 9; set to zero by the recipe of the init: 4",
    )
    state = load_file("llama/model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(state, "lost.safetensors")
    path.write_text(path.read_text().replace("grown/", "llama/"))
    lost = {check.name: check for check in cs.train("lm.yaml", init="lost.safetensors", check_only=True).checks}
    assert lost["no constant tensors"].status == "FAIL"


def mixtral() -> None:
    """Save a small Mixtral, in whose files each expert has tensors of its own, beside the tokeniser of llama."""
    model()
    config = transformers.MixtralConfig(
        vocab_size=8, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained("mixtral")
    saved = json.loads(Path("mixtral/config.json").read_text())
    Path("mixtral/config.json").write_text(json.dumps({**saved, "architectures": ["MixtralForCausalLM"]}))


def moe(**settings: Any) -> str:
    """Write a configuration that trains the Mixtral; returns its path."""
    job(TEXTS, **settings)
    data = yaml.safe_load(Path("lm.yaml").read_text())
    Path("lm.yaml").write_text(yaml.safe_dump({**data, "model": {"transformers": "mixtral/config.json"}}))
    return "lm.yaml"


@pytest.mark.long
def test_a_mixture_of_experts_is_trained_from_published_files() -> None:
    """The network has the experts of a layer in one tensor: it is compared with what its files become."""
    mixtral()
    found = cs.train(moe(), init="mixtral", device="cpu")
    assert not [check for check in found.checks if check.status == "FAIL"]
    job = build_job("lm.yaml", device="cpu", init=read_init("mixtral"))
    built, plan = job.model()
    assert loaded_tensors(built, job.init, plan).says.startswith("21 of 21, bit for bit")
    with torch.no_grad():
        built.state_dict()["model.layers.1.mlp.experts.down_proj"][2, 0, 0] += 1e-3
    spoilt = loaded_tensors(built, job.init, plan)
    assert (spoilt.status, spoilt.says) == ("FAIL", "1 tensor of 21 differ: model.layers.1.mlp.experts.down_proj")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")  # of PEFT
def test_adapters_of_a_mixture_of_experts_are_merged_and_opened_by_peft() -> None:
    peft = pytest.importorskip("peft")
    mixtral()
    section = moe(lora={"targets": ["all-linear"], "rank": 4}, lr=0.05, steps=8)
    found = cs.train(section, init="mixtral", device="cpu")
    assert not [check for check in found.checks if check.status == "FAIL"]
    cs.apply(cs.lora_merge("mixtral", ["run/adapter"]), "merged/")
    ids, outputs = torch.tensor([IDS[:8]]), []
    for folder in ("mixtral", "merged"):
        read = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        outputs.append(read(ids).logits)
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained("mixtral"), "run/adapter"
    )
    torch.testing.assert_close(outputs[1], adapted.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    assert (outputs[1] - outputs[0]).abs().max() > 1e-3
