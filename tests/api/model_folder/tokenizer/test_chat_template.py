"""Chat templates that are cut short, or for another tokeniser."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model

QWEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
BROKEN = {
    QWEN[:70]: "for in line 1 has no end",
    QWEN[:-8]: "{% in line 5 has no end",
    QWEN[: QWEN.index("['role']") + 6]: "{{ in line 1 has no end",
    "{# for people": "{# in line 1 has no end",
    "{% if a %}{% endfor %}": "endfor in line 1 has no matching start",
    "a\n{% endif %}": "endif in line 2 has no matching start",
    "{% set x %}a": "set in line 1 has no end",
    "{% generation %}a": "generation in line 1 has no end",
}
WHOLE = (
    QWEN, GEMMA, "", "{{ {'a': {'b': {}}} }}", "{% set x = '{% if %}' %}{{ \"}}\" }}{{ 'it\\'s' }}", "it's {{ a }}",
    "{% set x %}a{% endset %}{% set a.b, c = 1, 2 %}{% set (d, e) = 1, 2 %}", "{# {% if #}",
    "{% raw %}{% if {{ {% endraw %}", "{%- macro f(x) -%}{% generation %}{{ x }}{% endgeneration %}{%- endmacro -%}",
    "{% for a in b recursive %}{% if a %}{% continue %}{% elif c %}{% break %}{% else %}{% endif %}{% else %}{% endfor %}",
    "{% filter upper %}a{% endfilter %}{% call(x) f() %}{% endcall %}{%+ if a +%}{% endif %}",
)  # fmt: skip


def notes(template: str, *added: str, **settings: Any) -> list[str]:
    model("m", rows=8 + len(added))
    Path("m/added_tokens.json").write_text(json.dumps({token: 8 + row for row, token in enumerate(added)}))
    if settings:
        Path("m/tokenizer_config.json").write_text(json.dumps(settings))
    else:
        Path("m/chat_template.jinja").write_text(template)
    found = [one for one in cs.inspect("m").notes if "chat_template" in one]
    assert [one for one in cs.convert("m").notes if one in found] == found
    return found


def without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def find(name: str, *more: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", find)


@pytest.mark.costly
@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_cannot_be_parsed_is_said(template: str) -> None:
    pytest.importorskip("jinja2")
    said = f"cannot be parsed, so no chat can be formatted with it: {BROKEN[template]}"
    assert notes(template) == [f"chat_template.jinja {said}"]


def test_one_in_the_settings_is_said() -> None:
    found = notes("", chat_template=[{"name": "default", "template": QWEN[:70]}])
    assert found == [
        "chat_template of tokenizer_config.json cannot be parsed, so no chat can be formatted with it: for in line 1 has no end"
    ]


@pytest.mark.parametrize("has_jinja2", [True, False])
@pytest.mark.parametrize("template", WHOLE)
def test_a_whole_template_is_not(template: str, has_jinja2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_jinja2:
        without_jinja2(monkeypatch)
    assert notes(template) == []


def test_without_jinja2_statements_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    without_jinja2(monkeypatch)
    assert notes(QWEN[:70]) != []


@pytest.mark.parametrize("has_jinja2", [True, False])
def test_an_expression_is_not_judged(has_jinja2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the first use of the template with an error of jinja2, so that it is not silent."""
    if not has_jinja2:
        without_jinja2(monkeypatch)
    assert notes("{{ a b }}") == []


@pytest.mark.long
def test_a_whole_template_costs_no_import_of_jinja2() -> None:
    notes(QWEN)
    code = "import sys, ckptsurgeon as cs; cs.inspect('m').notes, cs.convert('m').notes; assert 'jinja2' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("template", "added", "said"),
    [
        (
            GEMMA,
            ["<|im_start|>", "<|im_end|>"],
            "'<end_of_turn>', '<start_of_turn>'; the tokeniser has '<|im_end|>', '<|im_start|>'",
        ),
        (QWEN, ["<start_of_turn>"], "'<|im_end|>', '<|im_start|>'; the tokeniser has '<start_of_turn>'"),
        (QWEN, ["<|im_start|>"], ""),
        (GEMMA, ["<start_of_turn>"], ""),
        (QWEN, ["<s>"], ""),  # trained on the texts of such tokens, as many models are
        ("<tool_call>{{ m }}", ["<|im_start|>"], ""),
    ],
)
def test_a_template_of_another_tokeniser_is_said(template: str, added: list[str], said: str) -> None:
    text = f"chat_template.jinja writes tokens that the tokeniser lacks, so that they are split into pieces: {said}"
    assert notes(template, *added) == ([text] if said else [])


def test_transformers_agrees() -> None:
    pytest.importorskip("transformers"), pytest.importorskip("jinja2")
    from transformers.utils.chat_template_utils import _compile_jinja_template as compiled

    for template in WHOLE:
        compiled(template)
    for template in BROKEN:
        with pytest.raises(Exception, match=r"(?i)template|tag|expected"):
            compiled(template)
