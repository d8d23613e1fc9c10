"""Chat templates: turn messages into the text that the model sees, and mark what to learn.

Renders like `apply_chat_template` of Hugging Face's transformers. The text contains its special
tokens, so encode it without adding any (`Tokenizer.encode`), or BOS appears twice. As in
transformers, special tokens inside a message take effect: a typed `<|im_end|>` ends the turn.
Filter the messages of untrusted users first.

A template comes with the weights and is not trusted. jinja2's sandbox keeps it from Python's
internals and from side effects; a render of over a second or 10 million characters is an error.
Memory is not bounded. A single call into C that takes minutes (searching megabytes that the
template built) ends the process, and off the main thread there is no time limit.

Reasoning of a message (`reasoning_content`) is where the template has it, or else stands before the
content, as `<think>…</think>`. Left out: tools, documents, content other than text, variables such
as Qwen3's `enable_thinking`.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1mini.checkpoint import load_tokenizer, resolve
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.infra.files import read_json
from r1mini.infra.timeout import TimedOut, time_limit
from r1mini.records import think_prefix

MAX_SECONDS = 1.0
MAX_CHARACTERS = 10_000_000  # of a rendered text
MAX_SOURCE = 100_000  # characters of a template; the longest real one has 20,000
REASONING = ("reasoning_content", "thinking", "reasoning")  # its names in messages and templates
Message = Mapping[str, Any]
Messages = Sequence[Message]

# [R1 §2.2, Table 1], where the question replaces "prompt". No space follows "Assistant:", because
# the model writes it.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>."
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %} Assistant:{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'user' %} User: {{ m.content | trim }}."
    "{% else %}{{ raise_exception('no place for a message of role ' ~ m.role) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} Assistant:{% endif %}"
)
# The messages' text alone. A prompt ends with a newline, like all prompts of the embedded models.
PLAIN = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% elif not m.content.endswith('\n') %}{{ '\n' }}{% endif %}{% endfor %}"
)
BUILT_IN = {"r1-zero": R1_ZERO, "plain": PLAIN}
KINDS = ("auto", "chat", *BUILT_IN)


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; ignored here."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def tojson(value, ensure_ascii=False, **options) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja2's escapes <, > and &


ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
ENVIRONMENT.filters["tojson"] = tojson
ENVIRONMENT.globals["raise_exception"] = raise_exception
del ENVIRONMENT.filters["random"], ENVIRONMENT.globals["lipsum"]  # a text depends on no chance


def is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def squeezed(text: str) -> str:
    return "".join(text.split())


@dataclass(frozen=True)
class ChatTemplate:
    """A template, its name for errors, and the special tokens by name (`eos_token`, ...)."""

    name: str
    source: str
    special_tokens: Mapping[str, str]
    saved: bool = False  # with a model that is trained with it
    wraps_text: bool = False  # True: a string prompt becomes a message; False: used as it is
    date: str = ""  # of `strftime_now`, as YYYY-MM-DD; "": the present

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """A copy that also stops where this template ends a turn, and that saves the template.

        The model's files may not name that token: Qwen2.5's base models stop at <|endoftext|>,
        their template at <|im_end|>. ValueError if the end of a turn is not a token.
        """
        adapted = copy.copy(tokenizer)
        if end := self.end_of_turn.strip():
            end_id = tokenizer.backend.token_to_id(end)
            if end_id is None:
                raise self._error(
                    f"ends a turn with {end!r}, which is not a token of the tokenizer"
                )
            adapted.stop_ids |= {end_id}
        if self.saved:
            adapted.files = {**adapted.files, "chat_template.jinja": self.source.encode()}
        return adapted

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The text up to where the assistant's next turn begins, or to the end of the last message.

        ValueError naming the template and what is wrong with it or with the messages.
        """
        for number, message in enumerate(messages, 1):
            for key in ("role", "content"):
                if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                    raise ValueError(f"message {number} of {len(messages)}: no text in {key!r}")
        return self._render(
            [self._prepared(message) for message in messages], add_generation_prompt
        )

    def _prepared(self, message: Message) -> Message:
        """A message with its reasoning where the template reads it, and without an end token: the
        template adds one."""
        message = dict(message)
        if message["role"] != "assistant":
            return message
        for end in (self.end_of_turn.strip(), self.special_tokens.get("eos_token")):
            if end:
                message["content"] = re.sub(rf"{re.escape(end)}\s*\Z", "", message["content"])
        if isinstance(message.get("reasoning_content"), str):
            reasoning = message.pop("reasoning_content")
            if self._reasoning_key:
                message[self._reasoning_key] = reasoning
            else:
                message["content"] = f"<think>{reasoning}</think>{message['content']}"
        return message

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        now = datetime.fromisoformat(self.date) if self.date else datetime.now()
        try:
            with time_limit(MAX_SECONDS):
                text = self._compiled.render(
                    **self.special_tokens,
                    messages=[m for m in messages if m["role"] != "system" or m["content"].strip()],
                    strftime_now=now.strftime,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                )
        except TimedOut:
            raise self._error(f"takes longer than {MAX_SECONDS:g} s") from None
        except Exception as error:  # a template can raise whatever Python can
            reason = " ".join(str(error).split())
            raise self._error(f"{reason} ({type(error).__name__})") from None
        if len(text) > MAX_CHARACTERS:
            raise self._error(f"renders {len(text)} characters, more than {MAX_CHARACTERS}")
        return text

    def render_prompt(self, messages: Messages) -> str:
        """The text before the model's completion.

        It ends where the assistant's turn begins or, if the last message is the assistant's, with
        that message, to be continued (transformers: `continue_final_message`).
        """
        if messages[-1]["role"] != "assistant":
            return self.render(messages)
        text = self.render(messages, False)
        beginning = self._prepared(messages[-1])["content"].strip()
        if beginning not in text:
            raise self._error(f"drops the message that the assistant continues, {beginning[:60]!r}")
        return text[: text.rindex(beginning) + len(beginning)]

    def segments(self, messages: Messages, num_prompt: int = 0) -> list[tuple[str, bool]]:
        """The conversation as consecutive (text, learned) segments.

        Fine-tuning learns the assistant's messages after the first `num_prompt`, except those of
        `weight` 0, with the end of each turn. Some templates rewrite earlier turns (R1-Distill's
        drops their thinking); then only the assistant's last turn is learned, after the others as
        the model will see them, and nothing follows it. ValueError if the template never ends a
        turn, or drops its reasoning.
        """
        whole, segments, at = self.render(messages, False), [], 0
        for number, message in enumerate(messages, 1):
            if is_learned(message) and number > num_prompt:
                before, learned = self._last_turn(messages[:number])
                segments += [(before[at:], False), (learned, True)]
                at = len(before) + len(learned)
        segments.append((whole[at:], False))
        if "".join(text for text, _ in segments) != whole:
            segments = [(before, False), (learned, True)]
        return [segment for segment in segments if segment[0]]

    def _last_turn(self, messages: Messages) -> tuple[str, str]:
        """(the text before the assistant's last turn, the text of that turn to learn)."""
        if not self.end_of_turn:
            raise self._error("does not end the assistant's turn, so no end can be learned")
        prompt, through = self.render(messages[:-1]), self.render(messages, False)
        last = self._prepared(messages[-1])
        content, reasoning = last["content"], last.get(self._reasoning_key, "")
        end = through.rfind(self.end_of_turn) + len(self.end_of_turn)
        opened = think_prefix(prompt)
        for prefix in (opened, ""):  # a turn without thinking replaces an opened <think>
            before = prompt.removesuffix(opened) + prefix
            learned = through[len(before) : end]
            # Templates trim, and drop thinking: only white space may be lost.
            shown = squeezed(prefix + learned)
            has_all = squeezed(content) in shown and squeezed(reasoning) in shown
            # Thinking is learned behind the <think> that the prompt of a sample ends with.
            doubled = not prefix and opened and not reasoning and learned.startswith("<think>")
            if through.startswith(before) and has_all and not doubled:
                return before, learned
        if reasoning:
            raise self._error(f"drops the reasoning of a turn, {reasoning[:60]!r}")
        if opened and "</think>" in content:
            return prompt, re.sub(r"\A\s*<think>\s*", "", content) + self.end_of_turn
        return prompt.removesuffix(opened), content + self.end_of_turn

    @cached_property
    def end_of_turn(self) -> str:
        """What follows the assistant's content and ends its turn, e.g. `<|im_end|>`; may be ""."""
        _, answer, after = self._render_example().rpartition("ANSWER")
        return re.match(r"(\s*\S+)?", after)[0] if answer else ""

    @cached_property
    def _reasoning_key(self) -> str:
        """The name under which the template reads the reasoning of a message, or ""."""
        for name in REASONING:
            if "REASONING" in self._render_example(**{name: "REASONING"}):
                return name
        return ""

    def _render_example(self, **fields: str) -> str:
        reply = {"role": "assistant", "content": "ANSWER", **fields}
        return self._render([{"role": "user", "content": "x"}, reply])

    @property
    def shows_date(self) -> bool:
        """Whether the text depends on the day. A job keeps its first day as `date`."""
        return "strftime_now" in self.source

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return ENVIRONMENT.from_string(self.source)

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"chat template {self.name}: {problem}")


def load_chat_template(folder: str | Path, kind: str = "auto") -> ChatTemplate:
    """The template of a model folder or embedded model.

    `chat` is the folder's own, `auto` that one or else `plain`. ValueError for an unknown kind, and
    for a folder's own template that is missing or unreadable.
    """
    if kind not in KINDS:
        raise ValueError(f"--template {kind}: not one of {', '.join(KINDS)}")
    folder = resolve(folder)
    path, jinja_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json(path) if path.is_file() else {}
    special_tokens = {}
    for name, token in config.items():
        if isinstance(token, dict):
            token = token.get("content")
        if name.endswith("_token") and isinstance(token, str) and token:
            special_tokens[name] = token
    source = config.get("chat_template")
    if isinstance(source, list):  # named templates: "default", "tool_use", ...
        for template in source:
            if isinstance(template, dict) and template.get("name") == "default":
                source = template.get("template")
                break
    if jinja_path.is_file():
        path, source = jinja_path, jinja_path.read_bytes().decode("utf-8", errors="replace")
    if kind == "chat" and source is None:
        raise ValueError(
            f"--template chat: {folder} has no template in tokenizer_config.json or "
            "chat_template.jinja; choose another --template"
        )
    if "eos_token" not in special_tokens:
        tokenizer = load_tokenizer(folder)
        special_tokens["eos_token"] = tokenizer.backend.id_to_token(tokenizer.eos_id)
    name = str(path)
    if kind in BUILT_IN or source is None:
        name = kind if kind in BUILT_IN else "plain"
        source = BUILT_IN[name]
    elif not isinstance(source, str) or len(source) > MAX_SOURCE:
        raise ValueError(
            f"{path}: the chat template is neither text of at most {MAX_SOURCE} characters "
            "nor a list with a default"
        )
    # A model trained with a template that is not its own has to be saved with that template.
    saved = kind in BUILT_IN
    return ChatTemplate(name, source, special_tokens, saved, wraps_text=kind in ("r1-zero", "chat"))


def plain_template(eos_token: str) -> ChatTemplate:
    """The template of a model that has none."""
    return ChatTemplate("plain", PLAIN, {"eos_token": eos_token})
