"""Pre-training of wav2vec 2.0: its losses are transformers', what is masked and held against what, and its collapse."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.source import first_batch
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.state.training_state import COLLAPSED
from ckptsurgeon.trainer.tasks._contrastive import masked_frames, most_masked, negatives_of
from ckptsurgeon.trainer.tasks._conv_frontend import ConvFrontend

from .waves import LAYER_NORM, SMALL, batch_of, model_of, task_for, write

pytest.importorskip("transformers")
Run = Callable[..., Any]


@given(
    st.integers(0, 60), st.floats(0, 1), st.integers(1, 12), st.integers(0, 4), st.integers(0, 2**32)
)  # fmt: skip
def test_masked_frames_are_spans_within_the_clip(
    frames: int, share: float, length: int, fewest: int, seed: int
) -> None:
    found = masked_frames(frames, share, length, fewest=fewest, chance=numpy.random.default_rng(seed)).tolist()
    assert found == sorted(set(found))
    if frames <= length:
        assert not found
        return
    assert all(0 <= place < frames for place in found)
    spans = max(int(share * frames / length) + 1, fewest)
    assert len(found) <= spans * length
    assert len(found) <= most_masked(frames, share, length, fewest=fewest) <= frames
    assert len(found) >= min(length, frames) * (fewest > 0)
    runs = numpy.split(found, numpy.flatnonzero(numpy.diff(found) > 1) + 1) if found else []
    assert all(len(run) >= length for run in runs)


OPTIONS = """
    dataset_name dataset_config_names dataset_split_names trust_remote_code preprocessing_num_workers overwrite_cache
    preprocessing_only cache_dir validation_split_percentage logging_steps saving_steps audio_column_name
    model_name_or_path config_name train_cache_file_name validation_cache_file_name per_device_train_batch_size
    per_device_eval_batch_size learning_rate weight_decay num_train_epochs max_train_steps gradient_accumulation_steps
    gradient_checkpointing lr_scheduler_type num_warmup_steps output_dir seed max_gumbel_temperature
    min_gumbel_temperature gumbel_temperature_decay max_duration_in_seconds min_duration_in_seconds pad_to_multiple_of
    adam_beta1 adam_beta2 adam_epsilon push_to_hub hub_model_id hub_token mask_time_prob mask_time_length
"""
"""The options of run_wav2vec2_pretraining_no_trainer.py, https://github.com/huggingface/transformers."""


def test_the_page_has_a_place_for_every_option_of_the_script() -> None:
    page = Path(__file__).parents[2].joinpath("docs/howto/wav2vec2.md").read_text()
    rows = page[page.index("| option of the script |") :].splitlines()
    named = {word.strip(" `") for row in rows if row.startswith("| `--") for word in row.split("|")[1].split(", ")}
    assert named == {f"--{option}" for option in OPTIONS.split()}


@pytest.mark.long
def test_speech_without_transcripts_is_enough(ckpt: Run) -> None:
    write()
    for name in ("train.csv", "dev.csv"):
        rows = [line.partition(",")[0] for line in Path(name).read_text().splitlines()]
        Path(name).write_text("\n".join(rows) + "\n")
    done = ckpt("train", "pre.yaml", "--check-only", "--device", "cpu")
    assert "note: train: 12 clips" in done.err, done


def test_about_the_share_that_is_asked_for_is_masked() -> None:
    chance = numpy.random.default_rng(0)
    drawn = [len(masked_frames(500, 0.65, 10, fewest=2, chance=chance)) / 500 for _ in range(200)]
    assert 0.45 < sum(drawn) / len(drawn) < 0.52  # 1 - exp(-0.65): spans overlap; 49 % in the paper, section 4.2


def test_shapes_of_a_batch_follow_from_its_longest_clip() -> None:
    task = task_for(model_of(SMALL))
    batches = [batch_of(task, 16_000, 9_000, seed=seed) for seed in range(6)]
    assert len({int(batch.label_lengths.max()) for batch in batches}) > 1
    assert len({(batch.labels.shape, batch.extras["negatives"].shape) for batch in batches}) == 1


def test_negatives_are_others_each_as_likely() -> None:
    found = negatives_of(5, 4000, numpy.random.default_rng(0))
    assert found.shape == (5, 4000)
    assert [negatives_of(masked, 3, numpy.random.default_rng(0)).tolist() for masked in (0, 1)] == [[], [[0, 0, 0]]]
    for own, row in enumerate(found.tolist()):
        counted = Counter(row)
        assert set(counted) == set(range(5)) - {own}
        assert all(abs(number - 1000) < 150 for number in counted.values())


def hard(logits: Tensor, tau: float = 1, hard: bool = True, dim: int = -1) -> Tensor:
    """The Gumbel softmax without its noise, which nobody could draw twice in another order."""
    soft = (logits / tau).softmax(dim)
    chosen = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return chosen - soft.detach() + soft


def theirs(model: Any, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    """What transformers' own forward gives for a batch, and its gradients."""
    frames = int(model._get_feat_extract_output_lengths(batch.inputs.shape[1]))
    size, number = len(batch.names), batch.extras["negatives"].shape[2]
    mask, negatives = torch.zeros(size, frames, dtype=torch.bool), torch.zeros(size, frames, number, dtype=torch.int64)
    for row in range(size):
        places = batch.labels[row, : batch.label_lengths[row]]
        mask[row, places] = True
        negatives[row, places] = places[batch.extras["negatives"][row, : len(places)]] + row * frames
    valid = torch.arange(batch.inputs.shape[1])[None] < batch.lengths[:, None]
    told = {"attention_mask": valid.long()} if model.config.feat_extract_norm == "layer" else {}
    model.zero_grad()
    found = model(batch.inputs, mask_time_indices=mask, sampled_negative_indices=negatives, **told)
    found.loss.backward()
    return found, gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {key: one.grad.clone() for key, one in model.named_parameters() if one.grad is not None}


@pytest.mark.costly
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("variant", [{}, LAYER_NORM], ids=["group norm", "layer norm"])
def test_the_losses_are_those_of_transformers(
    variant: Mapping[str, Any], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", hard)
    model = model_of(SMALL, **variant).train(training)
    task = task_for(model)
    batch = batch_of(task, 16_000, 12_345, 9_000)
    found, wanted = theirs(model, batch)
    model.zero_grad()
    ours = task.loss(model, batch)
    ours.total.backward()
    assert int(ours.items) == int(batch.label_lengths.sum())
    for one, other in (
        (ours.total, found.loss),
        (ours.parts["contrastive"], found.contrastive_loss),
        (ours.parts["diversity"], found.diversity_loss),
        (ours.parts["perplexity"] / ours.items, found.codevector_perplexity),
    ):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-5, atol=1e-5)
    mine = gradients(model)
    assert mine.keys() == wanted.keys()
    for key, one in wanted.items():
        torch.testing.assert_close(mine[key], one, rtol=1e-4, atol=1e-5 * float(ours.items), msg=key)


def test_what_is_padding_changes_no_loss_and_is_never_a_negative() -> None:
    model = model_of(SMALL, **LAYER_NORM).eval()
    task = task_for(model)
    both = batch_of(task, 16_000, 9_000)
    frames = task.hearing.frames(both.lengths)
    for row in range(2):
        places = both.labels[row, : both.label_lengths[row]]
        assert int(places.max()) < int(frames[row])
        assert int(both.extras["negatives"][row].max()) < len(places)
    with torch.no_grad():
        alone = [task.loss(model, both.part(row, row + 1)) for row in range(2)]
        together = task.loss(model, both)
    torch.testing.assert_close(
        sum(one.parts["contrastive"] for one in alone), together.parts["contrastive"], rtol=1e-5, atol=1e-4
    )


@pytest.mark.long
def test_batches_with_few_masked_frames_weigh_as_little() -> None:
    """Losses 10 of 10 frames and 40 of 20: 50 / 30, where a mean of means is 1.5 and rescaling at each batch 1.025."""
    model = model_of(SMALL, **LAYER_NORM).eval()
    task = task_for(model, diversity=0.0)
    batch = batch_of(task, 24_000, 9_000, 7_000)
    task.loss(model, batch).total.backward()
    whole = gradients(model)
    model.zero_grad()
    items = [task.loss(model, batch.part(*part)) for part in ((0, 1), (1, 3))]
    for one in items:
        one.total.backward()
    assert sum(int(one.items) for one in items) == int(batch.label_lengths.sum())
    for key, one in gradients(model).items():
        torch.testing.assert_close(one, whole[key], rtol=1e-4, atol=1e-4, msg=key)


def test_negatives_of_the_same_code_are_none_and_a_collapse_is_no_success() -> None:
    model = model_of(SMALL).eval()
    nn.init.zeros_(model.quantizer.weight_proj.weight)  # every frame has code 0
    task = task_for(model)
    found = task.loss(model, batch_of(task, 16_000))
    figures = {name: float(part / found.items) for name, part in found.parts.items()}
    assert figures["contrastive"] == pytest.approx(0, abs=1e-6)
    assert (figures["accuracy"], figures["perplexity"]) == (0, pytest.approx(2))
    assert "every frame has the same code" in task.collapsed(figures)
    assert "perplexity 2 of 8" in task.doubts(figures)
    assert not task.collapsed({**figures, "contrastive": 1.0})
    assert not task.collapsed({**figures, "perplexity": 5.0})


@pytest.mark.long
def test_a_run_that_collapsed_is_stopped_and_fails(monkeypatch: pytest.MonkeyPatch, ckpt: Run, cheap: None) -> None:
    from ckptsurgeon.trainer.tasks.wav2vec2_pretrain import Wav2Vec2Pretraining

    def begin(self: Any, model: Any, step: int) -> None:
        model.quantizer.temperature = 1.0
        with torch.no_grad():
            model.quantizer.weight_proj.weight.zero_()
            model.quantizer.weight_proj.bias.zero_()
            model.quantizer.weight_proj.bias[:: SMALL["num_codevectors_per_group"]] = 1e4

    monkeypatch.setattr(Wav2Vec2Pretraining, "begin_step", begin)
    done = ckpt("train", write(steps=40, evaluate_every=40, save_every=40))
    assert (done.code, "stopped at step 20: contrastive loss" in " ".join(done.out.split())) == (1, True), done
    result = json.loads(Path("run/result.json").read_text())
    assert result["ended"] == COLLAPSED


@pytest.mark.long
def test_the_temperature_falls_and_goes_on_where_it_was() -> None:
    write(pretrain={"gumbel": [2.0, 0.5, 0.5]}, steps=6)
    job = build_job("pre.yaml")
    model, _ = job.model()
    seen = []
    loop = TrainingLoop(
        job, model, observer=lambda row: seen.append(model.quantizer.temperature) if "loss" in row else None
    )
    loop.run(until=4)
    assert seen == [2.0, 1.0, 0.5, 0.5]


@pytest.mark.long
def test_crops_masks_and_negatives_follow_from_seed_epoch_and_place() -> None:
    write(pretrain={"crop_s": 0.3})
    source = build_job("pre.yaml").train
    first, again, later = first_batch(source, 0), first_batch(source, 0), next(iter(source.read(0, 1)))
    assert first.inputs.shape[1] == round(0.3 * 16_000)
    for one, other in ((first.inputs, again.inputs), (first.labels, again.labels)):
        assert torch.equal(one, other)
    assert torch.equal(first.extras["negatives"], again.extras["negatives"])
    assert first.inputs.shape != later.inputs.shape or not torch.equal(first.inputs, later.inputs)
    assert float(first.inputs[0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(first.inputs[0].std(correction=0)) == pytest.approx(1, abs=1e-3)


@pytest.mark.long
def test_a_whole_run_resumes_bit_for_bit_and_says_what_it_masks(ckpt: Run) -> None:
    done = ckpt("train", write(fields={**SMALL, "mask_time_prob": 0.2}))
    assert done.code == 0, done
    said = " ".join((done.out + done.err).split())
    for part in ("4 steps = 2 + 2, bit for bit", "at most 20 % of the frames are masked", "did not collapse"):
        assert part in said, part
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    steps = [row for row in log if "parts" in row]
    assert set(steps[0]["parts"]) == {"contrastive", "diversity", "perplexity", "accuracy"}
    assert 1 < steps[0]["parts"]["perplexity"] <= 8


def described_by_tensors(config: str) -> str:
    content = yaml.safe_load(Path(config).read_text())
    Path(config).write_text(
        yaml.safe_dump({"model": {"tensors": {"a": {"shape": [2], "init": "zeros"}}}, "train": content["train"]})
    )
    return config


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "features": (lambda: write(features={"kind": "log_mel"}), "needs waveforms, but train.features.kind is log_mel"),
    "another model": (
        lambda: write(fields={**SMALL, "architectures": ["Wav2Vec2ForCTC"]}),
        "trains a model with a quantizer, but this is Wav2Vec2ForCTC",
    ),
    "warm-up": (lambda: write(warmup=4), "train.warmup 4 is not below train.steps 4"),
    "durations": (lambda: write(data={"train": "train.csv", "min_s": 5.0}), "no clip is left"),
    "crops that are too short to mask": (lambda: write(pretrain={"crop_s": 0.05}), "no clip is left"),
    "temperatures": (lambda: write(pretrain={"gumbel": [2.0, 0.5]}), "train.pretrain.gumbel is"),
    "adapters": (lambda: write(fields={**SMALL, "add_adapter": True}), "with an adapter (add_adapter)"),
    "nothing to mask with": (
        lambda: write(fields={**SMALL, "mask_time_prob": 0.0}, pretrain={"mask_prob": 0.5}),
        "without a vector for masked frames",
    ),
    "tensors": (
        lambda: described_by_tensors(write()),
        "describes only tensors, and not a model that can be trained",
    ),
    "a share above 1": (lambda: write(pretrain={"mask_prob": 1.5}), "train.pretrain.mask_prob is 1.5"),
}


@pytest.mark.costly
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_an_error_before_the_first_step(name: str, ckpt: Run) -> None:
    make, why = BAD[name]
    done = ckpt("train", make())
    assert (done.code, why in " ".join(done.err.split())) == (2, True), done
    assert not Path("run").exists()


@pytest.mark.long
def test_a_checkpoint_of_the_other_norm_is_an_error_that_names_tensors(ckpt: Run) -> None:
    from safetensors.torch import save_file

    model = model_of(SMALL, **LAYER_NORM)
    save_file(dict(model.state_dict()), "other.safetensors")
    done = ckpt("train", write(), "--init", "other.safetensors")
    assert done.code == 4, done
    assert "does not fit pre.yaml" in done.err
    assert not Path("run").exists()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' own, in WavLM
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_a_body_with_a_new_head_transcribes(kind: str, ckpt: Run, cheap: None) -> None:
    names = {"wav2vec2": "Wav2Vec2ForCTC", "hubert": "HubertForCTC", "wavlm": "WavLMForCTC"}
    write("ctc.yaml", fields={**SMALL, "model_type": kind, "architectures": [names[kind]], "vocab_size": 3})
    Path("tokens.txt").write_text("<pad>\na\nb\n")
    data = {"train": "train.csv", "dev": "dev.csv", "tokens": "tokens.txt"}
    sets = [f"data={json.dumps(data)}", "task=wav2vec2_ctc", f"freeze=[{kind}.feature_extractor]"]
    found = cs.train("ctc.yaml", sets=sets)
    by_name = {check.name: check for check in found.checks}
    assert by_name["frozen tensors did not move"].status == "PASS"
    assert by_name["trained tensors moved"].status in ("PASS", "WARN")
    assert {"loss", "cer", "blanks"} <= found.figures.keys()
    beside = {"config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json"}
    assert beside <= set(os.listdir("run"))
    cs.apply(cs.convert("run/best.safetensors"), "model/")
    assert {*beside, "model.safetensors"} <= set(os.listdir("model"))
    from transformers import AutoModelForCTC, AutoProcessor, pipeline

    assert len(AutoProcessor.from_pretrained("model").tokenizer) == 3
    assert not AutoModelForCTC.from_pretrained("model", output_loading_info=True)[1]["missing_keys"]
    spoken = pipeline("automatic-speech-recognition", model="model")
    paths = [row.split(",")[0] for row in Path("dev.csv").read_text().splitlines()[1:]]
    ours = [one.text for one in cs.transcribe("run", paths, device="cpu", batch_size=1).sounds]
    waves = [soundfile.read(path, dtype="float32") for path in paths]
    assert ours == [spoken({"raw": wave, "sampling_rate": rate})["text"] for wave, rate in waves]
    assert any(ours)
    os.mkdir("mine")
    Path("mine/vocab.json").write_text("{}")
    done = ckpt("train", "ctc.yaml", *(f"--set={one}" for one in sets), "--run", "mine")
    assert done.code == 5, done
    assert "mine/vocab.json is in the way" in done.err
    assert os.listdir("mine") == ["vocab.json"]


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_a_body_of_older_names_goes_under_a_new_head(kind: str, ckpt: Run) -> None:
    import transformers
    from safetensors.torch import save_file

    base, head = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[kind], "ForCTC"
    fields = {**SMALL, "model_type": kind, "architectures": [f"{base}{head}"], "vocab_size": 3}
    config = getattr(transformers, f"{base}Config").from_dict(fields)
    body = getattr(transformers, f"{base}Model")(config).state_dict()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    older = {}
    for key, value in body.items():
        for new, name in old.items():
            key = key.replace(new, name)
        older[key] = value.contiguous()
    assert any(key.endswith("weight_g") for key in older)
    save_file(older, "body.safetensors")
    Path("net.json").write_text(json.dumps(fields))
    Path("ctc.yaml").write_text("model: {transformers: net.json}\n")
    done = ckpt("transplant", "body.safetensors", "ctc.yaml", "-o", "out.safetensors")
    assert done.code == 0, done
    with cs.open_checkpoint("out.safetensors") as out:
        for key, value in body.items():
            assert torch.equal(out.tensor(f"{kind}.{key}"), value), key


@pytest.mark.costly
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 12_345])
def test_frames_are_counted_as_the_model_makes_them(samples: int, adapter: bool) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC(Wav2Vec2Config(**{**SMALL, "add_adapter": adapter, "adapter_stride": 2})).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, samples)).logits
    assert ConvFrontend(model).frames(samples) == logits.shape[1]
