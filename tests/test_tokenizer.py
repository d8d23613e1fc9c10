import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from r1mini.data import corpus_row
from r1mini.tokenizer import END, TAGS, Tokenizer, train


@given(st.text())
def test_any_text_comes_back(tokens, text):
    assert tokens.decode(tokens.encode(text)) == text


def test_documents_come_back_shorter(tokens):
    texts = [row["prompt"] + row["completion"] for row in (corpus_row(0, index) for index in range(1000, 1100))]
    encoded = tokens.encode_batch(texts)
    assert [tokens.decode(ids) for ids in encoded] == texts
    assert sum(map(len, encoded)) < 0.65 * sum(len(text.encode()) for text in texts)


def test_each_tag_is_one_token_that_decoding_shows(tokens):
    for tag in TAGS:
        assert len(tokens.encode(tag)) == 1
    text = "<think>a</think><answer>b</answer>"
    assert tokens.decode(tokens.encode(text)) == text


def test_digit_and_its_sign_are_one_piece_and_so_is_a_number_of_two_digits(tokens):
    pieces = tokens.backend.pre_tokenizer.pre_tokenize_str("5+8=13 ?24 ?7")
    assert [piece.replace("Ġ", " ") for piece, _ in pieces] == ["5", "+8", "=", "13", " ?", "24", " ?7"]


def test_batch_is_one_by_one(tokens):
    texts = ["5+8=13", "", "配平 H2"]
    assert tokens.encode_batch(texts) == [tokens.encode(text) for text in texts]


def test_equal_texts_give_the_same_vocabulary_of_the_size_asked_for(tokens):
    texts = ["5+8=13 no\n"] * 20 + ["配平 H2 + O2 -> H2O\n"] * 20
    one, two = train(texts, 300), train(texts, 300)
    assert one.backend.to_str() == two.backend.to_str()
    assert tokens.vocab_size == 400
    assert max(tokens.backend.get_vocab().values()) == 399  # no gap: ids are rows of the embedding


def test_end_token_stops_and_is_not_shown(tokens):
    assert tokens.stop_ids == {tokens.end_id} == {tokens.backend.token_to_id(END)}
    assert tokens.decode([*tokens.encode("a"), tokens.end_id]) == "a"


def test_stop_ids_of_a_config_are_added(tokens):
    assert Tokenizer(tokens.backend, [7, 9]).stop_ids == {7, 9, tokens.end_id}
    foreign = Tokenizer(Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[])), [1])
    assert (foreign.stop_ids, foreign.end_id) == ({1}, 1)


def test_tokenizer_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no token that ends"):
        Tokenizer(Backend(models.BPE(vocab={"a": 0}, merges=[])))
