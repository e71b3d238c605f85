"""Options of the two algorithms: what each takes, and what it says of the other's."""

from dataclasses import fields

import numpy as np
import pytest

from tfopt.bregman import PRESETS, RestartedSettings, Settings, SplittingSettings

NAMES = {kind: {field.name for field in fields(kind)} for kind in (Settings, RestartedSettings, SplittingSettings)}


@pytest.mark.parametrize("preset", PRESETS)
def test_an_option_of_the_other_algorithm_is_named_with_its_presets(preset):
    kind = type(PRESETS[preset])
    (other,) = {RestartedSettings, SplittingSettings} - {kind}
    owners = ", ".join(repr(name) for name in PRESETS if isinstance(PRESETS[name], other))
    for name in NAMES[other] - NAMES[Settings]:
        value = getattr(other(), name)
        with pytest.raises(ValueError, match=f"`{name}` is not an option of preset='{preset}'.*option: {owners}$"):
            Settings.from_arguments(preset, {name: value})
    for name in NAMES[kind]:
        assert Settings.from_arguments(preset, {name: getattr(PRESETS[preset], name)}) == PRESETS[preset]


def test_records_check_their_options_and_keep_plain_numbers():
    settings = RestartedSettings(linear_penalty=np.array([1, 2]), num_blocks=np.int64(3), step=np.float32(0.5))
    assert repr(settings) == repr(RestartedSettings(linear_penalty=(1.0, 2.0), num_blocks=3, step=0.5))
    for kind, name, value in ((SplittingSettings, "order", "sideways"), (RestartedSettings, "num_blocks", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            kind(**{name: value})
    with pytest.raises(TypeError, match=r"no option 'x'\. Its options are .*num_blocks.*seed"):
        Settings.from_arguments("paper", {"x": 1})
