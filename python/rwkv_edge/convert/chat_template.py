# SPDX-License-Identifier: Apache-2.0
"""What `tokenizer.chat_template` of our files says: Jinja texts, for other programs to execute.

We execute none, neither ours nor one from a file: `chat/templates.py` has the same words of its
own.
"""

from __future__ import annotations

from .._core import is_g1

OLD = "rwkv-world"  # all that older files of ours say; it is no Jinja

# A blank line would end the turn.
CLEAN = r"""
{%- macro clean(text) -%}
{%- set kept = namespace(text='') -%}
{%- for line in text.replace('\r\n', '\n').replace('\r', '\n').split('\n') if line -%}
{%- set kept.text = kept.text + ('\n' if kept.text else '') + line -%}
{%- endfor -%}
{{- kept.text | trim -}}
{%- endmacro -%}"""

WORLD = (
    # llama.cpp without Jinja knows the template by the name in the comment.
    "{#- rwkv-world -#}"
    + CLEAN
    + r"""
{%- for message in messages -%}
{%- set text = message['content'] or '' -%}
{%- if message['role'] == 'assistant' -%}
{{- 'Assistant: ' + (text | trim) + '\n\n' -}}
{%- elif message['role'] != 'system' -%}
{{- 'User: ' + clean(text) + '\n\n' -}}
{%- elif clean(text) -%}
{{- 'System: ' + clean(text) + '\n\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}"""
)

# G1 may think first, and reads no old thoughts. In its training a token joins the last ">" with
# what follows. A prompt that ended before it would fit that, but every answer would begin with ">".
G1 = WORLD.replace("(text | trim)", "(text.split('</think>')[-1] | trim)").replace(
    "{{- 'Assistant:' -}}",
    r"""{{- 'Assistant:' -}}
{%- if enable_thinking is defined -%}
{{- ' <think>' if enable_thinking else ' <think>\n</think>' -}}
{%- endif -%}""",
)

RAVEN = (
    CLEAN.lstrip()
    + r"""
{%- if not messages or messages[0]['role'] != 'system' -%}
{{- '\n' + 'OPENING' + '\n\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set text = message['content'] or '' -%}
{%- if message['role'] == 'assistant' -%}
{{- 'Alice: ' + (text | trim) + '\n\n' -}}
{%- elif message['role'] != 'system' -%}
{{- 'Bob: ' + clean(text) + '\n\n' -}}
{%- elif clean(text) -%}
{{- '\n' + clean(text) + '\n\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Alice:' -}}
{%- endif -%}""".replace(
        "OPENING",
        "The following is a conversation between Bob and his friend Alice. "
        "Alice is intelligent, friendly and knows a lot; her answers are detailed and correct.",
    )
)


def chat_template(tokenizer: str, name: str) -> str:
    """The template for a model, by the kind of its tokenizer, as GGUF has it, and by its name."""
    if tokenizer == "gpt2":  # Pile and Raven, in this list of kinds
        return RAVEN
    return G1 if is_g1(name) else WORLD
