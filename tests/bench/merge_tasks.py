"""Three tasks on short sentences that ``merge_quality`` fine-tunes a language model on: topics, agents and numbers.

The file is copied beside the configurations, where ``ckpt train`` runs it: it imports nothing of this project. All
sentences have ``LENGTH`` tokens, so that none is padded. Words, pairs of names and pairs of numbers of the test are not
in the training data.

    python merge_tasks.py JOBS.json

prints the accuracies of merged models as JSON. Each job is ``{"model": FILE, "heads": [FILE, …], "split": …, "size": …}``:
the model without its head, and the fine-tuned models whose heads it gets, one for each task.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

LENGTH = 16
CONFIG, TOKENIZER = "classifier.json", "small/tokenizer.json"
TOPICS = {
    "animals": "dog cat horse cow sheep goat pig rabbit wolf fox bear lion tiger eagle owl frog snake whale shark mouse",
    "food": "bread cheese butter rice soup cake apple pear salad honey sugar salt pepper corn bean meat egg milk wine tea",
    "vehicles": "car bus truck train ship boat bicycle motorcycle plane helicopter tram taxi van wagon yacht tractor "
    "ferry canoe jeep rocket",
    "clothes": "shirt coat hat shoe sock dress skirt jacket glove scarf belt boot suit tie apron vest robe cap sweater "
    "pants",
}
FRAMES = (
    "we saw a picture of the {}",
    "she asked him about the {}",
    "they sold the {} last week",
    "he wrote a story about the {}",
    "nobody wanted the old {}",
    "my uncle found the {} outside",
)
NAMES = ("anna", "peter", "maria", "thomas")
VERBS = ("saw", "helped", "called", "found", "followed", "thanked", "invited", "met")
PASSIVES = ("seen", "helped", "called", "found", "followed", "thanked", "invited", "met")
PLACES = ("near the river", "in the morning", "at the station", "behind the church", "after the concert")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = ("books", "chairs", "stones", "letters", "boxes", "windows", "coins", "flowers")
Example = tuple[str, int]


def topics(draw: random.Random, split: str) -> Iterator[Example]:
    """Yield sentences with a noun, and its topic."""
    while True:
        label, words = draw.choice(list(enumerate(TOPICS.values())))
        kinds = words.split()
        kept = kinds[:10] if split == "train" else kinds[10:15] if split == "dev" else kinds[15:]
        yield draw.choice(FRAMES).format(draw.choice(kept)), label


def agents(draw: random.Random, split: str) -> Iterator[Example]:
    """Yield sentences on two people, in active or passive voice, and which of them acts."""
    while True:
        first, second = draw.sample(range(len(NAMES)), 2)
        number = draw.randrange(len(VERBS))
        fifth = (first + second + number) % 5
        if {3: "dev", 4: "test"}.get(fifth, "train") != split:
            continue
        place = draw.choice(PLACES)
        if draw.random() < 0.5:
            yield f"{NAMES[first]} {VERBS[number]} {NAMES[second]} {place}", first
        else:
            yield f"{NAMES[first]} was {PASSIVES[number]} by {NAMES[second]} {place}", second


def numbers(draw: random.Random, split: str) -> Iterator[Example]:
    """Yield sentences with two numbers, and whether the first is larger, smaller or equal."""
    pairs = [pair for pair in product(range(len(NUMBERS)), repeat=2) if pair[0] != pair[1]]
    random.Random(1).shuffle(pairs)
    equal = [(one, one) for one in range(len(NUMBERS))]
    cut = {"train": [*pairs[:48], *equal], "dev": pairs[48:60], "test": pairs[60:]}[split]
    while True:
        one, two = draw.choice(cut)
        things = draw.sample(THINGS, 2)
        label = 0 if one > two else 1 if one < two else 2
        yield f"there are {NUMBERS[one]} {things[0]} and {NUMBERS[two]} {things[1]} in the room", label


TASKS: dict[str, Callable[[random.Random, str], Iterator[Example]]] = {
    "topics": topics,
    "agents": agents,
    "numbers": numbers,
}
CLASSES = 4
"""The number of labels of each task; ``numbers`` has one less."""


def texts(task: str, split: str, size: int) -> list[Example]:
    """Return examples of a task: sentences with their labels. Those for tests are different ones."""
    made = TASKS[task](random.Random(f"{task} {split}"), split)
    if split == "train":
        return [next(made) for _ in range(size)]
    found: dict[Example, None] = {}
    while len(found) < size:
        found[next(made)] = None
    return list(found)


class Classifier(BertForSequenceClassification):
    """BERT with a head for the labels of all tasks."""

    def __init__(self, config: str = CONFIG) -> None:
        super().__init__(BertConfig.from_json_file(config))

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Return the logits (batch, labels) of token ids (batch, length)."""
        mask = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
        logits: Tensor = super().forward(input_ids=inputs, attention_mask=mask).logits
        return logits


class Sentences(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Examples of some tasks in turn: the ids of the tokens, and the label among those of all tasks."""

    def __init__(self, tasks: str, split: str, size: int, tokenizer: str = TOKENIZER) -> None:
        made = opened(tokenizer)
        self.rows: list[tuple[torch.Tensor, int]] = []
        for task in tasks.split(","):
            first = CLASSES * list(TASKS).index(task)
            for text, label in texts(task, split, size):
                self.rows.append((torch.tensor(encoded(made, text)), first + label))
        random.Random(0).shuffle(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.rows[place]


def opened(path: str) -> Tokenizer:
    """Return the tokeniser in a file, without padding."""
    made = Tokenizer.from_file(path)
    made.no_padding()
    return made


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of the tokens of a text, filled up with full stops to ``LENGTH``."""
    ids: list[int] = tokenizer.encode(text).ids
    stop = tokenizer.token_to_id(".")
    if len(ids) > LENGTH:
        raise ValueError(f"{text!r} has {len(ids)} tokens")
    return [*ids[:-1], *[stop] * (LENGTH - len(ids)), ids[-1]]


def with_heads(model: str, heads: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of a model, with the rows of its head for each task from another model."""
    found = load_file(model)
    for number, path in enumerate(heads):
        own, rows = load_file(path), slice(CLASSES * number, CLASSES * (number + 1))
        for key in ("classifier.weight", "classifier.bias"):
            found[key][rows] = own[key][rows]
    return found


@torch.no_grad()
def accuracies(network: Classifier, job: dict[str, Any]) -> list[float]:
    """Return the share of right answers for each task; an answer is one of the task's own labels."""
    network.load_state_dict(with_heads(job["model"], job["heads"]))
    found = []
    for number, task in enumerate(TASKS):
        inputs, labels = zip(*Sentences(task, job["split"], job["size"], TOKENIZER), strict=True)
        rows = slice(CLASSES * number, CLASSES * (number + 1))
        logits = network(torch.stack(inputs), torch.full((len(inputs),), LENGTH))[:, rows]
        right = logits.argmax(-1) + rows.start == torch.tensor(labels)
        found.append(float(right.float().mean()))
    return found


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    network = Classifier(CONFIG).eval()
    print(json.dumps([accuracies(network, job) for job in jobs]))


if __name__ == "__main__":
    main()
