"""Every optimizer of the table under every pair of circumstances, through compile and fit."""

import contract
import numpy as np
import pytest
from optimizer_table import CLASSES, TABLE

CASES = contract.make_cases(list(TABLE))


def test_the_first_row_of_every_class_is_known():
    first = {}
    for name, row in TABLE.items():
        first.setdefault(type(row.make()), name)
    assert tuple(first.values()) == CLASSES


def test_every_pair_occurs_and_the_core_in_full():
    assert not contract.missing_pairs(CASES)
    core = {(case.optimizer, case.execution, case.dtype) for case in CASES if case.optimizer in contract.IN_FULL}
    assert len(core) == len(contract.IN_FULL) * len(contract.EXECUTIONS) * len(contract.DTYPES)
    assert {(case.optimizer, case.execution) for case in CASES} == {
        (name, execution)
        for name in TABLE
        for execution in contract.EXECUTIONS
        if name in CLASSES or execution != "graph"
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, tmp_path):
    row = TABLE[case.optimizer]
    actual, expected = contract.run(row, case, tmp_path), contract.expect(row, case)
    for name, values in expected.items():
        error = np.linalg.norm(actual[name] - values) / max(np.linalg.norm(values), 1e-12)
        assert error < contract.tolerance_of(case), f"{name}: relative error {error:.1e}"
    if case.feature == "frozen":
        np.testing.assert_array_equal(actual["kernel"], expected["kernel"])
