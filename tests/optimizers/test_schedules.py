import keras
import numpy as np
import pytest

from tfopt.optimizers.schedules import PolynomialDecayWithWarmup


def test_follows_its_formula():
    schedule = PolynomialDecayWithWarmup(
        4.0, decay_steps=50, warmup_steps=10, power=3.0, initial_learning_rate=0.5, end_learning_rate=0.1
    )
    for step in range(80):
        expected = 0.5 + 3.5 * step / 10 if step < 10 else 0.1 + 3.9 * (1 - min(step - 10, 50) / 50) ** 3
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_is_continuous_at_the_end_of_the_warm_up():
    schedule = PolynomialDecayWithWarmup(1.0, decay_steps=10**6, warmup_steps=10**6)
    assert float(schedule(10**6)) == 1.0
    assert abs(float(schedule(10**6 - 1)) - float(schedule(10**6 + 1))) < 1e-5


def test_without_warm_up_it_starts_at_the_peak():
    assert float(PolynomialDecayWithWarmup(3.0, decay_steps=10)(0)) == 3.0


def test_works_on_tensors_of_any_integer_type_and_in_graphs():
    import tensorflow as tf

    schedule = PolynomialDecayWithWarmup(2.0, decay_steps=10, warmup_steps=4)
    compiled = tf.function(schedule, autograph=False)
    for dtype in ("int32", "int64"):
        rates = [float(compiled(tf.constant(step, dtype))) for step in range(15)]
        np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(15)], rtol=1e-6, atol=1e-6)


def test_is_serialisable():
    schedule = PolynomialDecayWithWarmup(2.0, 10, 4, 1.0, 0.1, 0.2)
    copied = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert copied.get_config() == schedule.get_config()
    assert float(copied(7)) == float(schedule(7))


@pytest.mark.parametrize(
    ("arguments", "name", "error"),
    [
        ({"learning_rate": -1.0}, "learning_rate", ValueError),
        ({"decay_steps": 0}, "decay_steps", ValueError),
        ({"decay_steps": 2.5}, "decay_steps", TypeError),
        ({"warmup_steps": -1}, "warmup_steps", ValueError),
        ({"power": 0}, "power", ValueError),
        ({"initial_learning_rate": "x"}, "initial_learning_rate", TypeError),
        ({"end_learning_rate": float("nan")}, "end_learning_rate", ValueError),
    ],
)
def test_bad_arguments(arguments, name, error):
    with pytest.raises(error, match=f"`{name}` must be .*Received"):
        PolynomialDecayWithWarmup(**{"learning_rate": 1.0, "decay_steps": 10, **arguments})


def test_counts_beyond_what_float16_can_hold():
    keras.config.set_floatx("float16")
    schedule = PolynomialDecayWithWarmup(8.0, decay_steps=100_000, warmup_steps=5000, power=1.0)
    rates = [float(schedule(step)) for step in (4097, 55_000, 105_000)]
    assert rates == pytest.approx([8.0 * 4097 / 5000, 4.0, 0.0], rel=1e-6)
