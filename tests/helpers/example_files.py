"""What pages take to be there: repositories at addresses, a model of one's own, a toolkit that is not installed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save

import ckptsurgeon as cs
from fixtures.espnet_models import GOLDEN, layouts, trained

from .adapters import factors, peft_folder
from .espnet_stub import write_stub
from .examples import ROOT, examples
from .hub.server import Hub
from .transformers_models import WAV2VEC2, saved

__all__ = ["AT_ADDRESSES", "HERE"]

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, vocab), nn.Linear(vocab, 4)

    def forward(self, inputs):
        return self.decoder(self.encoder(inputs))
"""


def train() -> None:
    """A model, a checkpoint of it, a configuration that trains it, and the task of the page."""
    Path("my_package.py").write_text(NET)
    mine = next(one for one in examples(ROOT / "docs/train.md") if one.title == "my_task.py")
    Path(mine.title).write_text(mine.text)
    torch.manual_seed(0)
    shapes = {"encoder.weight": (8, 4), "encoder.bias": (8,), "decoder.weight": (4, 8), "decoder.bias": (4,)}
    torch.save({key: torch.randn(shape) / 2 for key, shape in shapes.items()}, "en.pth")
    section = {"task": "my_task.py:Doubling", "steps": 60, "lr": 0.05, "evaluate_every": 20, "batch_size": 8}
    Path("ru.yaml").write_text(yaml.safe_dump({"model": {"_target_": "my_package.Net", "vocab": 8}, "train": section}))


def espnet() -> None:
    """A stand-in for ESPnet, and configurations as its runs leave them."""
    write_stub(Path())
    document = yaml.safe_load((GOLDEN / "conformer.yaml").read_text())
    for language, letters in (("en", "abcdefg"), ("ru", "gfäbcöü")):
        Path("exp", language).mkdir(parents=True)
        tokens = ["<blank>", "<unk>", *letters, "<sos/eos>"]
        Path(f"exp/{language}/config.yaml").write_text(yaml.safe_dump({**document, "token_list": tokens}))
    Path("conf").mkdir()
    recipe = {name: value for name, value in document.items() if name != "use_lang_prompt"}
    Path("conf/train_asr.yaml").write_text(yaml.safe_dump({**recipe, "token_list": tokens}))
    Path("41epoch.pth").write_text("<!DOCTYPE html><html><head><title>41epoch.pth at main</title></head></html>")
    for path in GOLDEN.iterdir():
        if path.suffix not in (".json", ".yaml"):
            shutil.copy(path, path.name)


def espnet_hub(hub: Hub) -> dict[str, str]:
    """A model as ESPnet packs it, on the hub."""
    weights = io.BytesIO()
    torch.save(trained(layouts()["conformer"]), weights)
    best = "exp/asr_train_asr_raw_bpe1000/41epoch.pth"
    meta = {"espnet": "202511", "files": {"asr_model_file": best}, "yaml_files": {}}
    hub.repository("espnet/bn_openslr53", {best: weights.getvalue(), "meta.yaml": yaml.safe_dump(meta).encode()})
    return {"https://huggingface.co/": f"{hub.url}/"}


def transformers() -> None:
    """Two models of speech, with lists of letters of their own."""
    for name, letters in (("english", "abcdefghij"), ("german", "abcdefghijäöü")):
        tokens = ["<pad>", "|", *letters]
        saved(name, {**WAV2VEC2, "vocab_size": len(tokens)}, "Wav2Vec2ForCTC")
        Path(name, "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))


def fetch(hub: Hub) -> dict[str, str]:
    """A repository with a tag, an address, and one that fsspec reads."""
    import fsspec

    best = save({"encoder.weight": torch.ones(2, 2)})
    repository = hub.repository("org/repo", {"model.safetensors": best})
    repository.branches["v1.0"] = repository.main
    hub.file("best.pth", best)
    with fsspec.open("memory://bucket/runs/best.pth", "wb") as file:
        file.write(best)
    digest = hashlib.sha256(best).hexdigest()
    return {"https://example.org/": f"{hub.url}/files/", "9f86…": digest, "s3://": "memory://"}


def remote(hub: Hub) -> dict[str, str]:
    """Models at addresses, a base and an adapter of it, and a destination with room for both of a model's parts."""
    model = {f"{part}.weight": torch.ones(8, 8) for part in ("encoder", "decoder")}
    torch.save({key: value for key, value in model.items() if "encoder" in key}, "best.pth")
    best = Path("best.pth").read_bytes()
    hub.file("best.pth", best)
    hub.repository("org/net", {"best.pth": best})
    hub.repository("facebook/wav2vec2-base", {"model.safetensors": save(model)})
    hub.repository("org/base", {"model.safetensors": save(model)})
    a, b = factors(8, 8)
    peft_folder("adapter", {"encoder.lora_A.weight": a, "encoder.lora_B.weight": b})
    hub.repository("org/adapter", {path.name: path.read_bytes() for path in Path("adapter").iterdir()})
    torch.save({"encoder.weight": torch.ones(8, 8), "body.weight": torch.ones(8, 8)}, "ru.pth")
    cs.init_config("ru.pth", output="ru.yaml")
    return {"https://example.org/": f"{hub.url}/files/"}


def safety() -> None:
    """What is signed."""
    torch.save({"encoder.weight": torch.ones(2, 2)}, "best.pth")


def layouts_page() -> None:
    """Tiny networks for speech, a small Stable Diffusion, a pipeline without weights, and a gpt-oss."""
    golden = ROOT / "fixtures" / "golden"
    for name, copy in (("tiny", "base"), ("tiny-q5_1", "base-q5_1")):
        shutil.copy(golden / "whisper_cpp" / f"{name}.bin", f"ggml-{copy}.bin")
    for name, coded in (("faster-whisper", "float16"), ("faster-whisper-int8", "int8")):
        shutil.copytree(golden / "ctranslate2" / coded, name)
    saved = Path("save/CKPT+2026-03-01+12-00-00+00")
    saved.mkdir(parents=True)
    wrapped = golden / "layouts" / "wav2vec2.speechbrain" / "speechbrain.safetensors"
    torch.save(load_file(wrapped), saved / "wav2vec2.ckpt")
    (saved / "CKPT.yaml").write_text("WER: 12.5\n")
    copies = {
        "model.acc.best": "espnet-transformer/espnet-first",
        "rnn.acc.best": "espnet-rnn/espnet1",
        "valid.acc.best.pth": "espnet-s3prl/espnet-202207",
        "embedding_model.ckpt": "ecapa-tdnn/speechbrain",
    }
    for name, network in copies.items():
        torch.save(load_file(golden / "layouts" / f"{network}.safetensors"), name)
    generator = load_file(golden / "layouts" / "parallel-wavegan" / "parallel-wavegan.safetensors")
    torch.save({"model": {"generator": generator}, "steps": 400000}, "checkpoint-400000steps.pkl")
    plain = load_file(golden / "layouts" / "icefall-transducer" / "icefall-plain.safetensors")
    scales = [key.replace("embedding.weight", "embedding") + "_scale" for key in plain if not key.endswith("eps")]
    scaled = plain | {key.replace("embedding_", "embedding."): torch.tensor(0.5) for key in scales}
    torch.save({"model": scaled, "epoch": 30}, "epoch-30.pt")
    Path("original").mkdir()
    shutil.copy(golden / "layouts" / "whisper.ctranslate2" / "config.json", "original")
    shutil.copy(golden / "layouts" / "stable-diffusion" / "ldm.safetensors", "sd15.safetensors")
    components = ("unet", "vae", "text_encoder")
    for name in components:
        Path("sd15", name).mkdir(parents=True)
        Path("sd15", name, "config.json").write_text("{}")
    index = {"_class_name": "StableDiffusionPipeline", **{name: ["diffusers", "X"] for name in components}}
    Path("sd15", "model_index.json").write_text(json.dumps(index))
    for network in ("wav2vec2", "whisper", "parakeet"):
        folder = "whisper-tiny" if network == "whisper" else network
        Path(folder).mkdir()
        shutil.copy(golden / "layouts" / network / "config.json", folder)
    state = load_file(golden / "layouts" / "wav2vec2" / "fairseq.safetensors")
    torch.save({"args": None, "cfg": {"model": {}}, "model": state, "extra_state": {"epoch": 1}}, "wav2vec_ctc.pt")
    state = load_file(golden / "layouts" / "whisper" / "openai.safetensors")
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, "whisper-tiny.pt")
    weights = io.BytesIO()
    torch.save(load_file(golden / "layouts" / "parakeet" / "nemo.safetensors"), weights)
    with tarfile.open("parakeet.nemo", "w") as archive:
        for name, data in (("model_config.yaml", b"target: nemo\n"), ("model_weights.ckpt", weights.getvalue())):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    Path("mlx-model").mkdir()
    shutil.copy(golden / "layouts" / "qwen3-next" / "mlx.safetensors", "mlx-model/model.safetensors")
    shutil.copy(golden / "layouts" / "qwen3-next" / "config.json", "mlx-model")
    Path("gpt-oss-20b/original").mkdir(parents=True)
    shutil.copy(golden / "layouts" / "gpt-oss.mxfp4" / "openai.safetensors", "gpt-oss-20b/original/model.safetensors")


HERE: Mapping[str, Callable[[], None]] = {
    "docs/explanation/safety.md": safety,
    "docs/train.md": train,
    "docs/howto/espnet.md": espnet,
    "docs/howto/layouts.md": layouts_page,
    "docs/howto/transformers.md": transformers,
}
"""By page: what makes its files."""

AT_ADDRESSES: Mapping[str, Callable[[Hub], dict[str, str]]] = {
    "docs/howto/espnet.md": espnet_hub,
    "docs/howto/fetch.md": fetch,
    "docs/howto/remote.md": remote,
}
"""By page: what puts its files at addresses, and returns what stands here in place of those that nobody reaches."""
