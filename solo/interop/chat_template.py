"""The chat templates of `solo.data.text.templates` in Jinja, as Hugging Face repositories ship them.

A rendered and tokenised conversation has the token ids of training, with one exception: adjacent texts without a
special token between them are tokenised separately in training and together by Hugging Face.
"""

from __future__ import annotations

import json
import re

from solo.config import SequenceConfig

# Renders the content of a message. `unbroken` drops line breaks between a text and an image, `stripped` drops white
# space at both ends, `broken` leaves out empty texts and adds a line break after images at the start. `gap` separates a
# message that begins with text from the text before it. vLLM only keeps the positions of images if a template loops
# over the argument itself.
_CONTENT = """\
{%- macro render(content, images=true, unbroken=false, stripped=false, broken=false) -%}
{%- set state = namespace(opening=true, text='', parts=[]) -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{%- set state.parts = state.parts + [none] -%}
{%- elif part['type'] != 'text' -%}
{{ raise_exception('this model reads text and images, no parts of type ' ~ part['type']) }}
{%- else -%}
{%- set state.text = part['text'] -%}
{%- if unbroken and loop.previtem is defined and loop.previtem['type'] == 'image' -%}
{%- set state.text = state.text.lstrip('\\n') -%}
{%- endif -%}
{%- if unbroken and loop.nextitem is defined and loop.nextitem['type'] == 'image' -%}
{%- set state.text = state.text.rstrip('\\n') -%}
{%- endif -%}
{%- if stripped and loop.first -%}{%- set state.text = state.text.lstrip() -%}{%- endif -%}
{%- if stripped and loop.last -%}{%- set state.text = state.text.rstrip() -%}{%- endif -%}
{%- if state.text != '' -%}{%- set state.parts = state.parts + [state.text] -%}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- for part in state.parts -%}
{%- if broken and not loop.first -%}
{%- set state.opening = state.opening and loop.previtem is none -%}
{%- if state.opening and not (part is string and part[:1].isspace()) -%}{{ '\\n' }}{%- endif -%}
{%- endif -%}
{%- if part is string -%}{{ part }}{%- elif images -%}{{ IMAGE }}{%- endif -%}
{%- endfor -%}
{%- endmacro -%}
{%- macro gap(content, stripped=false) -%}
{%- set body = render(content, stripped=stripped) -%}
{{ GAP if body != '' and not body.startswith(IMAGE) }}
{%- endmacro -%}
{%- if tools or documents -%}
{{ raise_exception('this chat template has no place for tools and documents') }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'text'] -%}
{{ raise_exception('this chat template has no place for the role ' ~ message['role']) }}
{%- elif message['tool_calls'] is defined and message['tool_calls'] -%}
{{ raise_exception('this chat template has no place for tool_calls') }}
{%- elif message['content'] is not defined or message['content'] is none -%}
{{ raise_exception('a message has no content') }}
{%- endif -%}
{%- endfor -%}
"""

_SYSTEM = """\
{%- set roles = messages | map(attribute='role') | list -%}
{%- if SYSTEM and ('user' in roles or 'assistant' in roles) and 'system' not in roles -%}
{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}
{%- endif -%}
"""

_TEXT_TURN = "{{ BOS if loop.first }}{{ render(message['content'], unbroken=true) }}"

_BODIES = {
    "roles": """\
{%- for message in messages -%}
{%- if message['role'] == 'text' -%}
TEXT_TURN{{ EOS }}
{%- else -%}
{{ BOS if loop.first }}{{ '<|' ~ message['role'] ~ '|>' }}{{ render(message['content'], unbroken=true) }}
{{- EOS if message['role'] == 'assistant' }}
{%- endif -%}
{%- endfor -%}
{{ '<|assistant|>' if add_generation_prompt }}
""",
    "solo_pretrain": """\
{%- for message in messages -%}
{%- set last = none if loop.first else loop.previtem['content'] -%}
{%- set after_text = not loop.first and (last is string or last[-1]['type'] == 'text') -%}
{{ BOS if loop.first }}{{ gap(message['content']) if after_text }}{{ render(message['content'], unbroken=true) }}
{%- endfor -%}
""",
    "solo_chat": """\
{%- for message in messages -%}
{%- if message['role'] == 'text' -%}
TEXT_TURN{{ EOS }}
{%- elif message['role'] == 'assistant' -%}
{{ BOS if loop.first else gap(message['content']) }}{{ render(message['content'], unbroken=true) }}{{ EOS }}
{%- elif message['role'] == 'system' -%}
{{ raise_exception('this chat template has no place for a system turn') }}
{%- else -%}
{%- for part in message['content'] if message['content'] is not string and part['type'] == 'image' -%}
{{ IMAGE }}
{%- endfor -%}
{{ BOS if loop.first }}{{ '[INST] ' }}{{ render(message['content'], images=false, unbroken=true) }}{{ ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
""",
    "internlm2_chat": """\
{%- for message in messages -%}
{%- if message['role'] == 'text' -%}
TEXT_TURN{{ EOS }}
{%- else -%}
{{ BOS if loop.first }}{{ '<|im_start|>' ~ message['role'] ~ '\\n' }}
{%- if message['role'] == 'assistant' -%}
{{ gap(message['content'], STRIPPED) }}{{ render(message['content'], stripped=STRIPPED) }}
{%- else -%}
{{ render(message['content'], stripped=STRIPPED, broken=true) }}
{%- endif -%}
{{ '<|im_end|>' ~ AFTER }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}
""",
}


def chat_template(config: SequenceConfig, image_token: str, bos: bool, dummy_prefix: bool) -> str:
    """Returns the content of `chat_template.jinja`.

    Args:
        config: has the name of the template and a system turn for conversations without one.
        image_token: placeholder of an image.
        bos: whether the tokenizer has a token that begins a text.
        dummy_prefix: whether the tokenizer begins every text with a space. A space then separates texts that were
            tokenised separately in training, and their ids are the same.
    """
    chatml = config.template == "chatml"
    body = _BODIES["internlm2_chat" if chatml else config.template].replace("TEXT_TURN", _TEXT_TURN)
    text: str = _CONTENT + (_SYSTEM if config.system is not None else "") + body
    names = {
        "IMAGE": json.dumps(image_token),
        "SYSTEM": json.dumps(config.system, ensure_ascii=False),
        "BOS": "bos_token" if bos else "''",
        "EOS": "eos_token",
        "GAP": "' '" if dummy_prefix else "''",
        "STRIPPED": "false" if chatml else "true",
        "AFTER": r"'\n'" if chatml else "''",
    }
    return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], text).strip()
