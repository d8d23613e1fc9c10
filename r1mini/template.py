"""Chat templates: messages to the one text that the model sees, as `apply_chat_template` of Hugging Face's transformers
renders them; and that text cut into what fine-tuning learns and what it does not.

The text holds its special tokens literally, so it is encoded without adding any (`Tokenizer.encode`), or BOS would be
there twice. What a message says is let through, as by transformers: `<|im_end|>` typed into it does end its turn. Whoever
relays the messages of others has to look for special tokens first.

A template comes with the weights, from strangers. jinja2's sandbox keeps it from Python's internals and from changing
anything; taking over a second, 128 MiB or 10 million characters is an error. Not guaranteed: the second inside one call
into C (to count or search backwards in megabytes that the template made takes minutes; only a process of its own could be
stopped), the memory anywhere but on Linux, and either off the main thread.

Left out: tools, documents, content other than text, variables such as Qwen3's `enable_thinking`.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1mini.records import opened
from r1mini.tokenizer import Tokenizer

KINDS = ("auto", "chat", "r1-zero", "plain")
SECONDS, MEMORY, CHARACTERS, SOURCE = 1.0, 128 << 20, 10_000_000, 100_000  # the longest real template has 20,000
Messages = Sequence[Mapping[str, str]]

# [R1 §2.2, Table 1], where the question replaces "prompt". No space follows "Assistant:": it is the model's to write.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first "
    "thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>."
    "{% for m in messages %}{% if m.role == 'assistant' %} Assistant:{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'user' %} User: {{ m.content | trim }}."
    "{% else %}{{ raise_exception('no place for a message of role ' ~ m.role) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} Assistant:{% endif %}")
# The text as it is, ended by a new line as every prompt of the embedded models.
PLAIN = ("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
         "{% elif not m.content.endswith('\n') %}{{ '\n' }}{% endif %}{% endfor %}")


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; here it is rendered as if it were not there."""

    tags = {"generation"}

    def parse(self, parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def tojson(value, ensure_ascii=False, **options) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja2's own escapes <, > and &


ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENVIRONMENT.filters["tojson"] = tojson
ENVIRONMENT.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)}


class Late(BaseException):
    """The time is over. Not an Exception, of which jinja2 catches some."""


@contextmanager
def limits() -> Iterator[None]:
    """Bounds the time, by a signal, and the memory that the process may add."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's, and two threads would restore each other's limit
        return

    def late(*_):
        raise Late

    handler, before = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    try:
        if (statm := Path("/proc/self/statm")).exists():
            most = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (min([most, *(limit for limit in before if limit >= 0)]), before[1]))
        timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


@dataclass(frozen=True)
class Template:
    """A template, its name for errors, and the model's special tokens by their names (`eos_token`, ...)."""

    name: str
    source: str
    special: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=dict)  # what a model that is trained with it is saved with
    wraps: bool = False  # asked for: a prompt that is text is a message too, else the model's text as it stands

    def fit(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer that stops where this template ends a turn too, and is saved with it. ValueError where the end is no
        token of its."""
        end = self.end.strip()
        if end and tokenizer.backend.token_to_id(end) is None:
            raise ValueError(f"chat template {self.name}: ends a turn with {end!r}, which is no token of the tokenizer")
        fitted = tokenizer.stopping_at(end)
        fitted.files = {**fitted.files, **self.files}
        return fitted

    def render(self, messages: Messages, generate: bool = True) -> str:
        """The text that the model sees, up to where the assistant's next turn begins; without `generate`, up to the end of
        the last message. ValueError naming the template and what is wrong with it or with the messages."""
        for number, message in enumerate(messages, 1):
            for field in ("role", "content"):
                if not isinstance(message, Mapping) or not isinstance(message.get(field), str):
                    raise ValueError(f"message {number} of {len(messages)}: no text in {field!r}")
        try:
            with limits():
                text = self._compiled.render(**self.special, messages=[dict(message) for message in messages], tools=None,
                                             documents=None, add_generation_prompt=generate)
            wrong = f"renders {len(text)} characters, more than {CHARACTERS}" if len(text) > CHARACTERS else None
        except Late:
            wrong = f"takes longer than {SECONDS:g} s"
        except MemoryError:
            wrong = f"takes more than {MEMORY >> 20} MiB"
        except Exception as error:  # a template can raise whatever Python can
            wrong = f"{' '.join(str(error).split())} ({type(error).__name__})"
        if wrong:
            raise ValueError(f"chat template {self.name}: {wrong}")
        return text

    def prompt(self, messages: Messages) -> str:
        """What the model sees before it writes: up to where the assistant's turn begins, or through a last message of the
        assistant's, which it goes on with (transformers: `continue_final_message`)."""
        if messages[-1]["role"] != "assistant":
            return self.render(messages)
        text, begun = self.render(messages, False), messages[-1]["content"].strip()
        if begun not in text:
            raise ValueError(f"chat template {self.name}: leaves out what the assistant is to go on with, {begun[:60]!r}")
        return text[: text.rindex(begun) + len(begun)]

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return ENVIRONMENT.from_string(self.source)

    @cached_property
    def end(self) -> str:
        """What follows the assistant's content and ends its turn, as `<|im_end|>`; "" if nothing does."""
        text = self.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": "ANSWER"}], False)
        return re.match(r"(\s*\S+)?", text.rpartition("ANSWER")[2])[0] if "ANSWER" in text else ""

    def pieces(self, messages: Messages, given: int = 0) -> list[tuple[str, bool]]:
        """The conversation as consecutive pieces of text, True for what fine-tuning learns: what the assistant says behind
        the first `given` messages, and the end of its turn. Where the template rewrites earlier turns, as R1-Distill's drops their thinking, only the last of
        its turns is learned, after the others as the model will see them, and nothing follows. ValueError naming the
        template if nothing in it ends the turn."""
        whole, pieces, at = self.render(messages, False), [], 0
        for number, message in enumerate(messages, 1):
            if message["role"] == "assistant" and number > given:
                before, learned = self._turn(messages[:number])
                pieces += [(before[at:], False), (learned, True)]
                at = len(before) + len(learned)
        pieces.append((whole[at:], False))
        if "".join(text for text, _ in pieces) != whole:
            pieces = [(before, False), (learned, True)]
        return [piece for piece in pieces if piece[0]]

    def _turn(self, messages: Messages) -> tuple[str, str]:
        """The text before the last turn, the assistant's, and the text that is learned of it."""
        if not self.end:
            raise ValueError(f"chat template {self.name}: nothing ends the assistant's turn, so ending it cannot be learned")
        prompt, through, content = self.render(messages[:-1]), self.render(messages, False), messages[-1]["content"]
        begun = opened(prompt)
        for opening in (begun, ""):  # a turn without thinking begins where thinking would be opened
            before = prompt.removesuffix(begun) + opening
            learned = through[len(before) : through.rfind(self.end) + len(self.end)]
            # Templates trim, and drop thinking: no more than white space may be lost.
            if through.startswith(before) and "".join(content.split()) in "".join((opening + learned).split()):
                return before, learned
        if begun and "</think>" in content:
            return prompt, re.sub(r"\A\s*<think>\s*", "", content) + self.end
        return prompt.removesuffix(begun), content + self.end


def load(folder: str | Path, kind: str = "auto") -> Template:
    """The template of a model folder or embedded model: `chat` is its own, `auto` that one or else `plain`. ValueError for
    another kind, and for a folder's own template that is not there or cannot be read."""
    from r1mini import checkpoint  # brings torch, which making a prompt does not need

    if kind not in KINDS:
        raise ValueError(f"--template {kind}: not one of {', '.join(KINDS)}")
    folder = checkpoint.resolve(folder)
    path, jinja = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = checkpoint.read_json(path) if path.is_file() else {}
    special = {name: token.get("content") if isinstance(token, dict) else token
               for name, token in config.items() if name.endswith("_token")}
    special = {name: token for name, token in special.items() if isinstance(token, str)}
    source = config.get("chat_template")
    if isinstance(source, list):  # named ones: "default", "tool_use", ...
        source = next((t.get("template") for t in source if isinstance(t, dict) and t.get("name") == "default"), source)
    if jinja.is_file():
        path, source = jinja, jinja.read_bytes().decode("utf-8", errors="replace")
    if kind == "chat" and source is None:
        raise ValueError(f"--template chat: {folder} has none, in tokenizer_config.json or chat_template.jinja; choose another")
    if "eos_token" not in special:
        tokens = checkpoint.load_tokenizer(folder)
        special["eos_token"] = tokens.backend.id_to_token(tokens.end_id)
    if kind in ("auto", "chat") and source is not None:
        if not isinstance(source, str) or len(source) > SOURCE:
            raise ValueError(f"{path}: its chat template is no text of at most {SOURCE} characters, nor a list with a default")
        return Template(str(path), source, special, wraps=kind == "chat")
    name, source = ("r1-zero", R1_ZERO) if kind == "r1-zero" else ("plain", PLAIN)
    # A folder that is trained with another template than its own has to say so; one without any goes on without.
    return Template(name, source, special, {} if kind == "auto" else {"chat_template.jinja": source.encode()}, kind == "r1-zero")


def plain(end: str) -> Template:
    """That of a model without one."""
    return Template("plain", PLAIN, {"eos_token": end})
