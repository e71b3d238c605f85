"""Exclusions from weight decay: part of an optimizer's settings until its first step, fixed from then on."""

import re
from typing import Any

import keras

from tfopt._checks import as_items


def takes_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Tell whether Keras decays a variable, by what has been excluded so far.

    Args:
        optimizer: A Keras optimizer.
        variable: One of its variables.

    Returns:
        Whether it does.
    """
    return bool(optimizer._use_weight_decay(_as_keras_sees_it(variable)))


def _as_keras_sees_it(variable: Any) -> Any:
    # Keras looks at the backend's variable on TensorFlow, whose name is the full path; elsewhere at the last part only.
    is_wrapped = keras.backend.backend() == "tensorflow" and isinstance(variable, keras.Variable)
    return variable.value if is_wrapped else variable


def check_exclusion(optimizer: Any, var_list: Any, var_names: Any) -> tuple[tuple, tuple] | None:
    """Check a call of `exclude_from_weight_decay`, which Keras accepts at any time and ignores after the first step.

    Args:
        optimizer: A Keras optimizer. Its own `_takes_weight_decay(variable)` decides where it has one.
        var_list: What the call got: None, or variables.
        var_names: What the call got: None, or regular expressions.

    Returns:
        What Keras is to be given before the optimizer is built: variables and names. None after that, if the call names
        nothing that decays: it changes nothing.

    Raises:
        TypeError: `var_list` is no list of variables, or `var_names` no list of strings.
        ValueError: `var_names` holds something else than regular expressions; or the optimizer is built, and the call
            names a variable that decays.
    """
    variables, names = _check_variables(var_list), _check_names(var_names)
    if not optimizer.built:
        return variables, names
    if not optimizer.weight_decay:
        return None
    keys = {optimizer._var_key(variable) for variable in variables}
    patterns = [re.compile(name) for name in names]

    def is_named(variable: Any) -> bool:
        name = _as_keras_sees_it(variable).name
        return optimizer._var_key(variable) in keys or any(pattern.search(name) for pattern in patterns)

    decays = getattr(optimizer, "_takes_weight_decay", lambda variable: takes_weight_decay(optimizer, variable))
    late = [v for v in optimizer._trainable_variables if decays(v) and is_named(v)]
    if late:
        shown = ", ".join(str(getattr(v, "path", v.name)) for v in late[:3])
        raise ValueError(
            "exclude_from_weight_decay() must be called before the first step, when it is decided which variables "
            f"decay. Received: a call after it that names {len(late)} variables that decay ({shown}"
            f"{', ...' if len(late) > 3 else ''}). Make a new optimizer, and exclude them at once"
        )
    return None


def _check_variables(var_list: Any) -> tuple:
    expected = "be a list of variables"
    if hasattr(var_list, "shape"):  # which goes through its rows
        raise TypeError(f"`var_list` must {expected}. Received: one, var_list={var_list!r}")
    variables = as_items("var_list", () if var_list is None else var_list, expected)
    for variable in variables:
        if not hasattr(variable, "assign"):  # those of Keras and of TensorFlow have it; arrays and tensors do not
            raise TypeError(f"`var_list` must {expected}. Received an element {variable!r}")
    return variables


def _check_names(var_names: Any) -> tuple:
    expected = "be a list of regular expressions"
    # Keras would take the letters of a string one by one.
    names = as_items("var_names", () if var_names is None else var_names, expected)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`var_names` must {expected}. Received an element {name!r}")
        try:
            re.compile(name)
        except re.error as error:
            raise ValueError(f"`var_names` holds {name!r}, which is not a regular expression: {error}") from error
    return names
