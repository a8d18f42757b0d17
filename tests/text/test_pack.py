"""Batches by token budget: every row once, within the budget, the same whatever the memory allows."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.text.pack import epochs_of_steps, micro_batches


def test_micro_batches_without_padding_count_the_tokens_that_are_there():
    assert micro_batches([5, 1, 4, 2], token_budget=12, padded=False) == [[0, 2, 3, 1]]
    assert micro_batches([5, 1, 4, 2], token_budget=11, padded=False) == [[0, 2, 3], [1]]
    assert micro_batches([5, 1, 4, 2], token_budget=8, padded=False) == [[0], [2, 3, 1]]
    assert micro_batches([9, 8, 7], token_budget=4, padded=False) == [[0], [1], [2]]  # a row longer than the budget goes alone


def test_micro_batches_by_hand():
    # longest first: 5 and 4 fit into 10 (2 x 5), 2 would make it 15; then 2 and 1
    assert micro_batches([5, 1, 4, 2], token_budget=10) == [[0, 2], [3, 1]]
    assert micro_batches([5, 1, 4, 2], token_budget=15) == [[0, 2, 3], [1]]
    assert micro_batches([3, 3, 3], token_budget=6) == [[0, 1], [2]]  # equal lengths keep their order
    assert micro_batches([], token_budget=6) == []


def test_a_row_longer_than_the_budget_rides_alone():
    assert micro_batches([2, 50, 2, 60], token_budget=10) == [[3], [1], [0, 2]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 60), max_size=30), budget=st.integers(1, 200))
def test_every_row_rides_once_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, token_budget=budget)
    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[at] for at in batch) <= budget
    longest = [max(lengths[at] for at in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)  # the largest first: what does not fit into memory says so at once


def test_an_epoch_holds_every_row_once_and_each_epoch_its_own_order():
    steps = list(epochs_of_steps(10, rows_per_step=4, epochs=3, seed=0))
    assert [len(step) for step in steps] == [4, 4, 2] * 3
    epochs = [sum(steps[start:start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]  # by chance alike: once in 10! / 3 = 1.2 million seeds
    assert epochs[0] != list(range(10))


def test_the_order_depends_on_seed_and_epoch_only():
    steps = list(epochs_of_steps(10, rows_per_step=4, epochs=2, seed=7))
    assert steps == list(epochs_of_steps(10, rows_per_step=4, epochs=2, seed=7))
    assert steps != list(epochs_of_steps(10, rows_per_step=4, epochs=2, seed=8))
    # another step size, or more epochs, cuts the same order elsewhere
    assert sum(steps, []) == sum(epochs_of_steps(10, rows_per_step=5, epochs=2, seed=7), [])
    assert steps == list(epochs_of_steps(10, rows_per_step=4, epochs=5, seed=7))[:6]


def test_nothing_to_do():
    assert list(epochs_of_steps(0, rows_per_step=4, epochs=2, seed=0)) == []
    assert list(epochs_of_steps(5, rows_per_step=4, epochs=0, seed=0)) == []
