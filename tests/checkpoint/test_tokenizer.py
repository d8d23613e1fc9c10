import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from r1mini import rewards
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.checkpoint.tokenizer import END_OF_TEXT, TAGS, StreamDecoder, Tokenizer, train
from r1mini.tasks.corpus import document


@given(st.text())
def test_any_text_round_trips(tokens, text):
    assert tokens.decode(tokens.encode(text)) == text


def test_documents_round_trip_in_fewer_tokens(tokens):
    texts = [
        row["prompt"] + row["completion"]
        for row in (document(0, index) for index in range(1000, 1100))
    ]
    encoded = tokens.encode_batch(texts)
    assert [tokens.decode(ids) for ids in encoded] == texts
    assert sum(map(len, encoded)) < 0.65 * sum(len(text.encode()) for text in texts)


def test_each_tag_is_one_token_and_is_decoded(tokens):
    for tag in TAGS:
        assert len(tokens.encode(tag)) == 1
    text = "<think>a</think><answer>b</answer>"
    assert tokens.decode(tokens.encode(text)) == text


def test_pre_tokenizer_keeps_signed_digits_and_two_digit_numbers_whole(tokens):
    pieces = tokens.backend.pre_tokenizer.pre_tokenize_str("5+8=13 ?24 ?7")
    assert [piece.replace("Ġ", " ") for piece, _ in pieces] == [
        "5",
        "+8",
        "=",
        "13",
        " ?",
        "24",
        " ?7",
    ]


def test_batch_encoding_equals_single_encoding(tokens, monkeypatch):
    texts = ["5+8=13", "", "配平 H2"]
    single = [tokens.encode(text) for text in texts]
    for chunk in (1, 2, 1000):
        monkeypatch.setattr("r1mini.checkpoint.tokenizer.CHUNK", chunk)
        assert tokens.encode_batch(texts) == single


def test_lone_surrogate_is_refused_quoting_the_text(tokens):
    for encode in (tokens.encode, lambda text: tokens.encode_batch(["a", text])):
        with pytest.raises(ValueError, match=r"not Unicode text.*'b\\ud800'"):
            encode("b\ud800")


def test_vocabulary_is_deterministic_and_has_the_requested_size(tokens):
    texts = ["5+8=13 no\n"] * 20 + ["配平 H2 + O2 -> H2O\n"] * 20
    one, two = train(texts, 300), train(texts, 300)
    assert one.backend.to_str() == two.backend.to_str()
    assert tokens.vocab_size == 400
    assert (
        max(tokens.backend.get_vocab().values()) == 399
    )  # no gaps, because ids index the rows of the embedding


def test_end_token_stops_and_is_not_decoded(tokens):
    assert tokens.stop_ids == {tokens.eos_id} == {tokens.backend.token_to_id(END_OF_TEXT)}
    assert tokens.decode([*tokens.encode("a"), tokens.eos_id]) == "a"


def test_stop_ids_of_a_config_are_added(tokens):
    assert Tokenizer(tokens.backend, [7, 9]).stop_ids == {7, 9, tokens.eos_id}
    foreign = Tokenizer(Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[])), [1])
    assert (foreign.stop_ids, foreign.eos_id) == ({1}, 1)


def test_tokenizer_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no end-of-text token"):
        Tokenizer(Backend(models.BPE(vocab={"a": 0}, merges=[])))


def test_end_of_turn_of_a_chat_template_is_a_stop_token(tokens):
    turn = "{% for m in messages %}{{ m.content }}"
    adapted = ChatTemplate("x", turn + "<think>{% endfor %}", {}).adapt_tokenizer(tokens)
    assert adapted.stop_ids == {tokens.eos_id, *tokens.encode("<think>")}
    adapted = ChatTemplate("x", turn + "{% endfor %}", {}).adapt_tokenizer(tokens)
    assert tokens.stop_ids == adapted.stop_ids == {tokens.eos_id}


# -- token by token ----------------------------------------------------------------------------------------------------

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def streamed(tokens, ids):
    decoder = StreamDecoder(tokens)
    return [*map(decoder.add, ids), decoder.flush()]


@pytest.fixture(scope="module")
def llama():
    """Like Llama 2's: a space belongs to the next word, unknown words become bytes, and a text's first space is dropped."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁▁",
        "a",
        "b",
        "▁a",
        "▁b",
        "ab",
        "▁ab",
    ]
    backend = Backend(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("▁", "▁"), ("a", "b"), ("▁", "ab"), ("▁", "a"), ("▁", "b")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend, [1])


@given(st.lists(st.integers(0, 399), max_size=60) | st.lists(st.sampled_from(BYTES), max_size=100))
def test_streamed_text_equals_decoded_text(tokens, ids):
    ids = [tokens.backend.token_to_id(i) if isinstance(i, str) else i for i in ids]
    assert "".join(streamed(tokens, ids)) == tokens.decode(ids)


@given(st.text() | st.text(alphabet="配平🎉é \ufffd"))
def test_no_partial_character_is_streamed(tokens, text):
    text = text.replace("\ufffd", "?")
    ids = (
        [
            tokens.backend.token_to_id(byte)
            for byte in pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=False
            ).pre_tokenize_str(text)[0][0]
        ]
        if text
        else []
    )
    pieces = streamed(tokens, ids)
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert all(len(piece) == 1 for piece in pieces if piece)  # and each as soon as it is complete


def test_tokens_that_straddle_characters_are_streamed():
    """Every token is the end of one character and the beginning of the next."""
    text = "配平" * 60
    [(letters, _)] = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    ).pre_tokenize_str(text)
    cuts = (
        [letters[:1]] + [letters[i : i + 3] for i in range(1, len(letters) - 2, 3)] + [letters[-2:]]
    )
    backend = Backend(models.BPE({cut: i for i, cut in enumerate(sorted({*cuts}))}, []))
    backend.decoder = decoders.ByteLevel()
    tokens = Tokenizer(backend, [99])
    pieces = streamed(tokens, [backend.token_to_id(cut) for cut in cuts])
    assert pieces == ["", *text, ""]


@given(st.text(alphabet="ab 配🎉\ufffdé"))
def test_leading_space_and_byte_tokens_of_sentencepiece(llama, text):
    ids = llama.encode(text)
    pieces = streamed(llama, ids)
    assert "".join(pieces) == llama.decode(ids) == text
    assert streamed(llama, [ids[0], 1, *ids[1:]] if ids else [1]) == [
        *pieces[:1],
        "",
        *pieces[1:],
    ]  # </s> is not shown


def test_incomplete_bytes_are_streamed_at_the_end(tokens, llama):
    half = [tokens.backend.token_to_id(byte) for byte in "éħ"]  # 配 is three bytes
    assert streamed(tokens, half) == ["", "", "\ufffd"]
    assert streamed(tokens, [*half, *tokens.encode("a")]) == ["", "", "\ufffda", ""]
    assert streamed(llama, [2 + 0xFF, *llama.encode("a")]) == ["", "\ufffd a", ""]


def test_streaming_takes_linear_time_and_bounded_memory(tokens):
    decoded = []

    class Counting:
        def decode(self, ids):
            decoded.append(len(ids))
            return tokens.decode(ids)

    for ids in (
        tokens.encode("Make 24 from 3, 5, 9. 配平\n" * 100),
        [tokens.backend.token_to_id("ÿ")] * 1000,
    ):
        decoded.clear()
        assert "".join(streamed(Counting(), ids)) == tokens.decode(ids)
        assert max(decoded) < 40 and sum(decoded) < 40 * len(ids)


def test_bos_of_the_post_processor_is_added_once(tokens):
    from tokenizers import processors

    backend = Backend.from_str(tokens.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<think> $A", special_tokens=[("<think>", backend.token_to_id("<think>"))]
    )
    documents = Tokenizer(backend)
    assert documents.bos_ids == [backend.token_to_id("<think>")] and tokens.bos_ids == []
    ids = documents.encode("a")
    assert documents.with_bos(ids) == [*documents.bos_ids, *ids]
    assert documents.with_bos(documents.with_bos(ids)) == documents.with_bos(ids)
    assert documents.with_bos(documents.encode("<think>a")) == documents.encode(
        "<think>a"
    )  # the template has already added it


# -- tags as special tokens, and the border between prompt and completion --------------------------

TEXTS = ["What is 2+2? The answer is 4.", "user assistant system hello"] * 50


def byte_level(*special, trim=False):
    """A byte-level BPE that merges line breaks, with special tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=BYTES, show_progress=False)
    backend.train_from_iterator([*TEXTS, *["\n\n", "\n\n\n\n"] * 50], trainer)
    tokens = [AddedToken(name, special=True, normalized=False) for name in special]
    backend.add_special_tokens(tokens)
    return backend


def sentencepiece(prepend="normalizer"):
    """Like Llama 2's: a space before every text, and `<s>` before every document."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    if prepend == "normalizer":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    backend.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return backend


def test_special_tags_are_decoded_and_ends_are_not():
    tags = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<answer>", "</answer>", "<tool>"]
    backend = byte_level(*tags)
    tokens = Tokenizer(backend, eos_id=backend.token_to_id("<|im_end|>"))
    text = "<think>2+2 is 4</think><answer>4</answer>"
    for written, shown in (
        (text, text),
        (text + "<|im_end|>", text),
        ("<|im_start|>a<tool>b", "<|im_start|>a<tool>b"),
        ("4</answer>", "4</answer>"),
    ):
        ids = tokens.encode(written)
        assert tokens.decode(ids) == "".join(streamed(tokens, ids)) == shown
    shown = [tokens.decode(tokens.encode(text))]
    for reward in (rewards.format, rewards.accuracy):
        assert reward(["2+2?"], shown, task=["x.jsonl"], answer=["4"]) == [1]
        assert reward(["2+2?"], shown, task=["x.jsonl"], answer=["5"]) == [
            float(reward is rewards.format)
        ]
    llama = Tokenizer(sentencepiece(), [2])
    assert llama.decode([1, *llama.encode("hello </s>"), 2]) == "hello "
    end = AddedToken("<end>", special=False)  # not special: part of the text, as before
    backend.add_tokens([end])
    ids = backend.encode("a<end>").ids
    assert Tokenizer(backend, ids[-1:]).decode(ids) == "a<end>"


@pytest.mark.parametrize("prepend", ["normalizer", "always", "first"])
def test_sentencepiece_turn_has_the_ids_of_the_whole_conversation(prepend):
    tokens = Tokenizer(sentencepiece(prepend), [2])
    rows = [
        [
            "<s>[INST] What is 2+2? [/INST]",
            " The answer is 4.</s>",
            "[INST] hello [/INST]",
            " 4</s>",
        ],
        ["What is 2+2?", "The answer"],
        ["", " 配 The"],
        ["user</s>", "hello</s>", "system</s>", " 配</s>", "user"],
    ]
    for texts, segments in zip(rows, tokens.encode_segments(rows)):
        assert sum(segments, []) == tokens.encode("".join(texts)) and len(segments) == len(texts)
        for number in range(1, len(texts)):  # where the prompt is a prefix, its ids are, too
            before = tokens.encode("".join(texts[:number]))
            assert sum(segments[:number], []) == before
    names = [tokens.backend.id_to_token(i) for i in tokens.encode_segments(rows)[0][1]]
    assert names[-1] == "</s>" and "".join(names[:-1]) == "▁The▁answer▁is▁4."


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize(
    "texts, learned",
    [
        (["a\n", "\n\nb"], ["ĊĊ", "Ċ", "b"]),  # one token over the border is learned
        (["a\n", "\nb"], ["Ċ", "b"]),
        (["a The", " answer"], ["Ġanswer"]),
        (["a ", "b"], ["b"]),
        (["user hel", "lo"], ["Ġhello"]),
        (["a\n", "b"], ["b"]),
        (["配", "平<e>"], ["å", "¹", "³", "<e>"]),
        (["", "a"], ["a"]),
    ],
)
def test_tokens_over_a_border_are_learned_whole(texts, learned, trim):
    tokens = Tokenizer(byte_level("<e>", trim=trim), [0])
    [[prompt, completion]] = tokens.encode_segments([texts])
    names = [tokens.backend.id_to_token(i) for i in completion]
    assert prompt + completion == tokens.encode("".join(texts))
    assert names == learned or texts[0] == "a " and names == ["Ġb"]


def test_end_token_that_takes_the_line_break_is_learned():
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<e>", special=True, rstrip=True, normalized=False)])
    tokens = Tokenizer(backend, [backend.token_to_id("<e>")])
    [segments] = tokens.encode_segments([["a<e>\n", "b<e>", "\n", "c<e>"]])
    end = tokens.backend.token_to_id("<e>")
    assert [ids[-1:] for ids in segments] == [[end], [end], [], [end]]


def test_segments_of_the_embedded_models_are_encoded_as_before(tokens):
    rows = [[row["prompt"], row["completion"]] for row in (document(0, i) for i in range(1000))]
    assert tokens.encode_segments(rows) == [list(map(tokens.encode, row)) for row in rows]
    with pytest.raises(ValueError, match="not Unicode text"):
        tokens.encode_segments([["a", "\ud800"]])


@pytest.mark.parametrize(
    "text, ended",
    [
        ("a</s>", True),
        ("a</s>\n", True),
        ("a</answer>", True),  # a stop token, but not a special one
        ("</s>a", False),
        ("a</s", False),
        ("a<s>", False),  # special, but no end
        ("a.", False),  # a stop token, but also a character of text
        ("", False),
    ],
)
def test_text_may_have_its_end_already(text, ended):
    backend = sentencepiece()
    backend.add_tokens([AddedToken("</answer>", special=False, normalized=False)])
    stop = [2, backend.token_to_id("</answer>"), backend.token_to_id(".") or 0]
    assert Tokenizer(backend, stop).has_end(text) is ended
