"""Chat templates (Jinja): what `tokenizer.apply_chat_template` renders, for engines that serve an exported folder.

They give the ids of the official prompts for any conversation whose texts contain no special tokens. A special token
that a user *types* becomes that token here, because a template is text (ChatGLM2 and ChatGLM3: the bare word `sop`,
too). `sanitize_control_tokens=True` keeps it text, if cut a little otherwise than officially. Training, evaluation and
chat in this project render through `glmtune.families`, where it cannot happen.

Without a generation prompt, an assistant's last message is closed by the token that training teaches.

`{% generation %}` marks what is trained, so `return_assistant_tokens_mask=True` gives the targets of `Family.encode`
(TRL: `assistant_only_loss`). With role tokens, an answer ends with the token of the next role. ChatGLM2's earlier
answers have no end token in the text: what `Family.encode` teaches there is in its labels only, and not here.
ChatGLM-6B is trained on the last answer of a row; one that begins with a space, which its tokenizer drops, has no mark.

Tools, their calls (`tool_calls`, with arguments as objects) and results (role `tool`): ChatGLM3 and GLM-4.
"""

from __future__ import annotations

from glmtune.families import chatglm3, glm4

# ChatGLM-6B: the bare question; once there is a history, rounds from 0. `[gMASK]<sop>` comes before the last reply.
CHATGLM = """\
{%- if tools %}{{ raise_exception('ChatGLM-6B has no format for tools.') }}{% endif %}
{%- set closed = messages[-1]['role'] == 'assistant' and not add_generation_prompt %}
{%- set turns = messages[:-1] if closed else messages %}
{%- set talk = turns | rejectattr('role', 'equalto', 'system') | list %}
{%- set ns = namespace(round=-1, system='') %}
{%- for message in turns %}
  {%- set content = message['content'] or '' %}
  {%- if message['role'] == 'system' and ns.round == -1 %}
    {%- set ns.system = ns.system + content + '\\n' %}
  {%- elif message['role'] == 'user' %}
    {%- set ns.round = ns.round + 1 %}
    {%- if talk | length == 1 %}
      {{- ns.system + content }}
    {%- else %}
      {{- '[Round ' ~ ns.round ~ ']\\n问：' + ns.system + content + '\\n答：' }}
    {%- endif %}
    {%- set ns.system = '' %}
  {%- elif message['role'] == 'assistant' %}
    {{- content + '\\n' }}
  {%- else %}
    {{- raise_exception('ChatGLM-6B wants an optional system message, then user and assistant in turn.') }}
  {%- endif %}
{%- endfor %}
{%- if closed %}
  {{- '[gMASK]<sop>' }}
  {%- generation %}
    {{- (messages[-1]['content'] or '') + '<eop>' }}
  {%- endgeneration %}
{%- elif add_generation_prompt %}
  {{- '[gMASK]<sop>' }}
{%- endif %}
"""

# ChatGLM2: rounds from 1, always. The last reply is encoded apart, hence its own space in front.
CHATGLM2 = """\
{%- if tools %}{{ raise_exception('ChatGLM2-6B has no format for tools.') }}{% endif %}
{%- set closed = messages[-1]['role'] == 'assistant' and not add_generation_prompt %}
{%- set ns = namespace(round=0, system='') %}
{{- '[gMASK]sop' }}
{%- for message in (messages[:-1] if closed else messages) %}
  {%- set content = message['content'] or '' %}
  {%- if message['role'] == 'system' and ns.round == 0 %}
    {%- set ns.system = ns.system + content + '\\n' %}
  {%- elif message['role'] == 'user' %}
    {%- set ns.round = ns.round + 1 %}
    {{- '[Round ' ~ ns.round ~ ']\\n\\n问：' + ns.system + content + '\\n\\n答：' }}
    {%- set ns.system = '' %}
  {%- elif message['role'] == 'assistant' %}
    {%- if content %}
      {%- generation %}{{ content }}{% endgeneration %}
    {%- endif %}
    {{- '\\n\\n' }}
  {%- else %}
    {{- raise_exception('ChatGLM2-6B wants an optional system message, then user and assistant in turn.') }}
  {%- endif %}
{%- endfor %}
{%- if closed %}
  {%- generation %}
    {{- (' ' + messages[-1]['content'] if messages[-1]['content'] else '') + '</s>' }}
  {%- endgeneration %}
{%- endif %}
"""

# ChatGLM3 and GLM-4: an answer is its text and the token after it, which is the role of the next message, so a message
# after an answer begins without its own. A call of a tool is an answer whose first line is the tool's name.
_ROLES = """\
{{- '[gMASK]@START@' }}
@TOOLS_IN_FRONT@
{%- for message in messages %}
  {%- set content = message['content'] or '' %}
  @TOOLS_IN_SYSTEM@
  {%- set role = 'observation' if message['role'] == 'tool' else message['role'] %}
  {%- if role not in ['system', 'user', 'assistant', 'observation'] %}
    {{- raise_exception('@TITLE@ has no role ' + role) }}
  {%- endif %}
  {%- if loop.first or messages[loop.index0 - 1]['role'] != 'assistant' %}
    {{- '<|' + role + '|>' }}
  {%- endif %}
  {%- set calls = message['tool_calls'] or [] %}
  {%- set text = (message['metadata'] or '') + '\\n' + ('@PREFIX@' + content if content else '') %}
  {%- if role == 'assistant' %}
    {%- if loop.last %}
      {%- set end = '<|observation|>' if calls or message['metadata'] else '@END@' %}
      {%- set end = '<|assistant|>' if add_generation_prompt else end %}
    {%- else %}
      {%- set next = messages[loop.index0 + 1]['role'] %}
      {%- set end = '<|' + ('observation' if next == 'tool' else next) + '|>' %}
    {%- endif %}
    {%- generation %}
      {%- if content or not calls %}
        {{- text + ('<|assistant|>' if calls else '') }}
      {%- endif %}
      {%- for call in calls %}
        {%- set function = call['function'] or call %}
        {{- function['name'] + '\\n@PREFIX@' }}
        @ARGUMENTS@
        {{- '' if loop.last else '<|assistant|>' }}
      {%- endfor %}
      {{- end }}
    {%- endgeneration %}
  {%- else %}
    {{- text + ('<|assistant|>' if loop.last and add_generation_prompt else '') }}
  {%- endif %}
{%- endfor %}
"""


def _quote(text: str) -> str:
    """A string of the template language."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _fill_roles(**parts: str) -> str:
    template = _ROLES
    for name, part in parts.items():
        template = template.replace(f"@{name.upper()}@", part.strip("\n"))
    return template


# A value as Python writes it. Not the filter `format`, which other engines' template languages do not have.
_LITERAL = """\
{%- macro literal(value) -%}
  {%- if value is none -%}
    None
  {%- elif value is boolean -%}
    {{- 'True' if value else 'False' -}}
  {%- elif value is string -%}
    {%- set text = value | replace('\\\\', '\\\\\\\\') | replace('\\n', '\\\\n') -%}
    {%- set text = text | replace('\\r', '\\\\r') | replace('\\t', '\\\\t') -%}
    {%- if "'" in text and '"' not in text -%}
      {{- '"' + text + '"' -}}
    {%- else -%}
      {{- "'" + (text | replace("'", "\\\\'")) + "'" -}}
    {%- endif -%}
  {%- elif value is mapping -%}
    {{- '{' -}}
    {%- for key, item in value | items -%}
      {{- ('' if loop.first else ', ') + literal(key) + ': ' + literal(item) -}}
    {%- endfor -%}
    {{- '}' -}}
  {%- elif value is iterable -%}
    {{- '[' -}}
    {%- for item in value -%}
      {{- ('' if loop.first else ', ') + literal(item) -}}
    {%- endfor -%}
    {{- ']' -}}
  {%- else -%}
    {{- value -}}
  {%- endif -%}
{%- endmacro -%}
"""

# The first line and the content are encoded apart, hence the space in front of the content. Arguments are Python's.
CHATGLM3 = _LITERAL + _fill_roles(
    start="sop",
    end="</s>",
    title="ChatGLM3-6B",
    prefix=" ",
    tools_in_front=f"""
{{%- if tools %}}
  {{{{- '<|system|>\\n ' + {_quote(chatglm3.TOOLS_HEADING)} + (tools | tojson(indent=4)) }}}}
{{%- endif %}}
""",
    tools_in_system="""
  {%- if message['role'] == 'system' and message['tools'] %}
    {%- set content = content + '\\n' + (message['tools'] | tojson(indent=4)) %}
  {%- endif %}
""",
    arguments="""
        {%- if function['arguments'] is string %}
          {{- raise_exception('ChatGLM3-6B takes the arguments of a call as an object, not as text.') }}
        {%- endif %}
        {{- '```python\\ntool_call(' }}
        {%- for key, value in (function['arguments'] or {}) | items %}
          {{- ('' if loop.first else ', ') + key + '=' + literal(value) }}
        {%- endfor %}
        {{- ')\\n```' }}
""",
)

# As ChatGLM3, without dummy prefixes. Officially the first line and the content are encoded apart, so a content that
# itself begins with a line break is cut otherwise here ("\n\n" is one token).
GLM4 = _fill_roles(
    start="<sop>",
    end="<|endoftext|>",
    title="GLM-4",
    prefix="",
    tools_in_front=f"""
{{%- set ns = namespace(tools='') %}}
{{%- if tools %}}
  {{%- set ns.tools = {_quote(glm4.TOOLS_HEADING)} %}}
  {{%- for tool in tools %}}
    {{%- set function = tool['function'] or tool %}}
    {{%- set ns.tools = ns.tools + '\\n\\n## ' + function['name'] + '\\n\\n' + (function | tojson(indent=4)) %}}
    {{%- set ns.tools = ns.tools + {_quote(glm4.TOOL_FOOTER)} %}}
  {{%- endfor %}}
  {{%- if not messages or messages[0]['role'] != 'system' %}}
    {{{{- '<|system|>\\n' + {_quote(glm4.SYSTEM)} + ns.tools }}}}
  {{%- endif %}}
{{%- endif %}}
""",
    tools_in_system="""
  {%- if loop.first and message['role'] == 'system' %}
    {%- set content = content + ns.tools %}
  {%- endif %}
""",
    arguments="""
        {%- if function['arguments'] is string %}
          {{- function['arguments'] }}
        {%- else %}
          {{- (function['arguments'] or {}) | tojson }}
        {%- endif %}
""",
)
