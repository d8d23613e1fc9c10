"""Chat templates as users see them: a model folder in, text out.

The five templates are published by models, with tool use removed. If transformers is installed, its renderer is compared on
these, and on every template that TRL ships, if TRL is installed too:

    trl/bin/python -m pytest tests/checkpoint/test_chat_template.py
"""

import importlib.util
import json
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from r1mini import checkpoint, records
from r1mini.checkpoint.chat_template import ChatTemplate, load_chat_template

QWEN25 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
          or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
          message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n'
                + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA31 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
R1_DISTILL = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
SOURCES = {
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "llama3.1": LLAMA31,
    "mistral": MISTRAL,
    "r1-distill": R1_DISTILL,
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def talk(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": content} for role, content in zip(roles, contents)]


def published(name):
    return ChatTemplate(name, SOURCES[name], SPECIAL)


CHATS = {
    "one": talk("1 < 2 & ü?"),
    "system": talk(" Hi\n", system="Be brief. "),
    "turns": talk("a", "<think>\nwhy\n</think>\n\nA", "b"),
    "answered": talk("a", "<think>\nwhy\n</think>\n\nA", "b", "<think>\nhow\n</think>\n\nB"),
    "bare": talk("a", "A", "b", "B"),
}
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
DATE = "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@pytest.mark.parametrize(
    "name, chat, expected",
    [
        (
            "qwen2.5",
            "one",
            QWEN + "<|im_start|>user\n1 < 2 & ü?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "qwen2.5",
            "system",
            "<|im_start|>system\nBe brief. <|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "qwen3",
            "turns",
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "llama3.1",
            "system",
            DATE + "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "bare", "<s>[INST] a [/INST]A</s>[INST] b [/INST]B</s>"),
        ("r1-distill", "one", "<s><｜User｜>1 < 2 & ü?<｜Assistant｜><think>\n"),
        (
            "r1-distill",
            "turns",
            "<s><｜User｜>a<｜Assistant｜>\n\nA<｜end▁of▁sentence｜><｜User｜>b<｜Assistant｜><think>\n",
        ),
    ],
)
def test_published_templates_render_as_expected(name, chat, expected):
    assert published(name).render(CHATS[chat]) == expected


def render_by_transformers(source, chat, generate):
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return render_jinja_template(
            [chat], chat_template=source, add_generation_prompt=generate, **SPECIAL
        )[0][0]
    except Exception as error:
        return type(error).__name__


def trl_templates():
    spec = importlib.util.find_spec("trl")
    return sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja")) if spec else []


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
@pytest.mark.parametrize(
    "source",
    [*SOURCES.values(), *(path.read_text(encoding="utf-8") for path in trl_templates())],
    ids=[*SOURCES, *(path.stem for path in trl_templates())],
)
def test_renders_like_transformers(source):
    for chat in CHATS.values():
        for generate in (True, False):
            try:
                ours = ChatTemplate("t", source, SPECIAL).render(chat, generate)
            except ValueError as error:
                ours = str(error).rpartition("(")[2].rstrip(")")
            assert ours == render_by_transformers(source, chat, generate)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<ü>"}]'),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "<ü>"\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}\n{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}b", "a1b"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ bos_token }}{{ pad_token }}{{ tools is none }}{{ documents is none }}", "<s>TrueTrue"),
        ("{{ strftime_now('%Y') }}", time.strftime("%Y")),
        ("{{ messages[0].content }}", "<ü>"),
    ],
)
def test_features_that_templates_can_use(source, expected):
    assert ChatTemplate("t", source, SPECIAL).render(talk("<ü>")) == expected


# -- targets of fine-tuning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, chat, learned",
    [
        (
            "qwen2.5",
            "answered",
            ["<think>\nwhy\n</think>\n\nA<|im_end|>", "<think>\nhow\n</think>\n\nB<|im_end|>"],
        ),
        ("qwen3", "bare", ["<think>\n\n</think>\n\nB<|im_end|>"]),
        ("llama3.1", "bare", ["A<|eot_id|>", "B<|eot_id|>"]),
        ("mistral", "bare", ["A</s>", "B</s>"]),
        (
            "r1-distill",
            "bare",
            ["A<｜end▁of▁sentence｜>", "B<｜end▁of▁sentence｜>"],
        ),  # none of them has thinking
        ("r1-distill", "answered", ["how\n</think>\n\nB<｜end▁of▁sentence｜>"]),
        ("qwen3", "answered", ["<think>\nhow\n</think>\n\nB<|im_end|>"]),
    ],
)
def test_only_assistant_turns_and_their_end_tokens_are_targets(name, chat, learned):
    segments = published(name).segments(CHATS[chat])
    assert [text for text, learns in segments if learns] == learned
    for number, (_, learns) in enumerate(
        segments
    ):  # each follows the text that the model sees when it generates it
        if learns:
            before = "".join(text for text, _ in segments[:number])
            seen = [published(name).render(CHATS[chat][:i]) for i in (1, 3)]
            assert before in seen or before in [text.removesuffix("<think>\n") for text in seen]
    if len(learned) == 2:
        assert "".join(text for text, _ in segments) == published(name).render(CHATS[chat], False)


def test_thinking_of_the_last_turn_is_a_target_after_the_opened_tag():
    """R1-Distill's own rendering of the turn would drop its thinking."""
    for content in (
        "<think>\nhow\n</think>\n\nB",
        "<think>how\n</think>\n\nB",
        "how\n</think>\n\nB",
    ):
        assert published("r1-distill").segments(talk("a", "x</think>A", "b", content)) == [
            (
                "<s><｜User｜>a<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>b<｜Assistant｜><think>\n",
                False,
            ),
            ("how\n</think>\n\nB<｜end▁of▁sentence｜>", True),
        ]


def test_text_after_the_end_of_a_turn_is_not_a_target():
    assert published("qwen2.5").segments(talk("a", "A"))[1:] == [
        ("A<|im_end|>", True),
        ("\n", False),
    ]


def test_later_user_turns_are_not_targets():
    assert published("mistral").segments(talk("a", "A", "b")) == [
        ("<s>[INST] a [/INST]", False),
        ("A</s>", True),
        ("[INST] b [/INST]", False),
    ]
    thought = published("r1-distill").segments(
        talk("a", "why</think>A", "b")
    )  # the third turn rewrites the second
    assert thought == [
        ("<s><｜User｜>a<｜Assistant｜><think>\n", False),
        ("why</think>A<｜end▁of▁sentence｜>", True),
    ]
    assert published("mistral").segments(talk("a")) == [("<s>[INST] a [/INST]", False)]


def test_turn_without_an_end_is_refused_naming_the_template():
    with pytest.raises(ValueError, match="chat template endless: does not end"):
        ChatTemplate("endless", "{% for m in messages %}{{ m.content }}{% endfor %}", {}).segments(
            talk("a", "A")
        )


@pytest.mark.parametrize(
    "name, think_prefix", [("r1-distill", "<think>\n"), ("qwen3", ""), ("llama3.1", "")]
)
def test_prompt_may_open_the_thinking(name, think_prefix):
    assert records.think_prefix(published(name).render(talk("x"))) == think_prefix


# -- reasoning, weights and ends of messages ---------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(**fields):
    return ChatTemplate("chatml", CHATML, {"eos_token": "<|endoftext|>"}, **fields)


def reads(name, before="[THINK]", after="[/THINK]"):
    """A template that shows the reasoning of a message under one name."""
    thinking = "{% if m." + name + " %}" + before + "{{ m." + name + " }}" + after + "{% endif %}"
    return ChatTemplate(
        name, CHATML.replace("{{ m.role + '\n' + ", "{{ m.role }}\n" + thinking + "{{ "), {}
    )


def thinking(content, reasoning="2+2 is 4", **fields):
    return [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": content, "reasoning_content": reasoning, **fields},
    ]


def learned(template, messages, num_prompt=0):
    return [text for text, learns in template.segments(messages, num_prompt) if learns]


@pytest.mark.parametrize(
    "template, expected",
    [
        (chatml(), "<think>2+2 is 4</think>4<|im_end|>"),
        (published("qwen2.5"), "<think>2+2 is 4</think>4<|im_end|>"),
        (published("qwen3"), "<think>\n2+2 is 4\n</think>\n\n4<|im_end|>"),
        (published("r1-distill"), "2+2 is 4</think>4<｜end▁of▁sentence｜>"),  # the prompt opens it
        (published("mistral"), "<think>2+2 is 4</think>4</s>"),
        (load_chat_template("base"), "<think>2+2 is 4</think>4<|endoftext|>"),
        *(
            (reads(name), "[THINK]2+2 is 4[/THINK]4<|im_end|>")
            for name in ("reasoning_content", "thinking", "reasoning")
        ),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_reasoning_is_learned_as_the_template_has_it_or_in_think_tags(template, expected):
    assert learned(template, thinking("4")) == [expected]
    followed = [*thinking("4"), *thinking("5", "one more")]
    assert "one more" in learned(template, followed)[-1]
    without = learned(template, talk("2+2?", "4"))
    assert "2+2 is 4" not in without[0] and without[0].endswith(expected[-5:])


@pytest.mark.parametrize("content", ["<think>2+2 is 4</think>4", "<think>\n2+2 is 4</think>4"])
def test_thinking_is_learned_behind_the_tag_that_a_sample_begins_with(content):
    """The template opens it, and knows no name for reasoning."""
    opens = ChatTemplate("opens", CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"), {})
    assert opens.render(talk("2+2?")).endswith("assistant\n<think>\n")
    for messages in (talk("2+2?", content), thinking("4")):
        (prompt, _), (reply, _) = opens.segments(messages)[:2]
        assert prompt == opens.render(messages[:1]) and reply == "2+2 is 4</think>4<|im_end|>"
    assert learned(opens, talk("2+2?", "4")) == ["4<|im_end|>"]


def test_reasoning_that_the_template_drops_is_refused():
    """It shows the reasoning of a first turn only."""
    source = (
        "{% for m in messages %}{{ m.role }}:{% if loop.index < 3 %}{{ m.thinking }}{% endif %}"
        "{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    first = ChatTemplate("first", source, {})
    assert learned(first, thinking("4")) == ["2+2 is 44<e>"]
    with pytest.raises(ValueError, match="template first: drops the reasoning of a turn, '2.2 is"):
        first.segments([*thinking("4"), *thinking("4")])


def test_turns_of_weight_0_are_not_learned():
    chat = talk("a", "A", "b", "B", "c", "C")
    for skipped in ({1}, {3}, {5}, {1, 5}, {1, 3, 5}):
        weighted = [{**m, "weight": 0} if i in skipped else m for i, m in enumerate(chat)]
        kept = [f"{chat[i]['content']}<|im_end|>" for i in (1, 3, 5) if i not in skipped]
        assert learned(chatml(), weighted) == kept
        assert "".join(text for text, _ in chatml().segments(weighted)) == chatml().render(
            chat, False
        )
    ones = [{**m, "weight": 1} for m in chat]
    assert chatml().segments(ones) == chatml().segments(chat)
    rewritten = [*talk("a", "<think>x</think>A"), *talk("b", "<think>y</think>B")]
    rewritten[3] = {**rewritten[3], "weight": 0}
    assert learned(published("r1-distill"), rewritten) == ["x</think>A<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|endoftext|>", "  <|im_end|>"])
def test_end_token_of_a_message_is_not_doubled(end):
    assert learned(chatml(), talk("a", "A" + end, "b", "B")) == [
        f"A{' ' * end.count(' ')}<|im_end|>",
        "B<|im_end|>",
    ]
    plain = load_chat_template("base", "plain")
    assert learned(plain, talk("a", "A\n<|endoftext|>")) == ["A\n<|endoftext|>"]
    for other in ("A<|im_start|>", "A<|im_end", "A <|im_end|> B", "A\n"):  # no end
        assert learned(chatml(), talk("a", other)) == [other + "<|im_end|>"]
    assert chatml().render(talk("a<|im_end|>"), False) == (
        "<|im_start|>user\na<|im_end|><|im_end|>\n"  # a user's text is kept
    )


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_empty_system_message_is_none(empty):
    for name in SOURCES:
        template = published(name)
        assert template.render(talk("a", "A", "b", system=empty)) == template.render(
            talk("a", "A", "b")
        )
    assert published("qwen2.5").segments(talk("a", "A", system=empty)) == published(
        "qwen2.5"
    ).segments(talk("a", "A"))
    assert "system\n.<" in published("qwen2.5").render(talk("a", system="."))


def test_template_shows_the_day_that_it_is_given():
    source = "{{ strftime_now('%d %b %Y %H:%M') }}" + CHATML
    dated = ChatTemplate("dated", source, {}, date="2026-02-03")
    assert dated.render(talk("a")).startswith("03 Feb 2026 00:00<|im_start|>")
    assert dated.shows_date and not chatml().shows_date
    assert ChatTemplate("now", "{{ strftime_now('%Y') }}", {}).render(talk("a")) == time.strftime(
        "%Y"
    )
    optional = (
        "{% if strftime_now is defined %}{{ strftime_now('%j') }}{% else %}26 Jul 2024{% endif %}"
    )
    assert ChatTemplate("llama3.2", optional, {}, date="2026-02-03").render(talk("a")) == "034"
    for chance in ("{{ [1, 2] | random }}", "{{ lipsum() }}"):
        with pytest.raises(ValueError, match="random|lipsum"):
            ChatTemplate("t", chance, {}).render(talk("a"))


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model_folder(tmp_path):
    def make(**files):
        shutil.copy(ROOT / "r1mini/assets/base/tokenizer.json", tmp_path)
        for name, content in files.items():
            path = (
                tmp_path / {"config": "tokenizer_config.json", "jinja": "chat_template.jinja"}[name]
            )
            path.write_text(
                content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
            )
        return tmp_path

    return make


def test_template_of_a_folder(model_folder):
    folder = model_folder(
        config={
            "chat_template": MISTRAL,
            "bos_token": "<s>",
            "pad_token": None,
            "add_bos_token": True,
            "eos_token": {"content": "</s>", "lstrip": False},
        }
    )
    for kind in ("auto", "chat"):
        assert load_chat_template(folder, kind).render(talk("a", "A")) == "<s>[INST] a [/INST]A</s>"
    assert load_chat_template(folder, "plain").segments(talk("a", "A")) == [
        ("a\n", False),
        ("A</s>", True),
    ]


def test_named_templates_and_a_template_file(model_folder):
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ bos_token }}named"},
    ]
    folder = model_folder(config={"chat_template": named, "bos_token": "<s>"})
    assert load_chat_template(folder).render(talk("a")) == "<s>named"
    assert (
        load_chat_template(model_folder(jinja="{{ bos_token }}file ü")).render(talk("a"))
        == "<s>file ü"
    )  # where newer models keep it


def test_embedded_models_have_no_chat_template(model_folder):
    assert load_chat_template("base") == load_chat_template(model_folder(), "auto")
    assert load_chat_template("base").source == load_chat_template("base", "plain").source
    with pytest.raises(
        ValueError, match="--template chat: .*base has no template in tokenizer_config.json"
    ):
        load_chat_template("base", "chat")


@pytest.mark.parametrize(
    "files, kind, names",
    [
        ({}, "chta", "--template chta: not one of auto, chat, r1-zero, plain"),
        (
            {"config": {"chat_template": 7}},
            "auto",
            "tokenizer_config.json: the chat template is neither text",
        ),
        (
            {"config": {"chat_template": [{"name": "rag", "template": "x"}]}},
            "chat",
            "a list with a default",
        ),
        ({"config": "{"}, "auto", "tokenizer_config.json: not valid JSON"),
        (
            {"jinja": "x" * 100_001},
            "chat",
            "chat_template.jinja: the chat template is neither text of at most 100000",
        ),
    ],
)
def test_bad_template_is_refused_naming_its_file(model_folder, files, kind, names):
    with pytest.raises(ValueError, match=names):
        load_chat_template(model_folder(**files), kind)


@pytest.mark.parametrize(
    "kind, config, kept",
    [
        ("auto", {}, False),
        ("plain", {}, True),
        ("r1-zero", {}, True),
        ("chat", {"chat_template": MISTRAL}, False),
    ],
)
def test_model_trained_with_another_template_is_saved_with_it(
    model_folder, tmp_path, kind, config, kept
):
    folder = model_folder(config={"eos_token": "<|endoftext|>", **config})
    chat_template = load_chat_template(folder, kind)
    tokenizer = chat_template.adapt_tokenizer(checkpoint.load_tokenizer("base"))
    assert ("chat_template.jinja" in tokenizer.files) == kept
    if kept:
        (folder / "chat_template.jinja").write_bytes(tokenizer.files["chat_template.jinja"])
        assert load_chat_template(folder).render(talk("a", "A", "b")) == chat_template.render(
            talk("a", "A", "b")
        )


def test_prompt_continues_an_unfinished_assistant_turn():
    chat_template = ChatTemplate("qwen", QWEN25, SPECIAL)
    text = chat_template.render_prompt(talk("a", " Let me see.\n<think>"))
    assert text.endswith("<|im_start|>assistant\nLet me see.\n<think>") or text.endswith(
        " Let me see.\n<think>"
    )
    assert chat_template.render_prompt(talk("a")) == chat_template.render(talk("a"))
    with pytest.raises(
        ValueError, match="chat template x: drops the message that the assistant continues, 'A'"
    ):
        ChatTemplate("x", "{{ messages[0].content }}", {}).render_prompt(talk("a", "A"))


def test_plain_template_leaves_text_unchanged():
    plain = load_chat_template("base", "plain")
    assert plain.render(talk("Make 24.")) == plain.render(talk("Make 24.\n")) == "Make 24.\n"
    assert plain.render(talk("a", "A", "b", system="s")) == "s\na\nA<|endoftext|>b\n"
    assert plain.segments(talk("a", " A\n")) == [("a\n", False), (" A\n<|endoftext|>", True)]


def test_plain_turn_ends_with_the_models_stop_token():
    tokenizer = checkpoint.load_tokenizer("base")
    assert tokenizer.encode(load_chat_template("base").end_of_turn) == [tokenizer.eos_id]


def test_r1_zeros_template():
    zero = load_chat_template("base", "r1-zero")
    text = zero.render(talk("What is 1+1?\n"))
    assert text.startswith(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it."
    )
    assert text.endswith("<answer> answer here </answer>. User: What is 1+1?. Assistant:")
    assert zero.segments(talk("a", " <think> 1 </think>", "b", " 2"))[1:] == [
        (" <think> 1 </think><|endoftext|>", True),
        (" User: b. Assistant:", False),
        (" 2<|endoftext|>", True),
    ]
    with pytest.raises(
        ValueError, match="chat template r1-zero: no place for a message of role system"
    ):
        zero.render(talk("a", system="s"))


# -- bad templates and messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"content": "a"}, {"role": "user", "content": ["a"]}, "a", None]
)
def test_message_without_text_is_an_error(message):
    with pytest.raises(ValueError, match="message 2 of 2: no text in '(role|content)'"):
        load_chat_template("base").render([*talk("a"), message])


HOSTILE = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{% set x = 3 ** (10 ** 8) %}",  # jinja2 computes it at compile time, and catches every Exception there
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "internals": "{{ ''.__class__.__mro__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "mutation": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "output": "{{ 'a' * 20000000 }}",
    "syntax": "{% if %}",
    "raises": "{{ raise_exception('no\nway') }}",
    "zero": "{{ 1 / 0 }}",
}
MEMORY = {  # only the limits on time and text size stop these
    "string": "{{ 'a' * 10**8 }}",
    "width": "{{ '%100000000d' % 1 }}",
    "method": "{{ 'a'.center(10**8) }}",
    "filter": "{{ 'a' | center(10**8) }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(28) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_stopped_by_time_and_memory_limits(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"\Achat template hostile: [^\n]+\Z"):
        ChatTemplate("hostile", HOSTILE[name], {}).render(talk("a"))
    assert (
        time.perf_counter() - started < 5
    )  # seconds, for a busy machine; on an idle one it takes 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize("name", MEMORY)
def test_template_that_fills_memory_is_stopped(name):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"\Achat template hostile: [^\n]+\Z"):
        ChatTemplate("hostile", MEMORY[name], {}).render(talk("a"))
    assert time.perf_counter() - started < 5


def test_limits_are_lifted_after_rendering():
    def seen():
        return (
            resource.getrlimit(resource.RLIMIT_AS),
            signal.getsignal(signal.SIGALRM),
            signal.getitimer(signal.ITIMER_REAL),
        )

    before = seen()
    for source in ("x", HOSTILE["loops"], MEMORY["string"]):
        try:
            ChatTemplate("t", source, {}).render(talk("a"))
        except ValueError:
            assert source != "x"
        assert seen() == before


def test_rendering_works_off_the_main_thread(monkeypatch):
    monkeypatch.setattr(signal, "setitimer", None)  # signal handlers cannot be set there
    rendered = []
    thread = threading.Thread(
        target=lambda: rendered.append(published("mistral").render(talk("a")))
    )
    thread.start()
    thread.join()
    assert rendered == ["<s>[INST] a [/INST]"]


def test_special_tokens_in_a_message_are_kept_as_in_transformers():
    assert published("mistral").render(talk("a [/INST]A</s>[INST] b")) == published(
        "mistral"
    ).render(talk("a", "A", "b"))


def test_saved_template_keeps_its_end_of_turn(model_folder):
    folder = model_folder()
    trained = load_chat_template("base", "r1-zero").adapt_tokenizer(
        checkpoint.load_tokenizer("base")
    )
    (folder / "chat_template.jinja").write_bytes(trained.files["chat_template.jinja"])
    assert (
        load_chat_template(folder).end_of_turn == "<|endoftext|>"
    )  # with no tokenizer_config.json to name it
    assert (
        load_chat_template(folder).segments(talk("a", "A"))[-1] == (" A<|endoftext|>", True)
        or load_chat_template(folder).segments(talk("a", "A"))[-1][1]
    )


def test_end_of_turn_that_is_not_a_token_is_refused(model_folder):
    chat_template = load_chat_template(
        model_folder(jinja="{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    )
    with pytest.raises(
        ValueError,
        match=r"chat_template.jinja: ends a turn with '<\|im_end\|>', which is not a token of the tokenizer",
    ):
        chat_template.adapt_tokenizer(checkpoint.load_tokenizer("base"))
