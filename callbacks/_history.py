"""The measurements of a callback."""

from typing import TYPE_CHECKING, Any, Self

from tfopt import _plotting
from tfopt._record import Record
from tfopt.callbacks._columns import by_path

if TYPE_CHECKING:
    import pandas


class MeasurementHistory(Record, dict[str, list]):
    """What a callback has measured: a dictionary of lists with one entry for each measurement.

    The `history` of each callback says which lists it has. `save` and `load` keep every bit.

    Example:
        >>> MeasurementHistory(epoch=[0, 1], step=[0, 7])["step"]
        [0, 7]
    """

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return the measurements as a table.

        Returns:
            One row per measurement, and one column for each list; values by variable in a column for each, called by
            the name of the list and the variable's path, with NaN where it was not measured.
        """
        columns: dict[str, list] = {}
        for name, series in self.items():
            if any(isinstance(entry, dict) for entry in series):
                columns |= {f"{name}/{path}": values for path, values in by_path(series).items()}
            else:
                columns[name] = series
        return _plotting.make_dataframe(columns)

    def _content(self) -> dict[str, Any]:
        return self

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Self:
        if not all(isinstance(series, list) for series in content.values()):
            raise ValueError("it holds more than lists")
        return cls(content)
