"""Exclusions from weight decay: part of an optimizer's settings until its first step, fixed from then on."""

import re
from typing import Any

import keras

from tfopt._checks import as_items, check_pattern


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


def exclude(optimizer: Any, var_list: Any, var_names: Any) -> None:
    """Exclude variables from an optimizer's weight decay. Each regular expression is searched for by itself.

    Keras joins the expressions by "|". Then flags such as "(?i)", and numbers of groups, of one expression act on the
    others. Keras also accepts exclusions after the first step, and ignores them.

    Args:
        optimizer: A Keras optimizer. Its own `_takes_weight_decay(variable)` decides where it has one.
        var_list: None, or variables.
        var_names: None, or regular expressions.

    Raises:
        TypeError: `var_list` is no list of variables, or `var_names` no list of strings.
        ValueError: `var_names` holds something else than regular expressions; or the optimizer is built, and the call
            names a variable that decays.
    """
    variables, names = _check_variables(var_list), _check_names(var_names)
    patterns = [re.compile(name) for name in names]
    if optimizer.built:
        _refuse_late_exclusion(optimizer, variables, patterns)
        return
    kind = type(optimizer)
    keras.optimizers.Optimizer.exclude_from_weight_decay(optimizer, variables)

    def uses_weight_decay(variable: Any) -> bool:
        return kind._use_weight_decay(optimizer, variable) and not _is_matched(variable, patterns)

    # On the instance, as the class may be one of Keras's.
    optimizer._use_weight_decay = uses_weight_decay


def _is_matched(variable: Any, patterns: list[re.Pattern[str]]) -> bool:
    name = variable.name.removesuffix(":0")  # which TensorFlow adds, so that "bias$" would match nothing
    return any(pattern.search(name) for pattern in patterns)


def _refuse_late_exclusion(optimizer: Any, variables: tuple, patterns: list[re.Pattern[str]]) -> None:
    # A late call that names nothing that decays changes nothing, and is accepted.
    if not optimizer.weight_decay:
        return
    keys = {optimizer._var_key(variable) for variable in variables}

    def is_named(variable: Any) -> bool:
        return optimizer._var_key(variable) in keys or _is_matched(_as_keras_sees_it(variable), patterns)

    decays = getattr(optimizer, "_takes_weight_decay", lambda variable: takes_weight_decay(optimizer, variable))
    late = [v for v in optimizer._trainable_variables if decays(v) and is_named(v)]
    if late:
        shown = ", ".join(str(getattr(v, "path", v.name)) for v in late[:3])
        raise ValueError(
            "exclude_from_weight_decay() must be called before the first step, when it is decided which variables "
            f"decay. Received: a call after it that names {len(late)} variables that decay ({shown}"
            f"{', ...' if len(late) > 3 else ''}). Make a new optimizer, and exclude them at once"
        )


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
        check_pattern("var_names", name, expected)
    return names
