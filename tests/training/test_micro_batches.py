from hypothesis import given
from hypothesis import strategies as st

from r1mini.training.logprobs import collate
from r1mini.training.micro_batches import by_length, by_prompt, length_bucketed

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    groups = by_length(lengths, range(len(lengths)), budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(
        len(group) * max(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups
    )


@given(LENGTHS, st.integers(1, 8))
def test_shuffling_keeps_every_row_and_depends_only_on_the_seed(lengths, window):
    batches = length_bucketed(lengths, 100, "seed", window)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches == length_bucketed(lengths, 100, "seed", window)


def test_different_seeds_give_different_orders():
    assert length_bucketed([5] * 50, 10, "1") != length_bucketed([5] * 50, 10, "2")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 40),
)
def test_micro_batches_count_a_prompt_once(kinds, budget):
    rows = [([kind] * (kind + 1), [0] * length) for kind, length in kinds]
    groups = by_prompt(rows, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    for group in groups:
        assert len(collate([rows[i] for i in group]).token_of_flat_M) <= budget or len(group) == 1
