"""Small chat templates, one per family, with the features of the real ones that matter here."""

from __future__ import annotations

from services.worker.chat.renderer import Renderer
from services.worker.chat.rendering import TemplateSetup
from services.worker.chat.template import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Tools in the system message, calls as JSON in tags, reasoning in <think> tags, and an empty reasoning block if thinking is off.
HERMES = """\
{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' }}<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools><|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role != 'system' or not tools %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content.strip('\\n') }}
</think>

{% endif %}{{ m.content.lstrip('\\n') }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

QWEN_CODER = HERMES.replace(
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}',
    "<function={{ call.function.name }}>{% for key, value in call.function.arguments | items %}"
    "<parameter={{ key }}>\n{{ value }}\n</parameter>{% endfor %}</function>",
)

#: Tools before the first question, arguments named `parameters`, at most one call per message.
LLAMA3 = """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
{%- if loop.first and tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{% endif %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}{{ m.tool_calls[0].function.arguments | tojson }}}
{%- else %}{{ m.content | trim }}{% endif %}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

#: Alternating roles, ids of nine characters, no system message.
MISTRAL = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'assistant' and m.tool_calls %}[TOOL_CALLS][
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{{- {"name": call.function.name, "arguments": call.function.arguments, "id": call.id} | tojson }}{{ ', ' if not loop.last }}
{%- endfor %}]{{ eos_token }}
{%- elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}
{%- elif m.role == 'tool' %}[TOOL_RESULTS]{"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}
{%- endfor %}"""

MISTRAL_ARGS = """\
{%- for m in messages %}
{%- if m.role == 'user' %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS][INST]{{ m.content }}[/INST]
{%- else %}{{ m.content }}{% for call in m.tool_calls or [] %}
{%- set arguments = call.function.arguments %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (arguments if arguments is string else arguments | tojson) }}
{%- endfor %}{{ eos_token }}
{%- endif %}
{%- endfor %}"""

#: Arguments must be a string, because the template concatenates them. The prompt opens the reasoning, and earlier turns lose
#: theirs.
DEEPSEEK_V31 = """\
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- elif m.tool_calls %}<｜Assistant｜>{{ m.content }}<｜tool▁calls▁begin｜>
{%- for call in m.tool_calls %}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜>' }}
{%- endfor %}<｜tool▁calls▁end｜>{{ eos_token }}
{%- elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>
{%- else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}{% endif %}"""

#: A message with calls must have no content, and its arguments are in a code fence.
DEEPSEEK_V3 = """\
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- elif m.role == 'assistant' and m.content is none %}<｜Assistant｜><｜tool▁calls▁begin｜>
{%- for call in m.tool_calls %}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}<｜tool▁calls▁end｜>
{%- elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<｜Assistant｜><think>\\n{% endif %}"""

HARMONY = """\
{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort | default('medium') + '<|end|>' }}
{%- if tools %}<|start|>developer<|message|>{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|end|>{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- if m.content and m.thinking %}{{ raise_exception('Cannot pass both content and thinking!') }}{% endif %}
{%- if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}{{ call.arguments | tojson }}<|call|>
{%- elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
{%- elif m.role == 'tool' %}{{ '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

#: Tool results belong to the message with the calls.
GEMMA4 = """\
{%- macro value(v) %}{{ '<|"|>' ~ v ~ '<|"|>' if v is string else v }}{% endmacro %}
{{- bos_token }}
{%- if tools %}<|turn>system
{% for tool in tools %}<|tool>declaration:{{ tool.function.name }}<tool|>{% endfor %}<turn|>
{% endif %}
{%- for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{% for call in m.tool_calls or [] %}<|tool_call>call:{{ call.function.name }}{
{%- for k, v in call.function.arguments | dictsort %}{{ k }}:{{ value(v) }}{% endfor %}}<tool_call|>{% endfor %}
{%- for r in m.tool_responses or [] %}<|tool_response>response:{{ r.name }}{value:{{ value(r.response) }}}<tool_response|>{% endfor %}
{{- m.content }}{% if not m.tool_responses %}<turn|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|turn>model
{% if not enable_thinking %}<|channel>thought
<channel|>{% endif %}{% endif %}"""

FUNCTION_GEMMA = """\
{%- for tool in tools or [] %}<start_function_declaration>declaration:{{ tool.function.name }}<end_function_declaration>{% endfor %}
{%- for m in messages %}<start_of_turn>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<start_function_call>call:{{ call.function.name }}{
{%- for k, v in call.function.arguments | items %}{{ k }}:<escape>{{ v }}<escape>{% endfor %}}<end_function_call>{% endfor %}<end_of_turn>
{% endfor %}"""

#: By family name.
TEMPLATES = {
    "hermes": HERMES,
    "qwen-coder": QWEN_CODER,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral-args": MISTRAL_ARGS,
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3.1": DEEPSEEK_V31,
    "harmony": HARMONY,
    "gemma4": GEMMA4,
    "function-gemma": FUNCTION_GEMMA,
    "generic": CHATML,
}


def template_of(source: str, *, bos_text: str = "", eos_text: str = "", control_texts: tuple[str, ...] = ()) -> ChatTemplate:
    """Renders in this process."""
    return ChatTemplate(source, Renderer(TemplateSetup(source, bos_text, eos_text, control_texts)))
