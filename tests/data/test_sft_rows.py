import pytest

from r1mini.checkpoint.chat_template import ChatTemplate, plain_template
from r1mini.data.files import read_rows
from r1mini.data.problems import read_problems
from r1mini.data.sft import segment_texts, sft_rows
from r1mini.rewards import completion

from .samples import sample, write


def test_plain_text_rows_are_for_sft_only():
    assert list(sft_rows(sample("trl_text")).values()) == [
        row for _, row in read_rows(sample("trl_text"))
    ]
    with pytest.raises(ValueError, match="trl_text.jsonl:1: text without a question"):
        read_problems(str(sample("trl_text")))


def test_row_without_a_verified_generation_is_for_rl_only(tmp_path):
    row = {
        "problem": "1+0?",
        "answer": "1",
        "generations": ["g"],
        "is_reasoning_complete": [True],
        "correctness_math_verify": [False],
    }
    with pytest.raises(
        ValueError, match="rows.jsonl:1: no generation that is complete and verified"
    ):
        sft_rows(write(tmp_path, row))
    assert len(read_problems(str(write(tmp_path, row)))) == 1


def test_duplicate_rows_are_kept_and_counted(tmp_path, capsys):
    row = {"prompt": "a", "completion": "b"}
    path = write(tmp_path, row, {"prompt": "a", "completion": "c"}, row)
    assert len(sft_rows(path)) == 3
    assert f"1 duplicate rows, the first at {path}:3" in capsys.readouterr().out
    assert len(sft_rows(path, skip_bad=True)) == 2
    assert f"1 skipped by --skip-bad ({path}:3: duplicate of {path}:1)" in capsys.readouterr().out


def test_proofs_are_for_sft_only(tmp_path):
    path = write(
        tmp_path, {"problem": "Prove it.", "solution": "So.", "answer": "proof", "source": "x"}
    )
    assert len(sft_rows(path)) == 1
    with pytest.raises(ValueError, match=":1: gold answer 'proof': no answer"):
        read_problems(str(path))


@pytest.mark.parametrize(
    "row, names",
    [
        (
            {"problem": "1+1?", "solution": 42, "level": 1, "type": "x"},
            "the reply must be text, not 42",
        ),
        ({"question": "1+1?", "answer": ["2", "3"]}, "column 'answer': must be text or a number"),
        (
            {
                "Question": "q",
                "Correct Answer": "1",
                "Incorrect Answer 1": "1 ",
                "Incorrect Answer 2": "2",
                "Incorrect Answer 3": "3",
            },
            "two choices are the same",
        ),
    ],
)
def test_reply_that_is_not_text_is_refused(tmp_path, row, names):
    with pytest.raises(ValueError, match=f":1: .*{names}"):
        sft_rows(write(tmp_path, row))


def test_sft_learns_the_solution_while_rl_compares_the_answer(tmp_path):
    path = write(
        tmp_path, {"problem": "1+1?", "solution": "One and one: \\boxed{2}.", "answer": "2"}
    )
    [row] = sft_rows(path).values()
    assert (
        row["completion"][0]["content"].startswith("One and one")
        and completion.gold_answer(read_problems(str(path))[0]) == "2"
    )


@pytest.mark.parametrize("name", ["response", "output", "solution", "generated_solution"])
def test_a_reply_beside_a_prompt_is_the_completion(tmp_path, name):
    [row] = sft_rows(write(tmp_path, {"prompt": "1+1?", name: "It is 2.", "id": "a"})).values()
    assert row == {"prompt": "1+1?", "completion": "It is 2."}
    [row] = sft_rows(write(tmp_path, {"prompt": [USER], name: "It is 4."})).values()
    assert row == {"prompt": [USER], "completion": [{**BOT, "content": "It is 4."}]}
    both = {"prompt": "1+1?", "completion": "Two.", name: "It is 2."}
    [row] = sft_rows(write(tmp_path, both)).values()
    assert row == {"prompt": "1+1?", "completion": "Two."}
    [problem] = read_problems(str(write(tmp_path, {"prompt": "1+1?", name: r"\boxed{2}"})))
    assert completion.gold_answer(problem) == "2" and problem.prompt == "1+1?"


@pytest.mark.parametrize("reply", [None, "", " ", 2, ["2"]])
def test_a_prompt_without_a_reply_of_text_is_not_learned(tmp_path, reply):
    with pytest.raises(ValueError, match=":1: no text in column 'completion'"):
        sft_rows(write(tmp_path, {"prompt": "1+1?", "response": reply}))
    with pytest.raises(ValueError, match=":1: (no text in column 'completion'|not a TRL)"):
        sft_rows(write(tmp_path, {"prompt": "1+1?", "completion": reply, "response": "2"}))


# -- reasoning, weights, system messages and tools -------------------------------------------------

USER = {"role": "user", "content": "What is 2+2?"}
BOT = {"role": "assistant", "content": "4"}


def read(tmp_path, *messages, **columns):
    [row] = sft_rows(write(tmp_path, {"messages": list(messages), **columns})).values()
    return row["messages"]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("others", [{}, {"thinking": None}, {"reasoning": "  "}])
def test_reasoning_of_a_message_is_kept(tmp_path, name, others):
    reply = {**BOT, **others, name: "2+2 is 4"}
    assert read(tmp_path, USER, reply) == [USER, {**BOT, "reasoning_content": "2+2 is 4"}]
    twice = {**BOT, "reasoning": "2+2 is 4", "reasoning_content": "2+2 is 4"}
    assert read(tmp_path, USER, twice) == read(tmp_path, USER, reply)
    sharegpt = {"from": "gpt", "value": "4", name: "2+2 is 4"}
    row = {"conversations": [{"from": "human", "value": USER["content"]}, sharegpt]}
    [converted] = sft_rows(write(tmp_path, row)).values()
    assert converted["messages"] == read(tmp_path, USER, reply)
    pair = {"prompt": [USER], "completion": [reply]}
    [converted] = sft_rows(write(tmp_path, pair)).values()
    assert converted["completion"] == read(tmp_path, USER, reply)[1:]


def test_reasoning_that_the_content_has_already_is_learned_once(tmp_path):
    content = "<think>\n2+2 is 4\n</think>\n\n4"
    for name in ("reasoning_content", "thinking"):
        reply = {**BOT, "content": content, name: "2+2 is 4\n"}
        assert read(tmp_path, USER, reply) == [USER, {**BOT, "content": content}]
    for empty in ("", None, []):  # no reasoning
        assert read(tmp_path, USER, {**BOT, "reasoning": empty}) == [USER, BOT]


TEMPLATE = (
    "{%- for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}</s>"
    "{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("content", ["", " \n", None, []])
@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_without_content_is_learned(tmp_path, content, name):
    reply = {"role": "assistant", "content": content, name: "2+2 is 4"}
    expected = [USER, {"role": "assistant", "content": "", "reasoning_content": "2+2 is 4"}]
    assert read(tmp_path, USER, reply) == expected
    for template, learned in (
        (plain_template("</s>"), "<think>2+2 is 4</think></s>"),
        (ChatTemplate("t", TEMPLATE, {"eos_token": "</s>"}), "2+2 is 4</s>"),
    ):
        assert segment_texts({"messages": expected}, template)[1] == learned


@pytest.mark.parametrize("value", [None, "", " ", [], {}, True, 3])
def test_only_text_is_reasoning_under_another_name(tmp_path, value):
    reply = {**BOT, "is_thinking": value, "reason_count": value, "note": "a"}
    assert read(tmp_path, USER, reply) == [USER, BOT]


def test_parts_beside_the_same_reasoning_as_text_are_left_out(tmp_path):
    reply = {**BOT, "reasoning": "a", "reasoning_details": [{"type": "text", "text": "a"}]}
    assert read(tmp_path, USER, reply) == [USER, {**BOT, "reasoning_content": "a"}]


@pytest.mark.parametrize(
    "messages, names",
    [
        (
            [USER, {**BOT, "thought": "a"}],
            "2: reasoning must be named 'reasoning_content', not 'thought'",
        ),
        (
            [USER, {**BOT, "reasoning_text": "a"}],
            "2: reasoning must be named .*, not 'reasoning_text'",
        ),
        ([USER, {**BOT, "thoughts": "a"}], "2: reasoning must be named .*, not 'thoughts'"),
        (
            [USER, {**BOT, "reasoningContent": "a"}],
            "2: reasoning must be named .*, not 'reasoningContent'",
        ),
        (
            [USER, {**BOT, "chain_of_thought": ["a"]}],
            "2: reasoning must be named .*, not 'chain_of_thought'",
        ),
        (
            [USER, {**BOT, "reasoning_details": [{"text": "a"}]}],
            "reasoning must be named .*, not 'reasoning_details'",
        ),
        (
            [USER, {**BOT, "reasoning": "a", "Thought": "a"}],
            "2: reasoning must be named .*, not 'Thought'",
        ),
        ([{**USER, "thoughts": "a"}, BOT], "1: reasoning must be named .*, not 'thoughts'"),
        (
            [USER, {**BOT, "content": " ", "thought": "a"}],
            "2: reasoning must be named .*, not 'thought'",
        ),
        ([{**USER, "content": "", "thinking": "a"}, BOT], "message 1: 'thinking' in a message of"),
        (
            [USER, {**BOT, "content": [{"type": "reasoning_text", "text": "a"}, {"text": "4"}]}],
            "message 2: content of type 'reasoning_text' is not supported",
        ),
        (
            [USER, {**BOT, "content": "", "reasoning": " "}],
            "message 2: no text in column 'content'",
        ),
        ([USER, {**BOT, "thinking": ["a"]}], "message 2: no text in column 'thinking'"),
        ([USER, {**BOT, "reasoning": {"a": 1}}], "message 2: no text in column 'reasoning'"),
        ([USER, {**BOT, "thinking": True}], "message 2: no text in column 'thinking'"),
        ([{**USER, "thinking": "a"}, BOT], "message 1: 'thinking' in a message of role 'user'"),
        ([USER, {**BOT, "thinking": "a", "reasoning": "b"}], "'thinking' and 'reasoning' differ"),
        (
            [USER, {**BOT, "content": "<think>b</think>4", "reasoning": "a"}],
            "'reasoning' and '<think> tags' differ",
        ),
        (
            [USER, {**BOT, "content": "<think>a b</think>4", "reasoning": "a"}],
            "'reasoning' and '<think> tags' differ",
        ),
        (
            [USER, {**BOT, "content": "<think>a</think>4", "reasoning": "4"}],
            "'reasoning' and '<think> tags' differ",
        ),
        ([USER, {**BOT, "reasoning": "a</think>"}], "'reasoning' and '<think> tags' differ"),
        (
            [USER, {**BOT, "content": [{"type": "reasoning", "text": "a"}, {"text": "4"}]}],
            "message 2: content of type 'reasoning' is not supported",
        ),
        (
            [{**USER, "content": [{"type": "image", "url": "a"}, {"type": "text", "text": "?"}]}],
            "message 1: content of type 'image' is not supported",
        ),
        ([USER, {**BOT, "weight": 0.5}], "message 2: 'weight' must be 0 or 1, not 0.5"),
        ([USER, {**BOT, "weight": "0"}], "'weight' must be 0 or 1, not '0'"),
        ([USER, {**BOT, "weight": [0]}], "'weight' must be 0 or 1"),
        ([USER, {**BOT, "weight": 0}], "no turn of an assistant"),
        ([USER, {**BOT, "content": ""}], "message 2: no text in column 'content'"),
        ([{**USER, "content": " "}, BOT], "message 1: no text in column 'content'"),
        (
            [USER, {**BOT, "content": None, "tool_calls": [{"id": 1}]}],
            "message 2: 'tool_calls': tool calls",
        ),
        (
            [USER, {**BOT, "tool_calls": [{"id": 1}]}],
            "message 2: 'tool_calls': tool calls are not supported",
        ),
        (
            [USER, {**BOT, "function_call": {"name": "f"}}],
            "'function_call': tool calls are not supported",
        ),
        (
            [USER, BOT, {"role": "tool", "content": "5"}, BOT],
            "message 3: role 'tool' is not system",
        ),
        (
            [USER, {"from": "observation", "value": "5"}, BOT],
            "message 2: role 'observation' is not",
        ),
    ],
)
def test_message_that_would_be_learned_otherwise_is_refused(tmp_path, messages, names):
    with pytest.raises(ValueError, match=f":1: .*{names}"):
        read(tmp_path, *messages)


def test_weights_are_kept_where_they_matter(tmp_path):
    off = {**BOT, "weight": 0}
    for written in (0, 0.0, False):
        assert read(tmp_path, USER, {**BOT, "weight": written}, USER, BOT) == [USER, off, USER, BOT]
    for written in (1, 1.0, None):
        assert read(tmp_path, USER, {**BOT, "weight": written, "tool_calls": []}) == [USER, BOT]
    assert read(tmp_path, {**USER, "weight": 0}, BOT) == [USER, BOT]
    for mark in ({"train": False}, {"loss": False}):  # of axolotl, of ms-swift
        assert read(tmp_path, USER, {**BOT, **mark}, USER, BOT) == [USER, off, USER, BOT]
    assert read(tmp_path, USER, {**BOT, "train": True, "loss": True}) == [USER, BOT]


@pytest.mark.parametrize("content", ["", " \n", None, [{"type": "text", "text": ""}]])
def test_empty_system_message_is_none(tmp_path, content):
    assert read(tmp_path, {"role": "system", "content": content}, USER, BOT) == [USER, BOT]
    brief = {"role": "system", "content": "."}
    assert read(tmp_path, brief, USER, BOT) == [brief, USER, BOT]


def test_reasoning_counts_as_a_row_s_text_in_decontamination(tmp_path):
    words = "one two three four five six seven eight nine ten"
    row = {"messages": [USER, {**BOT, "reasoning": f"So {words}."}]}
    path, held_out = write(tmp_path, row), write(tmp_path, {"prompt": words}, name="test.jsonl")
    with pytest.raises(ValueError, match="no rows; 1 removed by --decontaminate"):
        sft_rows(path, decontaminate=[str(held_out)])
