"""Figures and tables. Matplotlib and pandas are imported only when a figure or table is made."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

# Colour-blind readers can distinguish these colours (Okabe and Ito); the line styles help in black and white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


def get_axes(ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
    """Return the given axes, or new ones for None, with colours and line styles that change together."""
    try:
        import matplotlib.pyplot as plt
        from cycler import cycler
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'tfopt[plot]'") from error
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be Axes of matplotlib, or None. Received: ax={ax!r} of type {type(ax).__name__}")
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    if not ax.lines:
        ax.set_prop_cycle(cycler(color=COLORS) + cycler(linestyle=LINE_STYLES))
    return ax


def make_dataframe(columns: dict[str, Any], index: Any = None) -> "pandas.DataFrame":
    """Return a table of columns by name; `index` names the rows, and None numbers them."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Tables need pandas: pip install 'tfopt[plot]'") from error
    return pandas.DataFrame(columns, index=None if index is None else list(index))
