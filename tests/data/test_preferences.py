"""Preference pairs: what is read, what is refused, and the ids that a reward model sees."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, processors

from r1mini.checkpoint.chat_template import R1_ZERO, ChatTemplate, plain_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT, Tokenizer
from r1mini.data.files import RowErrors
from r1mini.data.formats import shared_text
from r1mini.data.preferences import Pair, encode_pairs, encode_reply, read_pairs
from r1mini.data.problems import read_problems
from r1mini.data.sft import sft_rows

from .samples import sample, write


def user(content):
    return {"role": "user", "content": content}


def bot(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def system(content):
    return {"role": "system", "content": content}


def pairs_of(tmp_path, *rows, **options):
    return list(read_pairs(write(tmp_path, *rows), **options).values())


def read_pair(tmp_path, **row):
    [pair] = pairs_of(tmp_path, row)
    return pair[:3]


# -- layouts ---------------------------------------------------------------------------------------

SAMPLES = [
    ("The sky is", " blue.", " green."),
    ([user("What color is the sky?")], [bot("It is blue.")], [bot("It is green.")]),
    ("The sky is", " blue.", " black."),
    ([user("Name a color.")], [bot("Blue.")], [bot("Seven.")]),
    ([user("Add 1 and 1.")], [bot("2")], [bot("11")]),
    ([user("Hi!"), bot("Hello."), user("What is snow?")], [bot("Frozen water.")], [bot("A bird.")]),
    ([system("Be brief."), user("What is ice?")], [bot("Frozen water.")], [bot("A kind of bird.")]),
    ([user("Sum up.\nWater boils at 100 degrees.")], [bot("It boils.")], [bot("It freezes.")]),
    ([user("What is rain?")], [bot("Water.")], [bot("Fire.")]),
    ([user("What is hail?")], [bot("Ice.")], [bot("Fire.")]),
    ([system("Be kind."), user("And fog?")], [bot("Small drops.")], [bot("Go away.")]),
    ([user("What is dew?")], [bot("Water.")], [bot("Glass.")]),
]


def test_a_row_of_each_public_layout_is_read(capsys):
    path = sample("preferences")
    pairs = read_pairs(path)
    assert [pair[:3] for pair in pairs.values()] == SAMPLES
    assert list(pairs) == [f"{path}:{number}" for number in range(1, len(SAMPLES) + 1)]
    out = capsys.readouterr().out
    assert f"{path}: preference pairs, {len(SAMPLES)} rows\n" in out
    assert "text in other columns is left out: source, prompt_id, dataset\n" in out


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_file_of_one_row_is_read(tmp_path, number):
    [*rows] = sample("preferences").read_text(encoding="utf-8").splitlines()
    for name, content in (("a.jsonl", rows[number]), ("a.json", f"[{rows[number]}]")):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        [pair] = read_pairs(path).values()
        assert pair[:3] == SAMPLES[number]
    assert json.loads(rows[number]).items() <= dict(pair.columns).items()


def test_messages_in_a_csv_file_are_json(tmp_path):
    path = tmp_path / "a.csv"
    cells = [json.dumps([bot(text)]).replace('"', '""') for text in ("Up.", "Down.")]
    path.write_text(
        f'prompt,chosen,rejected,score_chosen,score_rejected\nWhere?,"{cells[0]}","{cells[1]}",'
        "10,9.5\n"
    )
    [pair] = read_pairs(path).values()
    assert pair[:3] == ([user("Where?")], [bot("Up.")], [bot("Down.")])
    path.write_text(path.read_text().replace("10,", "9,"))
    with pytest.raises(ValueError, match="row 1: the wrong way round: score_chosen 9 is below"):
        read_pairs(path)


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("It is blue", "It is black", "It is"),  # "bl" is no prompt
        ("It is 3.14", "It is 3.15", "It is"),
        ("I don't", "I don", "I"),
        ("Q: 1+1?\nA: 2", "Q: 1+1?\nA: 3", "Q: 1+1?\nA:"),
        ("Sky?\nBlue", "Sky?\nGreen", "Sky?\n"),  # a line's end belongs to the prompt
        ("def f():\n    return 1", "def f():\n    yield 1", "def f():\n"),
        ("Sky? <think>a", "Sky? <think>b", "Sky?"),
        ("Sky? <think> a", "Sky? <think> b", "Sky? <think>"),
        ("天空是蓝色", "天空是绿色", "天空是"),
        ("The sky is blue", "The sky is blue and vast", "The sky is"),  # no reply is blank
        ("The sky is blue and vast", "The sky is blue", "The sky is"),
        ("The sky is blue.\n", "The sky is blue. \n", "The sky is"),
        ("The sky is blue.", "The sky is ", "The sky"),
    ],
)
def test_the_prompt_of_two_texts_is_how_both_begin(chosen, rejected, prompt):
    fields = shared_text(chosen, rejected)
    assert fields["prompt"] == prompt
    assert (prompt + fields["chosen"], prompt + fields["rejected"]) == (chosen, rejected)
    assert fields["chosen"].strip() and fields["rejected"].strip()


def test_the_prompt_of_two_conversations_is_the_messages_that_both_begin_with(tmp_path):
    start = [user("a"), bot("b"), user("c")]
    split = read_pair(tmp_path, chosen=[*start, bot("d")], rejected=[*start, bot("e")])
    assert split == (start, [bot("d")], [bot("e")])
    # Anthropic's differ in an earlier turn at times, or one goes on where the other ends.
    later = [bot("x"), user("c"), bot("d")]
    split = read_pair(tmp_path, chosen=[user("a"), *later], rejected=start[:2])
    assert split == ([user("a")], later, [bot("b")])
    split = read_pair(tmp_path, chosen=start[:2], rejected=[*start, bot("d")])
    assert split == ([user("a")], [bot("b")], [bot("b"), user("c"), bot("d")])


def test_a_prompt_of_messages_may_be_repeated_in_the_replies(tmp_path):
    start = [user("a"), bot("b"), user("c")]
    expected = (start, [bot("d")], [bot("e")])
    for prompt in (start, start[:1], "a", "c", " c\n", "user: a assistant: b user: c", None):
        for first in ([], [system("s")]):
            row = {"chosen": [*first, *start, bot("d")], "rejected": [*first, *start, bot("e")]}
            split = read_pair(tmp_path, prompt=prompt, **row)
            assert split == (first + start, *expected[1:])
    # The column decides where the replies begin with the assistant, also over several turns.
    split = read_pair(tmp_path, prompt=start, chosen=[bot("d")], rejected=[bot("e")])
    assert split == expected
    split = read_pair(tmp_path, prompt=start, chosen="d", rejected="e")
    assert split == expected
    several = [bot("b"), user("c"), bot("d")]
    split = read_pair(tmp_path, prompt="a", chosen=several, rejected=[*several[:-1], bot("e")])
    assert split == expected


def test_columns_beside_the_prompt(tmp_path):
    replies = {"chosen": "b", "rejected": "c"}
    sides = [bot("b")], [bot("c")]
    asked = read_pair(tmp_path, prompt="a", system="s", **replies)
    assert asked == ([system("s"), user("a")], *sides)
    assert read_pair(tmp_path, prompt="a", system="", **replies) == ("a", "b", "c")
    assert read_pair(tmp_path, prompt="a", context="d", **replies) == ("d\na", "b", "c")
    assert read_pair(tmp_path, input="a\nd", **replies) == ([user("a\nd")], *sides)
    assert read_pair(tmp_path, question="a", system_prompt="s", **replies) == asked
    asked_elsewhere = read_pair(tmp_path, prompt=None, question="a", **replies)
    assert asked_elsewhere == ([user("a")], *sides)
    whole = {"chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")]}
    assert read_pair(tmp_path, system="s", **whole) == asked
    own = {name: [system("t"), *side] for name, side in whole.items()}
    assert read_pair(tmp_path, system="s", **own)[0] == [system("t"), user("a")]
    # An instruction or a context is not written into conversations that are complete.
    assert read_pair(tmp_path, instruction="Think.", context="d", **whole)[0] == [user("a")]
    assert read_pair(tmp_path, Prompt="a", Chosen="b", Rejected="c") == ("a", "b", "c")


def test_the_prompt_s_column_can_be_named(tmp_path):
    row = {"prompt": "x", "task_text": "a", "chosen": "b", "rejected": "c"}
    [pair] = pairs_of(tmp_path, row, prompt_key="task_text")
    assert pair[:3] == ([user("a")], [bot("b")], [bot("c")])
    assert pair.columns == row
    with pytest.raises(ValueError, match=":1: --prompt-key q: no such column in prompt, task_text"):
        pairs_of(tmp_path, row, prompt_key="q")


def test_transcripts_of_anthropic(tmp_path):
    start = "\n\nHuman: Hi:\nHuman: me\n\nAssistant:"
    expected = ([user("Hi:\nHuman: me")], [bot("Yes.\n\nWell.")], [bot("No.")])
    sides = {"chosen": " Yes.\n\nWell.", "rejected": " No."}
    assert read_pair(tmp_path, prompt=start, **sides) == expected
    whole = {name: start + side for name, side in sides.items()}
    assert read_pair(tmp_path, **whole) == expected
    assert read_pair(tmp_path, prompt=start, **whole) == expected
    stripped = {name: side.strip() for name, side in whole.items()}
    assert read_pair(tmp_path, **stripped) == expected
    with pytest.raises(ValueError, match=":1: column 'rejected', message 2: no text in column"):
        read_pair(tmp_path, chosen=start + " Yes.", rejected=start)


def test_reasoning_is_kept_and_weights_are_not(tmp_path):
    row = {"prompt": [user("a")], "chosen": [bot("b", weight=0, thinking="t")]}
    split = read_pair(tmp_path, **row, rejected=[bot("b", weight=1)])
    assert split == ([user("a")], [bot("b", reasoning_content="t")], [bot("b")])


# -- what is refused -------------------------------------------------------------------------------

ASK, YES, NO = [user("a")], [bot("yes")], [bot("no")]
GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def check_refused(path, message, capsys):
    """The second row stops the run in one line, or is skipped and counted."""
    with pytest.raises(ValueError, match=rf"^{path}:2: {message}") as error:
        read_pairs(path)
    assert "\n" not in str(error.value)
    assert list(read_pairs(path, skip_bad=True)) == [f"{path}:1"]
    out = capsys.readouterr().out
    assert f"preference pairs, 1 rows; 1 skipped by --skip-bad ({path}:2: " in out


@pytest.mark.parametrize(
    "changes, message",
    [
        # equal replies, ties, labels the wrong way round
        ({"chosen": "c"}, "chosen and rejected are equal: 'c'"),
        ({"chosen": " c\n"}, r"chosen and rejected are equal: ' c\\n'"),
        ({"prompt": ASK, "chosen": YES, "rejected": [bot("yes ")]}, ".* are equal: 'yes'"),
        (
            {"score_chosen": 8.0, "score_rejected": 8},
            "a tie: score_chosen 8.0 and score_rejected 8 are equal",
        ),
        (
            {"score_chosen": 3, "score_rejected": 8.5},
            "the wrong way round: score_chosen 3 is below score_rejected 8.5",
        ),
        ({"chosen-rating": 1, "rejected-rating": 2.0}, ".*: chosen-rating 1 is below rejected-rat"),
        ({"rating_chosen": "1", "rating_rejected": "2"}, ".*: rating_chosen 1 is below rating_rej"),
        ({"chosen_score": 5, "rejected_score": 5}, "a tie: chosen_score 5 and rejected_score 5"),
        ({"chosen_avg_rating": -2, "rejected_avg_rating": -1}, ".*: chosen_avg_rating -2 is below"),
        # empty, missing or of another type
        ({"chosen": ""}, "no text in column 'chosen', found ''"),
        ({"rejected": " \n"}, r"no text in column 'rejected', found ' \\n'"),
        ({"chosen": None}, "no text in column 'chosen', found None"),
        ({"rejected": 3}, "no text in column 'rejected', found 3"),
        ({"chosen": True}, "no text in column 'chosen', found True"),
        ({"chosen": [], "rejected": []}, "no messages in column 'chosen'"),
        ({"prompt": []}, "no messages in column 'prompt'"),
        ({"prompt": ""}, "no text in column 'prompt', found ''"),
        ({"prompt": None}, "no text in column 'prompt', found None"),
        ({"prompt": 7}, "no text in column 'prompt', found 7"),
        ({"system": 7}, "no text in column 'system', found 7"),
        ({"chosen": [bot("")], "rejected": NO}, "column 'chosen', message 1: no text in column"),
        ({"chosen": [system("")], "rejected": NO}, "no messages in column 'chosen'"),
        ({"chosen": {}, "rejected": {}}, "column 'chosen', message 1: role None is not"),
        ({"chosen": ["yes"], "rejected": ["no"]}, "not a preference pairs row"),
        ({"chosen": YES}, "chosen is messages, but rejected is text"),
        ({"rejected": NO}, "chosen is text, but rejected is messages"),
        (
            {"chosen": str(YES), "rejected": str(NO)},
            "column 'chosen': messages must be a list in JSON, not \"\\[{'role': 'assistant'",
        ),
        ({"rejected": json.dumps(bot("c"))}, "column 'rejected': messages must be a list in JSON"),
        ({"chosen": "\ud800"}, ".*not valid Unicode"),
        ({"context": "\ud800"}, ".*not valid Unicode"),
        # whose turn it is
        ({"prompt": ASK + YES}, "the prompt ends with a message of role 'assistant'"),
        ({"prompt": ASK, "chosen": YES, "rejected": ASK + NO}, ".* have different prompts"),
        # a prompt that the conversations do not begin with
        (
            {"prompt": "b", "chosen": ASK + YES, "rejected": ASK + NO},
            "chosen and rejected do not begin with column 'prompt', 'b', but with 'a'",
        ),
        (
            {"prompt": [user("b")], "chosen": ASK + YES, "rejected": ASK + NO},
            "chosen and rejected do not begin with column 'prompt', 'b', but with 'a'",
        ),
        (
            {"prompt": [*ASK, *YES, user("c")], "chosen": ASK + YES, "rejected": ASK + NO},
            "chosen and rejected do not begin with column 'prompt', 'c', but with 'a'",
        ),
    ],
)
def test_bad_row_is_one_line_with_file_and_line_or_skipped(tmp_path, capsys, changes, message):
    check_refused(write(tmp_path, GOOD, {**GOOD, **changes}), message, capsys)


@pytest.mark.parametrize(
    "chosen, rejected, message",
    [
        (ASK + YES, ASK + YES, "chosen and rejected are equal: 'yes'"),
        ("It is blue.", "It is blue.", "chosen and rejected are equal: ' blue.'"),
        (ASK + YES, ASK, "column 'rejected': the last message is of role 'user'"),
        (ASK + YES + ASK, ASK + NO, "column 'chosen': the last message is of role 'user'"),
        (ASK + YES, [user("b"), *NO], "chosen and rejected have different prompts, 'a' and 'b'"),
        (
            [*ASK, *YES, user("b"), *YES],
            [*ASK, *YES, user("c"), *NO],
            "chosen and rejected have different prompts, 'b' and 'c'",
        ),
        ("Paris", "London", "no prompt: chosen and rejected begin differently, 'Paris' and 'Lond"),
        ("blue", "black", "no prompt: chosen and rejected begin differently"),
        (" a", " b", "no prompt: chosen and rejected begin differently"),
        ("a", "a b", "no prompt: chosen and rejected begin differently"),
        (YES, NO, "no prompt: a conversation begins with a message of role 'assistant'"),
        (ASK + YES, NO, "no prompt: a conversation begins with a message of role 'assistant'"),
    ],
)
def test_bad_row_without_a_prompt_s_column(tmp_path, capsys, chosen, rejected, message):
    good = {"chosen": "It is blue.", "rejected": "It is black."}
    path = write(tmp_path, good, {"chosen": chosen, "rejected": rejected})
    check_refused(path, message, capsys)


@pytest.mark.parametrize(
    "scores",
    [
        {"score_chosen": 8.5, "score_rejected": 2},
        {"score_chosen": None, "score_rejected": None},  # not rated
        {"score_chosen": 1, "score_rejected": None},
        {"score_chosen": "good", "score_rejected": "bad"},
        {"score_chosen": 10**400, "score_rejected": 1},
        {"score_chosen": [1], "score_rejected": [1]},
        {"score_chosen": 1},
        {"length_chosen": 3, "length_rejected": 8},  # no score
        {"chosen_logprob": -9.0, "rejected_logprob": -1.0},
    ],
)
def test_other_scores_are_accepted(tmp_path, scores):
    assert read_pair(tmp_path, prompt="a", chosen="b", rejected="c", **scores) == ("a", "b", "c")


def test_missing_columns(tmp_path):
    for row in ({"prompt": "a", "chosen": "b"}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(
            ValueError, match=":1: no preference pairs: columns 'chosen' and 'rejected' are missing"
        ):
            pairs_of(tmp_path, row)
    with pytest.raises(ValueError, match=":2: no text in column 'rejected'$"):
        pairs_of(tmp_path, GOOD, {"prompt": "a", "chosen": "b"})
    with pytest.raises(ValueError, match=":2: a row must be an object"):
        pairs_of(tmp_path, GOOD, "3")
    with pytest.raises(ValueError, match="rows.jsonl: no rows"):
        pairs_of(tmp_path)


def test_duplicates_and_both_directions_are_counted(tmp_path, capsys):
    row = GOOD
    other = {"prompt": "a", "chosen": "c", "rejected": "b"}
    path = write(tmp_path, row, {**row, "prompt": "d"}, {**row, "id": 1}, other)
    assert len(read_pairs(path)) == 4
    out = capsys.readouterr().out
    assert f"{path}: 1 duplicate rows, the first at {path}:3\n" in out
    assert f"{path}: 1 pairs are also there the other way round, the first at {path}:4\n" in out
    assert list(read_pairs(path, skip_bad=True)) == [f"{path}:{line}" for line in (1, 2, 4)]
    out = capsys.readouterr().out
    assert f"1 skipped by --skip-bad ({path}:3: duplicate of {path}:1)" in out
    assert "1 pairs are also there the other way round" in out
    read_pairs(write(tmp_path, row))
    out = capsys.readouterr().out
    assert "duplicate rows" not in out and "other way" not in out


def test_pairs_that_share_text_with_an_evaluation_set_are_removed(tmp_path, capsys):
    words = "one two three four five six seven eight nine ten"
    held_out = str(write(tmp_path, {"prompt": words}, name="test.jsonl"))
    for column in GOOD:
        path = write(tmp_path, GOOD, {**GOOD, column: f"So {words}."})
        assert list(read_pairs(path, decontaminate=[held_out])) == [f"{path}:1"]
        assert "1 removed by --decontaminate" in capsys.readouterr().out
    pairs = str(write(tmp_path, {"prompt": words, "chosen": "x", "rejected": "y"}, name="p.jsonl"))
    assert list(read_pairs(path, decontaminate=[pairs])) == [f"{path}:1"]


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_sft_and_rl_name_the_command_for_pairs(tmp_path, number):
    row = sample("preferences").read_text(encoding="utf-8").splitlines()[number]
    path = write(tmp_path, row)
    for read in (sft_rows, read_problems):
        for skip_bad in (False, True):  # it is the file that is wrong, not its rows
            with pytest.raises(ValueError) as error:
                read(path if read is sft_rows else str(path), skip_bad=skip_bad)
            assert str(error.value) == (
                f"{path}:1: preference pairs (columns 'chosen' and 'rejected'): train a reward "
                "model on them with `python -m r1mini.reward_model`; to train on other columns, "
                "remove these two"
            )


def test_sft_can_learn_the_chosen_text_by_name(tmp_path):
    path = write(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"})
    [row] = sft_rows(path, answer_key="chosen").values()
    assert row == {"prompt": [user("a")], "completion": [bot("b")]}


# -- token ids -------------------------------------------------------------------------------------

PLAIN = plain_template(END_OF_TEXT)
# Like Qwen's: a line's end follows the end of a turn.
CHAT = ChatTemplate(
    "chat",
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    {"eos_token": END_OF_TEXT},
)
# Like R1-Distill's: the prompt opens thinking, BOS is in the text, earlier thinking is dropped.
THINKING = ChatTemplate(
    "thinking",
    "{{ bos_token }}{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' %}<A>{{ text.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}<U>{{ text }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}",
    {"bos_token": "<answer>", "eos_token": END_OF_TEXT},
)


def encode(pair, tokens, template=PLAIN, context=1024):
    """[(prompt, reply)] of both sides as text, special tokens included."""
    [encoded] = encode_pairs([Pair(*pair, {})], tokens, template, context)
    prompt, *replies = pair  # a completion that is scored alone has the same ids
    assert encoded == tuple(encode_reply(prompt, r, tokens, template, context) for r in replies)
    decode = lambda ids: tokens.backend.decode(ids, skip_special_tokens=False)
    return [tuple(map(decode, side)) for side in encoded]


@pytest.fixture(scope="module")
def with_bos(tokens):
    """The tokenizer, whose documents begin with BOS (here <answer>)."""
    backend = Backend.from_str(tokens.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<answer> $A", special_tokens=[("<answer>", backend.token_to_id("<answer>"))]
    )
    return Tokenizer(backend)


def test_text_ends_with_eos_once(tokens):
    assert encode(("a", " b", f" c{END_OF_TEXT}"), tokens) == [
        ("a", f" b{END_OF_TEXT}"),
        ("a", f" c{END_OF_TEXT}"),
    ]
    [(chosen, rejected)] = encode_pairs([Pair("a", " b", " c", {})], tokens, PLAIN, 99)
    assert chosen[1][-1] == rejected[1][-1] == tokens.eos_id
    assert chosen[0] + chosen[1] == [*tokens.encode("a b"), tokens.eos_id]


def test_a_reply_in_several_pairs_has_the_same_ids_in_each(tokens):
    pairs = [Pair("a", " b", " c", {}), Pair("a", " d", " b", {}), Pair("a", " b", " e", {})]
    alone = [encode_pairs([pair], tokens, PLAIN, 99)[0] for pair in pairs]
    assert encode_pairs(pairs, tokens, PLAIN, 99) == alone


@pytest.mark.parametrize("prompt", ["a ", "a<think>", "a\n<think>\n", "天"])
def test_the_ids_are_those_of_the_whole_text(tokens, prompt):
    [sides] = encode_pairs([Pair(prompt, "two", "3", {})], tokens, PLAIN, 99)
    for side, reply in zip(sides, ("two", "3")):
        assert sum(side, []) == [*tokens.encode(prompt + reply), tokens.eos_id]


def test_messages_end_as_the_template_ends_them(tokens):
    ask = [system("s"), user("a")]
    start = "[system]s<|endoftext|>\n[user]a<|endoftext|>\n[assistant]"
    assert encode((ask, YES, NO), tokens, CHAT) == [
        (start, "yes<|endoftext|>\n"),
        (start, "no<|endoftext|>\n"),
    ]
    assert encode((ASK, YES, NO), tokens) == [
        ("a\n", "yes<|endoftext|>"),
        ("a\n", "no<|endoftext|>"),
    ]


@pytest.mark.parametrize("template", [PLAIN, CHAT])
def test_the_ids_are_those_of_the_rendered_conversation(tokens, template):
    [sides] = encode_pairs([Pair(ASK, YES, [*NO, *ASK, *YES], {})], tokens, template, 99)
    for side, reply in zip(sides, (YES, [*NO, *ASK, *YES])):
        rendered = template.render([*ASK, *reply], add_generation_prompt=False)
        assert sum(side, []) == tokens.encode(rendered)


def test_turns_of_the_user_inside_a_reply_belong_to_it(tokens):
    several = [bot("b"), user("c"), bot("d")]
    start = "[user]a<|endoftext|>\n[assistant]"
    assert encode((ASK, several, NO), tokens, CHAT) == [
        (start, "b<|endoftext|>\n[user]c<|endoftext|>\n[assistant]d<|endoftext|>\n"),
        (start, "no<|endoftext|>\n"),
    ]


def test_text_is_wrapped_by_a_template_that_wraps_text(tokens):
    r1_zero = ChatTemplate("r1-zero", R1_ZERO, {"eos_token": END_OF_TEXT}, wraps_text=True)
    (prompt, chosen), (_, rejected) = encode(("1+1?", " 2", " 3"), tokens, r1_zero)
    assert prompt.endswith("User: 1+1?. Assistant:") and prompt.count("Assistant:") == 1
    assert (chosen, rejected) == (f" 2{END_OF_TEXT}", f" 3{END_OF_TEXT}")


def test_thinking_is_kept_behind_the_prompt_that_opens_it(tokens):
    pair = (ASK, [bot("<think>\nwhy</think>yes")], [bot("no")])
    assert encode(pair, tokens, THINKING) == [
        ("<answer><U>a<A><think>\n", "why</think>yes<|endoftext|>"),
        ("<answer><U>a<A>", "no<|endoftext|>"),
    ]
    # Pairs that differ in thinking alone are pairs.
    pair = (ASK, [bot("<think>\nwhy</think>yes")], [bot("<think>\nhow</think>yes")])
    assert [reply for _, reply in encode(pair, tokens, THINKING)] == [
        "why</think>yes<|endoftext|>",
        "how</think>yes<|endoftext|>",
    ]


def test_one_bos_at_most(tokens, with_bos):
    for pair, template in (
        (("a", "b", "c"), PLAIN),
        (("<answer>a", "b", "c"), PLAIN),  # the text has it already
        ((ASK, YES, NO), CHAT),
        ((ASK, YES, NO), THINKING),
    ):
        for prompt, reply in encode(pair, with_bos, template):
            assert prompt.startswith("<answer>") and (prompt + reply).count("<answer>") == 1
    for prompt, reply in encode(("a", "b", "c"), tokens):
        assert "<answer>" not in prompt + reply


def test_a_pair_too_long_is_reported_and_never_cut(tokens):
    long = "1 " * 50
    count = len(tokens.encode("a" + long)) + 1
    rows = [Pair("a", long, "b", {}), Pair("a", "b", "c", {}), Pair("a", "c", long, {})]
    assert len(encode_pairs(rows, tokens, PLAIN, count)) == 3
    message = f"x:1: {count} tokens do not fit the model's context of {count - 1}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        encode_pairs(rows, tokens, PLAIN, count - 1, ["x:1", "x:2", "x:3"])
    errors = RowErrors(skip=True)
    encoded = encode_pairs(rows, tokens, PLAIN, count - 1, ["x:1", "x:2", "x:3"], errors)
    assert encoded == [None, *encode_pairs(rows[1:2], tokens, PLAIN, count), None]
    assert errors.messages == [message, message.replace("x:1", "x:3")]
    both = [Pair("a", long, long + "b", {})]  # both sides too long: one error
    assert encode_pairs(both, tokens, PLAIN, 9, ["x:4"], errors) == [None]
    assert errors.messages[2:] == [f"x:4: {count} tokens do not fit the model's context of 9"]


def test_sides_with_equal_ids_are_reported(tokens):
    backend = Backend.from_str(tokens.backend.to_str())
    backend.normalizer = normalizers.Lowercase()
    lower = Tokenizer(backend)
    errors = RowErrors(skip=True)
    pairs = [Pair("a", "No", "no", {}), Pair("a", "b", "no", {})]
    encoded = encode_pairs(pairs, lower, PLAIN, 99, ["x:1", "x:2"], errors)
    assert encoded == [None, *encode_pairs(pairs[1:], lower, PLAIN, 99)]
    assert errors.messages == ["x:1: chosen and rejected are the same 3 tokens"]
    trimming = ChatTemplate(
        "t", "{% for m in messages %}{{ m.content.split('!')[0] }}${% endfor %}", {"eos_token": "$"}
    )
    del trimming


def test_a_pair_that_the_template_rejects_is_reported(tokens):
    strict = ChatTemplate(
        "strict",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}$ {% endfor %}",
        {"eos_token": "$"},
    )
    pairs = [Pair([system("s"), *ASK], YES, NO, {}), Pair(ASK, YES, NO, {})]
    errors = RowErrors(skip=True)
    encoded = encode_pairs(pairs, tokens, strict, 99, ["x:1", "x:2"], errors)
    assert encoded == [None, *encode_pairs(pairs[1:], tokens, strict, 99)]
    [message] = errors.messages
    assert message.startswith("x:1: chat template strict: no system")


def test_no_pairs_are_no_ids(tokens):
    assert encode_pairs([], tokens, PLAIN, 99) == []
