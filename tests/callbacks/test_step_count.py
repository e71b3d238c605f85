"""The counter of steps, told of events by hand: no `fit`."""

import copy
import types

import keras
import pytest

from tfopt.callbacks._step_count import StepCount

SGD = keras.optimizers.SGD


def make(execution_size=1, optimizers=(), compiled=None):
    """What the counter needs of a model; an optimizer has worked when its counters have changed."""
    variable = keras.Variable(0.0)
    model = types.SimpleNamespace(
        optimizer=compiled, own=list(optimizers), trainable_variables=[variable], steps_per_execution=execution_size
    )
    for optimizer in filter(None, (*optimizers, compiled)):
        optimizer.build([variable])
    return model


def work(optimizer, steps=1):
    optimizer.iterations.assign_add(steps)


def play(count, model, epochs, total, batches_of_epoch, act, hears_ends):
    """Tell the counter of whole epochs, and return its steps after each; `act(batch)` is the training."""
    found = []
    for epoch in range(epochs):
        count.begin_epoch(model, epoch, total)
        for batch in range(0, batches_of_epoch, model.steps_per_execution):
            count.begin_batch(batch)
            for inside in range(batch, min(batch + model.steps_per_execution, batches_of_epoch)):
                act(inside)
            if hears_ends:
                count.end_batch()
        count.end_epoch()
        found.append(count.look())
    return found


@pytest.mark.parametrize("hears_ends", [False, True])
@pytest.mark.parametrize("execution_size", [1, 3])
def test_an_optimizer_counts_its_own_steps_and_batches_count_where_none_works(execution_size, hears_ends):
    one, two = SGD(), SGD()
    kinds = {
        "one": (lambda batch: work(one), [7, 14]),
        "accumulated or skipped": (lambda batch: work(one, batch % 2), [3, 6]),
        "several": (lambda batch: [work(one), work(two)], [7, 14]),
        "one of two, thrice": (lambda batch: work(one, 3), [21, 42]),
        "none": (lambda batch: None, [7, 14]),
    }
    for name, (act, expected) in kinds.items():
        one.iterations.assign(0)
        count, model = StepCount(hears_ends), make(execution_size, [one, two])
        assert play(count, model, 2, 7, 7, act, hears_ends) == expected, name
        assert count.batches == 14
        assert (count.stepping is one) == (name not in ("several", "none")), name


def test_steps_before_the_training_count():
    one = SGD()
    model = make(compiled=one)
    work(one, 5)
    assert play(StepCount(), model, 1, 3, 3, lambda batch: work(one), False) == [8]
    resumed = StepCount()
    resumed.set_state({"batches": 6, "steps": 20})
    assert play(resumed, model, 1, 3, 3, lambda batch: work(one), False) == [23]
    assert resumed.get_state() == {"batches": 9, "steps": 23}


def test_data_that_end_in_an_execution_count_as_far_as_the_optimizer_went():
    one = SGD()
    model = make(execution_size=4, optimizers=[one])
    count = StepCount(hears_ends=True)
    count.begin_epoch(model, 0, None)
    for batch in (0, 4):
        count.begin_batch(batch)
        work(one, 4 if batch == 0 else 2)
        if batch == 0:
            count.end_batch()
    count.end_epoch()
    assert (count.batches, count.look()) == (6, 6)


def test_a_model_compiled_again_is_followed():
    first, second = SGD(), SGD()
    model = make(compiled=first)
    count = StepCount()
    count.begin_epoch(model, 0, 4)
    for batch in range(4):
        count.begin_batch(batch)
        if batch == 2:
            model.optimizer = make(compiled=second).optimizer
        work(model.optimizer)
    count.end_epoch()
    assert count.look() == 4
    assert count.optimizers == [second]


def test_a_copy_keeps_the_count_and_drops_the_training():
    one = SGD()
    count = StepCount()
    play(count, make(compiled=one), 1, 3, 3, lambda batch: work(one), False)
    copied = copy.deepcopy(count)
    assert copied.get_state() == count.get_state()
    assert (copied.optimizers, copied.stepping) == ([], None)
