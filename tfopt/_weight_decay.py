"""Exclusions from weight decay, which can change until the first step of an optimizer."""

import re
from typing import Any

import keras

from tfopt import _keras
from tfopt._checks import as_items, check_pattern


def takes_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Return whether Keras decays a variable of an optimizer, given all exclusions so far."""
    return bool(_keras.use_weight_decay(optimizer)(_as_keras_sees_it(variable)))


def _as_keras_sees_it(variable: Any) -> Any:
    # On TensorFlow, Keras uses the backend's variable, whose name is the full path; elsewhere, the last part only.
    is_wrapped = keras.backend.backend() == "tensorflow" and isinstance(variable, keras.Variable)
    return variable.value if is_wrapped else variable


def exclude(optimizer: Any, var_list: Any, var_names: Any) -> None:
    """Exclude variables from an optimizer's weight decay. Each regular expression is searched for separately.

    Keras joins the expressions with "|", so that flags such as "(?i)" and group numbers of one expression affect the
    others. Keras also accepts exclusions after the first step, and then ignores them.

    Args:
        optimizer: A Keras optimizer. If it has `_takes_weight_decay(variable)`, this method decides.
        var_list: None, or variables.
        var_names: None, or regular expressions.

    Raises:
        TypeError: `var_list` is not a list of variables, or `var_names` is not a list of strings.
        ValueError: A string is not a regular expression, or the optimizer is built and the call names a variable that
            decays.
    """
    variables, names = _check_variables(var_list), _check_names(var_names)
    patterns = [re.compile(name) for name in names]
    if optimizer.built:
        _refuse_late_exclusion(optimizer, variables, patterns)
        return
    kind = type(optimizer)
    keras.optimizers.Optimizer.exclude_from_weight_decay(optimizer, variables)

    def uses_weight_decay(variable: Any) -> bool:
        return _keras.use_weight_decay(kind)(optimizer, variable) and not _is_matched(variable, patterns)

    # This changes the instance, because the class may be one of Keras's.
    _keras.use_weight_decay.set(optimizer, uses_weight_decay)


def _is_matched(variable: Any, patterns: list[re.Pattern[str]]) -> bool:
    name = variable.name.removesuffix(":0")  # TensorFlow adds ":0", which "bias$" would not match
    return any(pattern.search(name) for pattern in patterns)


def _refuse_late_exclusion(optimizer: Any, variables: tuple, patterns: list[re.Pattern[str]]) -> None:
    # A late call is accepted if it names no variable that decays, because it changes nothing.
    if not optimizer.weight_decay:
        return
    keys = {_keras.variable_key(optimizer)(variable) for variable in variables}

    def is_named(variable: Any) -> bool:
        return _keras.variable_key(optimizer)(variable) in keys or _is_matched(_as_keras_sees_it(variable), patterns)

    decays = getattr(optimizer, "_takes_weight_decay", lambda variable: takes_weight_decay(optimizer, variable))
    late = [v for v in _keras.optimizer_variables(optimizer) if decays(v) and is_named(v)]
    if late:
        shown = ", ".join(str(getattr(v, "path", v.name)) for v in late[:3])
        raise ValueError(
            "exclude_from_weight_decay() must be called before the first step, which fixes the variables that decay. "
            f"Received: a later call that names {len(late)} variables that decay ({shown}"
            f"{', ...' if len(late) > 3 else ''}). Make a new optimizer, and exclude them before its first step"
        )


def _check_variables(var_list: Any) -> tuple:
    expected = "be a list of variables"
    if hasattr(var_list, "shape"):  # iteration would return its rows
        raise TypeError(f"`var_list` must {expected}. Received: a single one, var_list={var_list!r}")
    variables = as_items("var_list", () if var_list is None else var_list, expected)
    for variable in variables:
        if not hasattr(variable, "assign"):  # variables of Keras and TensorFlow have it; arrays and tensors do not
            raise TypeError(f"`var_list` must {expected}. Received an element {variable!r}")
    return variables


def _check_names(var_names: Any) -> tuple:
    expected = "be a list of regular expressions"
    # For a string, Keras would use each letter as an expression.
    names = as_items("var_names", () if var_names is None else var_names, expected)
    for name in names:
        check_pattern("var_names", name, expected)
    return names
