"""Chat templates that have a name: how the makers of a format say that a conversation is written."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["TEMPLATES"]

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
"""https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}
"""
"""https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/"""

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' %}{{ '### Instruction:\\n' }}
{%- elif message['role'] == 'user_context' %}{{ '### Input:\\n' }}
{%- elif message['role'] == 'assistant' %}{{ '### Response:\\n' }}{% endif -%}
{{ message['content'] | trim + '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif -%}
"""
"""https://github.com/tatsu-lab/stanford_alpaca#data-release"""

_MISTRAL = """\
{{- bos_token -}}
{%- set system = namespace(text='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' %}{% set system.text = message['content'] + '\\n\\n' %}
{%- elif message['role'] == 'user' %}{{ ' [INST] ' + system.text + message['content'] + ' [/INST]' }}
{%- set system.text = '' %}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif -%}
{%- endfor -%}
"""
"""https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3"""

_EXAONE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif -%}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif -%}
"""
"""https://huggingface.co/LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct"""

TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL,
}  # fmt: skip

"""By their names."""
