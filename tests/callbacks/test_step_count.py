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


def play(count, model, epochs, total, batches_of_epoch, act, hears_ends, looks_often=False):
    """Tell the counter of whole epochs, and return its steps after each; `act(batch)` is the training."""
    found = []
    for epoch in range(epochs):
        count.begin_epoch(model, epoch, total)
        for batch in range(0, batches_of_epoch, model.steps_per_execution):
            count.begin_batch(batch)
            if looks_often:
                count.look()
            for inside in range(batch, min(batch + model.steps_per_execution, batches_of_epoch)):
                act(inside)
            if hears_ends:
                count.end_batch()
        count.end_epoch()
        found.append(count.look())
    return found


class Training:
    """Two optimizers of the weights, one of a temperature, and weights that may be moved by hand, in 7 batches."""

    def __init__(self, execution_size):
        self.one, self.two, self.other = SGD(), SGD(), SGD()
        self.model = make(execution_size, [self.one, self.two])
        self.other.build([keras.Variable(0.0)])
        self.model.own.append(self.other)
        self.batches = 0

    def move(self):
        self.model.trainable_variables[0].assign_add(1.0)

    def due(self, every):
        return self.batches % every == 0

    def make_late(self):
        if self.batches == 1:
            self.model.own += [self.one, self.two]


# What each batch does -> the steps after one epoch of 7 batches and after two; the second pair is for executions of 3.
BATCHES = {
    "one": (lambda t: work(t.one), [7, 14]),
    "one, every second batch": (lambda t: t.due(2) and work(t.one), [3, 7]),
    "one, every fourth batch": (lambda t: t.due(4) and work(t.one), [1, 3]),
    "one, never in the first epoch": (lambda t: t.due(8) and work(t.one), [0, 1]),
    "one, thrice": (lambda t: work(t.one, 3), [21, 42]),
    "several": (lambda t: [work(t.one), work(t.two)], [7, 14]),
    "several, every fourth batch": (lambda t: t.due(4) and [work(t.one), work(t.two)], [1, 3]),
    "one, and another every fifth batch": (lambda t: [work(t.one), t.due(5) and work(t.two)], [7, 14]),
    "by turns": (lambda t: work(t.one if t.due(2) else t.two), [7, 14], [5, 10]),
    "a temperature, and one every fourth batch": (lambda t: [work(t.other), t.due(4) and work(t.one)], [1, 3]),
    "by hand": (lambda t: t.move(), [7, 14]),
    "by hand, every second batch": (lambda t: t.due(2) and t.move(), [7, 14]),
    "by hand, and a temperature": (lambda t: [t.move(), work(t.other)], [7, 14]),
    "one, and averages by hand": (lambda t: [t.due(2) and [work(t.one), t.move()], t.due(3) and t.move()], [3, 7]),
    "nothing": (lambda t: None, [0, 0]),
    "made late": (lambda t: [t.make_late(), work(t.one)], [7, 14]),
    "made late, by turns": (
        lambda t: [t.make_late(), work(t.one if t.due(2) else t.two)],
        [7, 14],
        [5, 10],
    ),
    "made late, every fourth batch": (lambda t: [t.make_late(), t.due(4) and work(t.one)], [1, 3]),
}


@pytest.mark.parametrize("looks_often", [False, True])
@pytest.mark.parametrize("hears_ends", [False, True])
@pytest.mark.parametrize("execution_size", [1, 3])
def test_optimizers_count_their_steps_whenever_one_looks(execution_size, hears_ends, looks_often):
    for name, (act, *expected) in BATCHES.items():
        training, count = Training(execution_size), StepCount(hears_ends)
        if name.startswith("made late"):
            training.model.own.clear()
        if name == "one, and averages by hand" and looks_often:
            continue  # Weights that are moved by hand before an optimizer has worked are steps.

        def train(batch, training=training, act=act):
            training.batches += 1
            act(training)

        found = play(count, training.model, 2, 7, 7, train, hears_ends, looks_often)
        assert found == (expected[0] if execution_size == 1 else expected[-1]), name
        assert count.batches == 14
        assert count.counts_batches == (name == "nothing" or name.startswith("by hand")), name


def test_without_any_optimizer_each_batch_is_a_step():
    count = StepCount()
    assert play(count, make(), 2, 7, 7, lambda batch: None, False) == [7, 14]
    assert count.counts_batches


def test_a_counter_that_a_callback_resets_counts_on():
    one, count = SGD(), StepCount()
    model, found = make(compiled=one), []
    for epoch in range(3):
        count.begin_epoch(model, epoch, 4)
        one.iterations.assign(0)  # a warm restart
        for batch in range(4):
            count.begin_batch(batch)
            work(one)
        count.end_epoch()
        found.append(count.look())
    assert found == [4, 8, 12]


def test_steps_before_the_training_count():
    one = SGD()
    model = make(compiled=one)
    work(one, 5)
    assert play(StepCount(), model, 1, 3, 3, lambda batch: work(one), False) == [8]
    resumed = StepCount()
    resumed.set_state({"batches": 6, "steps": 20})
    assert play(resumed, model, 1, 3, 3, lambda batch: work(one), False) == [23]
    resumed.begin_epoch(model, 1, 3)
    resumed.begin_batch(0)
    work(one)
    resumed.end_epoch()
    assert resumed.get_state() == {"batches": 10, "steps": 24}


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
            second.build(model.trainable_variables)
            model.optimizer = second
        work(model.optimizer)
    count.end_epoch()
    assert count.look() == 4


def test_an_optimizer_of_another_training_brings_no_steps_with_it():
    first, second = SGD(), SGD()
    model, count = make(compiled=first), StepCount()
    second.build(model.trainable_variables)
    work(second, 100)
    found = []
    for epoch in range(2):
        count.begin_epoch(model, epoch, 4)
        model.optimizer = (first, second)[epoch]
        for batch in range(4):
            count.begin_batch(batch)
            if batch % 2:
                work(model.optimizer)
        count.end_epoch()
        found.append(count.look())
    assert found == [2, 4]


def test_a_copy_keeps_the_count_and_drops_the_training():
    one = SGD()
    count = StepCount()
    play(count, make(compiled=one), 1, 3, 3, lambda batch: work(one), False)
    copied = copy.deepcopy(count)
    assert copied.get_state() == count.get_state()
    assert all(not each for name in ("_watched", "_used", "_weights", "_model") for each in [getattr(copied, name)])
