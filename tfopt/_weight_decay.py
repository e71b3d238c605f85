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


def may_exclude(optimizer: Any, var_list: Any, var_names: Any) -> bool:
    """Check a call of `exclude_from_weight_decay`, which Keras accepts at any time and ignores after the first step.

    Args:
        optimizer: A Keras optimizer. Its own `_takes_weight_decay(variable)` decides where it has one.
        var_list: What the call got: None, or variables.
        var_names: What the call got: None, or regular expressions.

    Returns:
        True before the optimizer is built. False after that, if the call names nothing that decays: it changes nothing.

    Raises:
        TypeError: `var_list` or `var_names` is no list.
        ValueError: The optimizer is built, and the call names a variable that decays.
    """
    if hasattr(var_list, "shape"):  # which goes through its rows
        raise TypeError(f"`var_list` must be a list of variables. Received: one, var_list={var_list!r}")
    var_list = None if var_list is None else as_items("var_list", var_list, "be a list of variables")
    # Keras would take the letters of a string one by one.
    var_names = None if var_names is None else as_items("var_names", var_names, "be a list of regular expressions")
    if not optimizer.built:
        return True
    keys = {optimizer._var_key(variable) for variable in var_list or ()}
    patterns = [re.compile(name) for name in var_names or ()]

    def is_named(variable: Any) -> bool:
        name = _as_keras_sees_it(variable).name
        return optimizer._var_key(variable) in keys or any(pattern.search(name) for pattern in patterns)

    decays = getattr(optimizer, "_takes_weight_decay", lambda variable: takes_weight_decay(optimizer, variable))
    late = [v for v in optimizer._trainable_variables if decays(v) and is_named(v)]
    if late:
        names = ", ".join(str(getattr(v, "path", v.name)) for v in late[:3])
        raise ValueError(
            "exclude_from_weight_decay() must be called before the first step, when it is decided which variables "
            f"decay. Received: a call after it that names {len(late)} variables that decay ({names}"
            f"{', ...' if len(late) > 3 else ''}). Make a new optimizer, and exclude them at once"
        )
    return False
