"""Text to token ids and back, by the `tokenizers` library; and how the embedded models' vocabulary was made.

The vocabulary is a byte-level BPE. Its pre-split keeps a digit together with the sign before it (`5`, `+8`, ` ?7`), and
whole a number of two digits, a chemical symbol, a word with its line end: a try of a search is half as many tokens as
character by character.

`Stream` decodes token by token, for the terminal.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

END = "<|endoftext|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet one
PATIENCE = 32  # tokens that may pass without a whole character at their end; bytes this long are no text
SPLIT = (
    r" ?[-+*/=(\[,?]?[0-9](?![0-9])"  # a digit with its sign
    r"| ?[0-9]{1,2}"  # a number of two digits: as one token after any sign, else rare pairs are hardly ever seen
    r"| ?[-+*/=(,]?[a-z](?![a-z])"  # a variable
    r"| ?[A-Z][a-z]?(?![a-z])"  # a chemical symbol
    r"| ?[A-Za-z]+\n?| ?\p{Han}+\n?"  # a word
    r"| ?[^\s\p{L}0-9]\n?|\s"
)


class Tokenizer:
    """`encode(text) -> ids`, `decode(ids) -> text`; `begin_ids`, with which every document begins (Llama's BOS; none of
    Qwen's); `stop_ids`, the set of ids that end a completion, and `end_id`, the one that training ends it with; `files`, what
    is saved beside tokenizer.json as it is."""

    def __init__(self, backend: Backend, stop_ids: Iterable[int] = (), end_id: int | None = None,
                 files: Mapping[str, bytes] | None = None):
        backend.no_truncation()  # a tokenizer.json can ask for both, and cut or fill every text
        backend.no_padding()
        self.backend, self.files = backend, dict(files or {})
        known = [i for i in (end_id, backend.token_to_id(END)) if i is not None]
        self.stop_ids = frozenset([*stop_ids, *known])
        if not self.stop_ids:
            raise ValueError("the tokenizer names no token that ends a text")
        self.end_id = known[0] if known else min(self.stop_ids)
        bare, whole = (backend.encode("x", add_special_tokens=special).ids for special in (False, True))
        self.begin_ids = next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Without special tokens but those that the text holds. ValueError for a text that no UTF-8 can hold."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self.backend.encode_batch(texts, add_special_tokens=False)]
        except TypeError:  # JSON can hold half of a surrogate pair, a terminal other bytes
            bad = next(text for text in texts if re.search("[\ud800-\udfff]", text))
            raise ValueError(f"not a Unicode text, it has half of a surrogate pair: {bad[:60]!r}") from None

    def begun(self, ids: list[int]) -> list[int]:
        """A document's ids, with the beginning that its text may have already: templates write it, plain text does not."""
        return ids if ids[: len(self.begin_ids)] == self.begin_ids else [*self.begin_ids, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def stopping_at(self, text: str) -> Tokenizer:
        """This tokenizer with one stop id more, if `text` is one of its tokens: a chat template ends turns with a token
        that the model's files may not name (Qwen2.5's base models stop at <|endoftext|>, their template at <|im_end|>)."""
        found, other = self.backend.token_to_id(text), copy.copy(self)
        other.stop_ids = self.stop_ids | ({found} - {None})
        return other


class Stream:
    """Decodes a completion token by token, never half a character: what `add` returns and then `end`, joined, is what
    `decode` gives for all tokens at once. (Not beside a broken byte of a vocabulary with byte tokens, `<0xE4>`: there
    `decode` gives up whole characters, and what is out stays out.)

    Each step decodes a few tokens, so the time is linear: the new ones, after those of the piece of text before them,
    because some decoders (sentencepiece's) drop the space that a text begins with.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []  # `context` tokens whose text is out, then new ones
        self.context = 0
        self.shown = ""  # the part of the text of `ids` that is out

    def add(self, token: int) -> str:
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        whole = text.rstrip(BROKEN)
        lost = whole != text and len(self.ids) - self.context > PATIENCE
        if lost:
            whole = text[:-1]  # the last one can still become a character
        elif whole != text and not whole.startswith(self.shown):
            return ""  # byte tokens: a decoder may take back the characters before an unfinished one
        new = whole[len(self.shown):]
        self.shown += new
        if lost or (whole == text and new):
            self.ids = self.ids[-4:] if lost else self.ids[self.context:]
            self.context = len(self.ids)
            text = self.tokenizer.decode(self.ids)
            self.shown = text[:-1] if lost else text
        return new

    def end(self) -> str:
        """What was held back: a character that never became whole comes out as U+FFFD."""
        return self.tokenizer.decode(self.ids)[len(self.shown):]


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of the given size. Equal texts give the same file: the trainer sorts what it counts."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens(list(TAGS))  # single tokens, but part of the text: decoding shows them
    return Tokenizer(backend)
