"""Chat templates (Jinja): what `tokenizer.apply_chat_template` renders, for engines that serve an exported folder.

They give the ids of the official prompts for any conversation whose texts contain no special tokens. A special token
that a user *types* becomes that token here, because a template is text (ChatGLM2 and ChatGLM3: the bare word `sop`,
too). `sanitize_control_tokens=True` keeps it text, if cut a little otherwise than officially. Training, evaluation and
chat in this project render through `glmtune.families`, where it cannot happen.

Without a generation prompt, an assistant's last message is closed by the token that training teaches.
Tools: ChatGLM3 only.
"""

from __future__ import annotations

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
  {{- '[gMASK]<sop>' + (messages[-1]['content'] or '') + '<eop>' }}
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
    {{- content + '\\n\\n' }}
  {%- else %}
    {{- raise_exception('ChatGLM2-6B wants an optional system message, then user and assistant in turn.') }}
  {%- endif %}
{%- endfor %}
{%- if closed %}
  {{- (' ' + messages[-1]['content'] if messages[-1]['content'] else '') + '</s>' }}
{%- endif %}
"""

# ChatGLM3: the line with the metadata and the content are encoded apart, hence the space in front of the content.
CHATGLM3 = """\
{{- '[gMASK]sop' }}
{%- if tools %}
  {{- '<|system|>\\n Answer the following questions as best as you can. You have access to the following tools:\\n' }}
  {{- tools | tojson(indent=4) }}
{%- endif %}
{%- for message in messages %}
  {%- set content = message['content'] or '' %}
  {%- if message['role'] == 'system' and message['tools'] %}
    {%- set content = content + '\\n' + (message['tools'] | tojson(indent=4)) %}
  {%- endif %}
  {%- if message['role'] in ['system', 'user', 'assistant', 'observation'] %}
    {{- '<|' + message['role'] + '|>' + (message['metadata'] or '') + '\\n' }}
  {%- elif message['role'] == 'tool' %}
    {{- '<|observation|>\\n' }}
  {%- else %}
    {{- raise_exception('ChatGLM3-6B has no role ' + message['role']) }}
  {%- endif %}
  {{- ' ' + content if content else '' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|assistant|>' }}
{%- elif messages[-1]['role'] == 'assistant' %}
  {{- '</s>' }}
{%- endif %}
"""

# GLM-4: as ChatGLM3, without dummy prefixes. Officially the first line and the content are encoded apart, so a content
# that itself begins with a line break is cut otherwise here ("\n\n" is one token).
GLM4 = """\
{%- if tools %}{{ raise_exception('Tools are not rendered for GLM-4 yet.') }}{% endif %}
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
  {%- if message['role'] not in ['system', 'user', 'assistant', 'observation'] %}
    {{- raise_exception('GLM-4 has no role ' + message['role']) }}
  {%- endif %}
  {{- '<|' + message['role'] + '|>' + (message['metadata'] or '') + '\\n' + (message['content'] or '') }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|assistant|>' }}
{%- elif messages[-1]['role'] == 'assistant' %}
  {{- '<|endoftext|>' }}
{%- endif %}
"""
