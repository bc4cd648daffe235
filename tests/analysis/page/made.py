"""Checkpoints to make pages of, and what is asked of a page."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

HOSTILE = (
    "<script>window.broken=1</script>", "</script><script>window.broken=2</script>", '"><img src=x onerror=window.broken=3>',
    "'-window.broken-'", "<!--", "-->", "]]>", "a\x1b[31mred\x1b[0m", "b\u202egnp.weight", "\u200f\u05d0\u05d1.\u05d2",
    "{{7*7}}", "${window.broken=4}", "javascript:window.broken=5", "__proto__.polluted", "constructor.prototype.x",
    "toString", "hasOwnProperty.w", "a..b", ".", "", "..", " ", "a b", "tab\there", "line\nbreak", "\u2028sep\u2029",
    "z\u0301\u0302\u0303\u0304\u0305\u0306\u0307", "%s%n", "\U0001f600.weight", "\U0001f600.weights", "&lt;b&gt;&amp;",
    "`window.broken=6`", "\\u003cscript\\u003e", "x" * 3000, ".".join("d" * 200), "@@DATA@@", "a", "a.b", "a.b.c",
    "#frag", "length", "0", "00", "re:.*", "\ufeffbom", "null", "NaN", "carriage\rreturn",
)  # fmt: skip
"""Names that would be something else than names wherever one of them is not taken as text alone."""


def network() -> dict[str, torch.Tensor]:
    """A network with layers, ties, integers and several dtypes."""
    torch.manual_seed(0)
    layers = {}
    for number in range(12):
        layers[f"encoder.layers.{number}.attn.weight"] = torch.randn(16, 16)
        layers[f"encoder.layers.{number}.attn.bias"] = torch.zeros(16)
        layers[f"encoder.layers.{number}.norm.weight"] = torch.ones(16)
    embedding = torch.randn(40, 16)
    return {
        "embed.weight": embedding, **layers, "decoder.out.weight": embedding, "decoder.out.bias": torch.randn(40).half(),
        "steps": torch.tensor(7),
    }  # fmt: skip


def changed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network with one of each thing that can be different."""
    found = {key: value.clone() for key, value in tensors.items()}
    found["encoder.layers.3.attn.weight"] += 0.01
    found["decoder.out.bias"] = found["decoder.out.bias"].float()
    found["encoder.layers.4.attn.bias"] = torch.zeros(20)
    found["body.norm.weight"] = found.pop("encoder.layers.10.attn.weight")
    found["new.weight"] = torch.ones(3)
    del found["encoder.layers.11.norm.weight"]
    return found


def write_empty(path: str, keys: Sequence[str]) -> None:
    """Write a safetensors file of tensors of four zeros, quickly."""
    rows = {key: {"dtype": "F32", "shape": [4], "data_offsets": [16 * i, 16 * i + 16]} for i, key in enumerate(keys)}
    text = json.dumps({**rows, "__metadata__": {"<b>meta</b>": HOSTILE[1]}}).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + bytes(16 * len(keys)))


def output() -> str:
    """Write an output of ours in which something became of tensors in several ways."""
    torch.save({key: value for key, value in network().items() if key != "steps"}, "source.pth")
    tensors = changed(network())
    save_file(tensors, "like.safetensors")
    cs.init_config("like.safetensors", output="dst.yaml", force=True)
    plan = cs.transplant(
        "source.pth", "dst.yaml", map=["encoder.layers.10.attn=body.norm"], on_mismatch={"encoder": "pad"},
        reinit=["encoder.layers.0"],
    )  # fmt: skip
    cs.apply(plan, "out.safetensors", force=True)
    return "out.safetensors"


def run_with_clips() -> cs.Page:
    """The page of a run that reads texts: three clips are wrong, two of which have a sound."""
    Path("data").mkdir()
    soundfile.write("data/one.wav", [0.1] * 4000, 8000)
    soundfile.write("data/two words.flac", [0.1] * 16000, 8000)
    texts = [
        ("kitchen yellow", "pchen  yelow", "../data/one.wav"), ("ja", "", "../data/two words.flac"),
        ("", "nein", "../data/gone.wav"), ("so", "so", "../data/one.wav"),
    ]  # fmt: skip
    rows = [
        {"errors": errors, "cer": 0.5, "clip": f"dev.csv, line {n}", "reference": right, "hypothesis": read, "sound": sound, "begin_s": begin, "seconds": 0.5}
        for n, (errors, begin, (right, read, sound)) in enumerate(zip((5, 4, 2, 0), (0.0, 1.0, 0.0, 0.0), texts, strict=True))
    ]  # fmt: skip
    Path("run").mkdir()
    checks = [
        {"name": name, "status": status, "says": "", "when": "after"}
        for name, status in (("ties", "PASS"), ("loss fell", "FAIL"), ("norm", "WARN"))
    ]
    arms = [
        {"name": "warm", "frozen": True, "values": [0.2, 0.3]},
        {"name": "scratch", "frozen": True, "values": [0.9]},
    ]
    controls = {"verdict": "KNOWLEDGE", "decided_on": "frozen", "metric": "cer", "steps": 20, "seeds": 2, "arms": arms}
    result = {
        "ended": "done",
        "step": 30,
        "steps": 30,
        "metric": "cer",
        "best": 0.25,
        "best_step": 20,
        "test": {"cer": 0.375},
        "elapsed_s": 75.0,
        "controls": controls,
    }
    for name, content in (("lineage.json", {}), ("checks.json", {"checks": checks}), ("result.json", result)):
        Path("run", name).write_text(json.dumps(content))
    log = [{"step": n, "loss": 1 / n} for n in range(1, 31)] + [
        {"step": n, "dev": {"loss": 1.0, "cer": cer}} for n, cer in ((10, 0.5), (20, 0.25), (30, 0.5))
    ]
    Path("run/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    Path("run/dev.hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return cs.view("run", output="page.html")


def merge_page() -> cs.Page:
    """The page before a merge of three models by TIES, of which the second fights in one layer."""
    base = network()
    save_file({key: one.contiguous().clone() for key, one in base.items()}, "base.safetensors")
    torch.manual_seed(5)
    weights = [key for key in base if key.startswith("encoder") or key == "embed.weight"]
    common = {key: 0.1 * torch.randn_like(base[key]) for key in weights}
    for name in ("french", "german", "czech"):
        sign = {key: -1 if name == "german" and ".2.attn.weight" in key else 1 for key in weights}
        moved = {key: base[key] + sign[key] * common[key] + 0.05 * torch.randn_like(base[key]) for key in weights}
        save_file({key: one.contiguous().clone() for key, one in {**base, **moved}.items()}, f"{name}.safetensors")
    models = [f"{name}.safetensors" for name in ("french", "german", "czech")]
    return cs.view(cs.merge(models, method="ties", base="base.safetensors", density=0.3))


def opposing_page(layers: int, cosine: float = -1.0) -> cs.Page:
    """The page before a merge of two models whose changes have the same cosine in each layer."""
    base = {f"layers.{n}.weight": torch.zeros(64, 64) for n in range(layers)}
    save_file(base, "base.safetensors")
    torch.manual_seed(0)
    along = torch.linalg.qr(torch.randn(64 * 64, 2)).Q
    for name, change in (("a", along[:, 0]), ("b", cosine * along[:, 0] + (1 - cosine**2) ** 0.5 * along[:, 1])):
        save_file({key: change.reshape(64, 64).clone() for key in base}, f"{name}.safetensors")
    return cs.view(cs.merge(["a.safetensors", "b.safetensors"], method="ties", base="base.safetensors"))


def show(browser: Chrome, page: cs.Page) -> None:
    """Open a page in the browser from a file, as a user does."""
    path = Path("page.html").absolute()
    path.write_text(page.html, "utf-8")
    browser.get("about:blank")
    browser.get(path.as_uri())


def look_like(browser: Chrome, width: int, height: int, theme: str) -> None:
    """Give the browser the size of a screen and a theme, ``light`` or ``dark``."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def rows(browser: Chrome) -> list[str]:
    """The names in the rows of the tree that are drawn."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#tree .row')].sort((a, b) => a.offsetTop - b.offsetTop)"
        ".map((row) => row.querySelector('.name').textContent)"
    )
    return found


def text(browser: Chrome, css: str) -> str:
    """What an element says."""
    found: str = browser.execute_script("return document.querySelector(arguments[0]).innerText", css)
    return found


def facts(browser: Chrome, css: str = "#panel") -> dict[str, str]:
    """The names and values of the lists of facts in an element."""
    script = """
    return Object.fromEntries([...document.querySelectorAll(`${arguments[0]} dt`)].map((one) => [one.textContent,
      one.nextElementSibling.textContent]))"""
    found: dict[str, str] = browser.execute_script(script, css)
    return found


def look_for(browser: Chrome, wanted: str, *, pattern: bool = False) -> str:
    """Search for words or a pattern; returns what the page says was found."""
    script = """
    const mode = document.querySelector('#mode');
    if ((mode.getAttribute('aria-pressed') === 'true') !== arguments[1]) mode.click();
    const input = document.querySelector('#text');
    input.value = arguments[0];
    input.dispatchEvent(new Event('input'));
    return document.querySelector('#found').textContent"""
    found: str = browser.execute_script(script, wanted, pattern)
    return found


def data_of(page: cs.Page) -> dict[str, Any]:
    """The data in a page."""
    begin = page.html.index('id="data">') + len('id="data">')
    found: dict[str, Any] = json.loads(page.html[begin : page.html.index("</script>", begin)])
    return found


def keys_of(page: cs.Page) -> list[str]:
    """The keys in a page, decoded as its program does."""
    tensors, before, keys = data_of(page)["tensors"], "", []
    for shared, rest in zip(tensors["shared"], tensors["rest"], strict=True):
        units = before.encode("utf-16-le", "surrogatepass")[: 2 * shared]
        before = units.decode("utf-16-le", "surrogatepass") + rest
        keys.append(before)
    return keys
