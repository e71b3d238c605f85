"""Figures and tables. Matplotlib and pandas are imported only when a figure or table is made."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import pandas

# Colour-blind readers can distinguish these colours (Okabe and Ito); the line styles help in black and white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


# At this width, in inches, text of 10 points is readable in a picture of 400 pixels.
WIDTH = 6.4


def get_axes(ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
    """Return the given axes, or new ones for None, with colours and line styles that change together."""
    try:
        from cycler import cycler
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'tfopt[plot]'") from error
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be Axes of matplotlib, or None. Received: ax={ax!r} of type {type(ax).__name__}")
    if ax is None:
        _, [ax] = make_panels()
    if not ax.lines:
        ax.set_prop_cycle(cycler(color=COLORS) + cycler(linestyle=LINE_STYLES))
    return ax


def make_panels(
    rows: int = 1, columns: int = 1, height: float = 4.0, **options: Any
) -> "tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]":
    """Return a figure of `WIDTH` and its panels, row by row, with the colours of `get_axes`; `height` in inches."""
    import matplotlib.pyplot as plt

    size = (WIDTH, height)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    return figure, [get_axes(panel) for panel in panels.flat]


def add_legend(ax: "matplotlib.axes.Axes") -> None:
    """Draw the legend beside the axes if the figure's layout makes room there, else where it covers least."""
    if ax.figure.get_layout_engine() is None:
        ax.legend(fontsize="small")
    else:
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def move_legends_above(figure: "matplotlib.figure.Figure", columns: int = 2) -> None:
    """Replace the legends of all axes by one above them, with each name once; the layout must be constrained."""
    named: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns, frameon=False)


def make_dataframe(columns: dict[str, Any], index: Any = None) -> "pandas.DataFrame":
    """Return a table of columns by name; `index` names the rows, and None numbers them."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Tables need pandas: pip install 'tfopt[plot]'") from error
    return pandas.DataFrame(columns, index=None if index is None else list(index))
