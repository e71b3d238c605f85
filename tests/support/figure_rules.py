"""What every figure of the examples must satisfy, so that a reader of a small picture sees all data."""

import itertools
import re

import matplotlib.colors
import matplotlib.text
import numpy as np

from tfopt import _plotting

GREY = re.compile(r"#(..)\1\1$")  # For bounds, limits and the like.
SMALLEST_TEXT = 8.0  # Points; in a figure 6.4 inches wide and 400 pixels, such text is 7 pixels high.


def check(figure):
    """Raise AssertionError if a figure is too wide, hides or clips data, or uses other colours than the palette."""
    figure.canvas.draw()
    assert figure.get_figwidth() <= _plotting.WIDTH
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= SMALLEST_TEXT
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend() is not None)]
    for legend, ax in itertools.product(legends, figure.axes):
        assert not legend.get_window_extent().overlaps(ax.patch.get_window_extent()), "a legend covers axes"
    for ax in figure.axes:
        for line in ax.lines:
            color = matplotlib.colors.to_hex(line.get_color()).upper()
            assert color in _plotting.COLORS or GREY.match(color), f"{color} is not in the palette"
            if line.get_transform() == ax.transData:
                check_is_inside(ax, line.get_xydata())
        for collection in ax.collections:
            if collection.get_transform() == ax.transData:
                for path in collection.get_paths():
                    check_is_inside(ax, path.vertices)


def check_is_inside(ax, points):
    """Raise AssertionError if a point that the scales of the axes can show lies outside the axes."""
    points = np.ma.filled(points, np.nan).astype(float)
    for axis, column in ((ax.xaxis, 0), (ax.yaxis, 1)):
        low, high = {"log": (0.0, np.inf), "logit": (0.0, 1.0)}.get(axis.get_scale(), (-np.inf, np.inf))
        points = points[(points[:, column] > low) & (points[:, column] < high)]
    where = ax.transAxes.inverted().transform(ax.transData.transform(points))
    outside = points[(where < -1e-3).any(axis=1) | (where > 1 + 1e-3).any(axis=1)]
    assert not len(outside), f"{ax.get_title() or ax.get_ylabel()}: clipped at {outside[:3]}"
