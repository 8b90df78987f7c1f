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
{{ ASKED }}
{%- endif -%}
{{ '<|im_end|>' ~ AFTER }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}
""",
}

# Counts the images of all messages, for the line break that NEO's training adds to a single one.
_COUNTED = """\
{%- set seen = namespace(images=0, users=0) -%}
{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{%- set seen.images = seen.images + 1 -%}
{%- endfor -%}
{%- endfor -%}
"""
_COUNTED_USERS = "{%- set seen.users = seen.users + (message['role'] == 'user') -%}"

# Renders a question as NEO's evaluation does: with one image in front, or with several, numbered (1.0) or in place.
_QUESTION = """\
{%- macro asked(content, role) -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- set state = namespace(images=0, text='', texts=[], placed='', opening='', marked='', marks='') -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{%- set state.images = state.images + 1 -%}
{%- set state.text = '<Image-' ~ state.images ~ '>' -%}
{%- set state.opening = state.opening ~ 'Image-' ~ state.images ~ ': ' ~ IMAGE ~ '\\n' -%}
{%- set state.placed = state.placed ~ IMAGE ~ '\\n' -%}
{%- set state.marks = state.marks ~ state.text -%}
{%- elif part['type'] != 'text' -%}
{{ raise_exception('this model reads text and images, no parts of type ' ~ part['type']) }}
{%- else -%}
{%- set state.text = part['text'] -%}
{%- if not loop.first and loop.previtem['type'] == 'image' and state.text[:1] == '\\n' -%}
{%- set state.text = state.text[1:] -%}
{%- endif -%}
{%- set state.texts = state.texts + [state.text] -%}
{%- set state.placed = state.placed ~ state.text -%}
{%- endif -%}
{%- set state.marked = state.marked ~ state.text -%}
{%- endfor -%}
{%- if state.images == 1 and role == 'user' -%}
{{ IMAGE ~ '\\n' ~ state.texts | join('\\n') }}
{%- elif state.images > 0 and NUMBERED -%}
{{ state.opening ~ state.marked.replace(state.marks, '') }}
{%- else -%}
{{ state.placed }}
{%- endif -%}
{%- endmacro -%}
"""
_WITHOUT_EMPTY_SYSTEM = """\
{%- elif message['role'] == 'system' and render(message['content']) == '' -%}
{{ BOS if loop.first }}
{%- else -%}
{{ BOS if"""
_ASKED_BY = {
    "internlm2_chat": "render(message['content'], stripped=true, broken=true)",
    "chatml": "render(message['content'], broken=true)",
    "neo": "render(message['content'], broken=seen.images == 1 and seen.users == 1 and message['role'] == 'user')",
    "neo_1_0": "asked(message['content'], message['role'])",
    "neo_1_5": "asked(message['content'], message['role'])",
    "gemma4": "render(message['content'], stripped=true)",
}
# Gemma 4's words for those of InternLM2.
_GEMMA = {
    "<|im_start|>": "<|turn>",
    "<|im_end|>": "<turn|>",
    "~ message['role'] ~": "~ ('model' if message['role'] == 'assistant' else message['role']) ~",
    "assistant\\n": "model\\n",
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
    name = config.template
    body = _BODIES["internlm2_chat" if name in _ASKED_BY else name].replace("TEXT_TURN", _TEXT_TURN)
    if name in ("neo_1_0", "neo_1_5"):
        body = _QUESTION + body.replace("{%- else -%}\n{{ BOS if", _WITHOUT_EMPTY_SYSTEM, 1)
    if name == "neo":
        loop = "{%- for message in messages -%}\n"
        body = _COUNTED + body.replace(loop, loop + _COUNTED_USERS, 1)
    for theirs, own in _GEMMA.items() if name == "gemma4" else ():
        body = body.replace(theirs, own)
    text: str = _CONTENT + (_SYSTEM if config.system is not None else "") + body
    names = {
        "IMAGE": json.dumps(image_token),
        "SYSTEM": json.dumps(config.system, ensure_ascii=False),
        "BOS": "bos_token" if bos else "''",
        "EOS": "eos_token",
        "GAP": "' '" if dummy_prefix else "''",
        "ASKED": _ASKED_BY.get(name, ""),
        "NUMBERED": "true" if name == "neo_1_0" else "false",
        "STRIPPED": "true" if name in ("internlm2_chat", "gemma4") else "false",
        "AFTER": "''" if name == "internlm2_chat" else r"'\n'",
    }
    return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], text).strip()
