import numpy as np
import pytest

from tfopt import _checks


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int16(3)])
def test_numbers_become_floats(value):
    assert _checks.check_number("x", value) == 3.0
    assert type(_checks.check_number("x", value)) is float


@pytest.mark.parametrize("value", ["3", None, True, 1j, [1.0], np.array([1.0])])
def test_what_is_not_a_number(value):
    with pytest.raises(TypeError, match=r"`x` must be a finite number\. Received: x="):
        _checks.check_number("x", value)


def test_bounds_of_numbers():
    assert _checks.check_number("x", 1, minimum=1, maximum=1) == 1.0
    for keywords in ({"minimum": 1, "exclusive_minimum": True}, {"maximum": 1, "exclusive_maximum": True},
                     {"minimum": 1.5}, {"maximum": 0.5}):  # fmt: skip
        with pytest.raises(ValueError, match=r"`x` must be a finite number [<>]=? [0-9.]+\. Received: x=1"):
            _checks.check_number("x", 1, **keywords)


def test_integers():
    assert _checks.check_integer("n", np.int32(4), minimum=4, maximum=4) == 4
    for value in (4.0, "4", True, None):
        with pytest.raises(TypeError, match="`n` must be an integer"):
            _checks.check_integer("n", value)
    with pytest.raises(ValueError, match="`n` must be an integer >= 5"):
        _checks.check_integer("n", 4, minimum=5)
    with pytest.raises(ValueError, match="`n` must be an integer >= 1 and <= 3"):
        _checks.check_integer("n", 4, minimum=1, maximum=3)


def test_choices_and_flags():
    assert _checks.check_choice("c", "a", ("a", "b")) == "a"
    assert _checks.check_flag("f", False) is False
    with pytest.raises(ValueError, match="`c` must be one of 'a', 'b'. Received: c='d'"):
        _checks.check_choice("c", "d", ("a", "b"))
    with pytest.raises(TypeError, match="`f` must be True or False. Received: f=0"):
        _checks.check_flag("f", 0)


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_the_old_keras_is_refused(value, monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    with pytest.raises(ImportError, match=f"TF_USE_LEGACY_KERAS={value}"):
        _checks.check_keras_3()


def test_keras_3_is_welcome(monkeypatch):
    for value in ("0", ""):
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
        _checks.check_keras_3()
    monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    _checks.check_keras_3()
