"""Text to token ids and back, by the `tokenizers` library; and how the embedded models' vocabulary was made.

The vocabulary is a byte-level BPE. Its pre-split keeps a digit together with the sign before it (`5`, `+8`, ` ?7`), and
whole a number of two digits, a chemical symbol, a word with its line end: a try of a search is half as many tokens as
character by character.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

END = "<|endoftext|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPLIT = (
    r" ?[-+*/=(?]?[0-9](?![0-9])"  # a digit with its sign
    r"| ?[0-9]{1,2}"  # a number of two digits: as one token after any sign, else rare pairs are hardly ever seen
    r"| ?[-+*/=(]?[a-z](?![a-z])"  # a variable
    r"| ?[A-Z][a-z]?(?![a-z])"  # a chemical symbol
    r"| ?[A-Za-z]+\n?| ?\p{Han}+\n?"  # a word
    r"| ?[^\s\p{L}0-9]\n?|\s"
)


class Tokenizer:
    """`encode(text) -> ids`, `decode(ids) -> text`; `stop_ids`, the set of ids that end a completion, and `end_id`, the one
    that training ends it with; `files`, what is saved beside tokenizer.json as it is."""

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

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=True)


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
