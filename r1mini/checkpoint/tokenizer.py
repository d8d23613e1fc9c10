"""Text to token ids and back, with the `tokenizers` library, and the embedded models' vocabulary.

The vocabulary is a byte-level BPE. Its pre-tokenizer keeps a digit together with the sign before it
(`5`, `+8`, ` ?7`), and keeps whole a two-digit number, a chemical symbol, and a word with its line
end. One attempt of a search then takes half as many tokens as it has characters.

`StreamDecoder` decodes token by token, for the terminal.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise, takewhile

from tokenizers import Encoding, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
REPLACEMENT = "\ufffd"  # a decoder writes it for bytes that are no character, or not yet one
CHUNK = 1000  # texts to encode at a time
MAX_PENDING = 32  # tokens that complete no character; more bytes than that are not text
SPLIT = (
    r" ?[-+*/=(\[,?]?[0-9](?![0-9])"  # a digit with its sign
    r"| ?[0-9]{1,2}"  # a two-digit number: one token after any sign, else rare pairs stay unseen
    r"| ?[-+*/=(,]?[a-z](?![a-z])"  # a variable
    r"| ?[A-Z][a-z]?(?![a-z])"  # a chemical symbol
    r"| ?[A-Za-z]+\n?| ?\p{Han}+\n?"  # a word
    r"| ?[^\s\p{L}0-9]\n?|\s"
)


class Tokenizer:
    """`encode(text) -> ids`, `decode(ids) -> text`.

    `bos_ids` begin every document (Llama's BOS; empty for Qwen). `stop_ids` end a completion;
    training ends it with `eos_id`. `files` are saved unchanged beside tokenizer.json.
    """

    def __init__(
        self,
        backend: Backend,
        stop_ids: Iterable[int] = (),
        eos_id: int | None = None,
        files: Mapping[str, bytes] = {},
    ):
        backend.no_truncation()  # a tokenizer.json can ask for both, for every text
        backend.no_padding()
        self.backend, self.files = backend, dict(files)
        self.vocab_size = backend.get_vocab_size()
        eos_ids = [i for i in (eos_id, backend.token_to_id(END_OF_TEXT)) if i is not None]
        self.stop_ids = frozenset([*stop_ids, *eos_ids])
        if not self.stop_ids:
            raise ValueError("the tokenizer has no end-of-text token")
        self.eos_id = eos_ids[0] if eos_ids else min(self.stop_ids)
        document = backend.encode("x")
        is_bos = takewhile(bool, document.special_tokens_mask)
        self.bos_ids = document.ids[: sum(is_bos)]
        self.added = backend.get_added_tokens_decoder()

    def encode(self, text: str) -> list[int]:
        """Adds no special tokens. ValueError for a text that UTF-8 cannot encode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._encodings(texts)]

    def encode_segments(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The ids of each row's whole text, cut where its segments meet.

        Context and learned segments alternate; a token with a character of both is learned. A
        segment encoded alone would have other ids: SentencePiece begins every text with a space,
        and BPE merges over a border.
        """
        result = []
        for texts, encoding in zip(rows, self._encodings(["".join(texts) for texts in rows])):
            starts, ends = ([offset[i] for offset in encoding.offsets] for i in (0, 1))
            cuts = [0]
            for number, border in enumerate(accumulate(map(len, texts[:-1]))):
                if number % 2:  # learned: all that begins before the border
                    cuts.append(bisect_left(starts, border, cuts[-1]))
                else:
                    cuts.append(bisect_right(ends, border, cuts[-1]))
            result.append([encoding.ids[i:j] for i, j in pairwise([*cuts, None])])
        return result

    def _encodings(self, texts: list[str]) -> Iterator[Encoding]:
        """A chunk at a time, since an encoding takes far more memory than its ids."""
        try:
            for start in range(0, len(texts), CHUNK):
                chunk = texts[start : start + CHUNK]
                yield from self.backend.encode_batch(chunk, add_special_tokens=False)
        except TypeError:  # JSON can hold a lone surrogate, a terminal other bytes
            bad = next(text for text in texts if re.search("[\ud800-\udfff]", text))
            raise ValueError(f"not Unicode text (a lone surrogate): {bad[:60]!r}") from None

    def with_bos(self, ids: list[int]) -> list[int]:
        """A document's ids, with `bos_ids` first unless its text (from a template) has them."""
        return ids if ids[: len(self.bos_ids)] == self.bos_ids else [*self.bos_ids, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Leaves out special tokens that begin or end a text; tags may be special tokens, too."""
        limits = self.added.keys() & {*self.bos_ids, *self.stop_ids}
        hidden = {i for i in limits if self.added[i].special}
        return self.backend.decode([i for i in ids if i not in hidden], False)

    def has_end(self, text: str) -> bool:
        """Whether a text ends with a stop token, but for white space."""
        ends = (self.added[i].content for i in self.stop_ids & self.added.keys())
        return text.rstrip().endswith(tuple(ends))


class StreamDecoder:
    """Decodes a completion token by token and never returns half a character.

    What `add` and finally `flush` return, joined, equals `decode` of all tokens at once. (Not next
    to a broken byte of a vocabulary with byte tokens, `<0xE4>`: there `decode` takes back whole
    characters that are already returned.)

    Each step decodes a few tokens, so the time is linear: the new ones after those of the text
    before them, because some decoders (sentencepiece's) drop the space that a text begins with.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []  # `context` tokens whose text is returned, then new ones
        self.context = 0
        self.returned = ""  # the part of the text of `ids` that is returned

    def add(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        complete = text.rstrip(REPLACEMENT)
        invalid = complete != text and len(self.ids) - self.context > MAX_PENDING
        if invalid:
            complete = text[:-1]  # the last byte can still become a character
        elif complete != text and not complete.startswith(self.returned):
            return ""  # byte tokens: a decoder may take back the characters before a partial one
        new = complete[len(self.returned) :]
        self.returned += new
        if invalid or (complete == text and new):
            self.ids = self.ids[-4:] if invalid else self.ids[self.context :]
            self.context = len(self.ids)
            text = self.tokenizer.decode(self.ids)
            self.returned = text[:-1] if invalid else text
        return new

    def flush(self) -> str:
        """The pending text: a character that was never completed becomes U+FFFD."""
        return self.tokenizer.decode(self.ids)[len(self.returned) :]


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE. Equal texts give the same file: the trainer sorts its counts."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens(list(TAGS))  # not special tokens: decoding keeps them
    return Tokenizer(backend)
