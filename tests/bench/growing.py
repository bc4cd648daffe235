"""The rows of ``resize``: a small Llama that was trained, grown and pruned, and trained on.

It is a language model of this project's own documentation: about 290,000 tokens of byte-pair encoding. What counts is
the loss over texts that no run was trained on, in nats per token. All runs have the same steps, batches and learning
rate; a run from scratch begins with what the configuration's initialisers draw.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .harness import Row, ckpt, python, run

__all__ = ["growing"]

PAGES = Path(__file__).resolve().parents[2] / "docs"

MAKE = """
import json, random
from pathlib import Path
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

pages = [page.read_text() for page in sorted(Path({pages!r}).glob("**/*.md")) if page.name != "changelog.md"]
texts = [part for page in pages for part in page.split("\\n\\n") if len(part) > 80]
random.Random(0).shuffle(texts)
tenth = len(texts) // 10
for name, some in (("dev", texts[:tenth]), ("train", texts[tenth:])):
    Path(name + ".jsonl").write_text("".join(json.dumps({{"text": text}}) + "\\n" for text in some))
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
letters = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(
    texts[tenth:], trainers.BpeTrainer(vocab_size=512, special_tokens=["<end>"], initial_alphabet=sorted(letters))
)
Path("some.txt").write_text("".join(" ".join(text.split()) + "\\n" for text in texts[tenth : 2 * tenth]))
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=192, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, bos_token_id=None, eos_token_id=0,
    tie_word_embeddings=False,
)
LlamaForCausalLM(config).save_pretrained("new")
tokenizer.save("new/tokenizer.json")
"""

SETTINGS = """
model: {{transformers: {model}/config.json}}
train:
  task: language_model
  data: {{train: train.jsonl, dev: dev.jsonl, segmenter: {model}/tokenizer.json, context: 64}}
  steps: {steps}
  batch_size: 16
  lr: {lr}
  warmup: {warmup}
  evaluate_every: {steps}
  save_every: {steps}
"""

TWICE = ("hidden_size=128", "intermediate_size=384", "num_attention_heads=8", "num_key_value_heads=4")
"""Twice as wide; twice as deep too: each layer is followed by one that only passes its input on."""


def growing(folder: str, number: int, steps: int) -> Iterator[Row]:
    """A grown network starts at its source's loss and beats one from scratch; a pruned one recovers.

    ``steps`` is how long each network is trained, the first one three times as long; ``number`` is the number of seeds.
    """
    run(python(MAKE.format(pages=str(PAGES))), folder)
    _train(folder, "new", 3 * steps, lr=3e-3)
    source = "new-run/best.safetensors"
    _resize(folder, source, "grown", *TWICE, "num_hidden_layers=6", options=("--layers", "identity"))
    run(ckpt("stats", source, "--inputs", "some.txt", "-o", "stats.safetensors", "-q"), folder)
    for name, options in (("pruned", ()), ("pruned-by", ("--by", "stats.safetensors"))):
        _resize(folder, source, name, "intermediate_size=96", options=options)
    trained = {name: _train(folder, name, steps) for name in ("pruned", "pruned-by")}
    trained["same"] = _train(folder, "new-run", steps, init=source)
    trained["grown"] = _train(folder, "grown", steps, "--controls", "--seeds", str(number))
    yield from _rows(trained)


def _resize(folder: str, source: str, name: str, *fields: str, options: tuple[str, ...] = ()) -> None:
    given = [text for field in fields for text in ("--set", field)]
    run(ckpt("resize", source, *given, *options, "-o", f"{name}/", "-q"), folder)


def _train(folder: str, name: str, steps: int, *options: str, init: str = "", lr: float = 2e-3) -> dict[str, Any]:
    """Train the model in a folder, or ``init``, and return the result of its run."""
    path = os.path.join(folder, name)
    Path(f"{path}.yaml").write_text(SETTINGS.format(model=name, steps=steps, warmup=steps // 10, lr=lr))
    given = ("--init", init or name, "--run", f"{name}-run", "--device", "cpu", "-q")
    run(ckpt("train", f"{name}.yaml", *given, *options), folder)
    result: dict[str, Any] = json.loads(Path(f"{path}-run", "result.json").read_text())
    return result


def _rows(trained: dict[str, dict[str, Any]]) -> Iterator[Row]:
    first = {name: result["first_loss"] for name, result in trained.items()}
    last = {name: result["figures"]["loss"] for name, result in trained.items()}
    grown = trained["grown"]["controls"]
    means = {arm["name"]: sum(arm["values"]) / len(arm["values"]) for arm in grown["arms"] if not arm["frozen"]}
    yield _row(
        "first loss, grown to twice the width, heads, channels and layers / of its source", first, "grown", 1.0001
    )
    warm, scratch = means["warm"], means["scratch"]
    said = f"{warm:.3f} / {scratch:.3f}, {grown['seeds']} seeds: {grown['verdict']}"
    yield Row("loss of the grown one, trained on / from scratch", warm / scratch, 0.9, seen=said)
    yield _row("loss of the grown one, trained on / of its source, trained on as long", last, "grown", 1)
    for name, how in (("pruned", "by weights"), ("pruned-by", "by statistics")):
        yield _row(f"first loss, half of the channels, chosen {how} / of its source", first, name, 2)
        yield _row("loss of it, trained on / of its source, trained on as long", last, name, 1.1)


def _row(what: str, losses: dict[str, float], name: str, limit: float) -> Row:
    return Row(what, losses[name] / losses["same"], limit, seen=f"{losses[name]:.4f} / {losses['same']:.4f}")
