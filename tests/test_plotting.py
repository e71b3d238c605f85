"""Colours, legends and ticks that all figures share."""

import figure_rules
import matplotlib.pyplot as plt
import pytest

from tfopt import _plotting, nqm


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [
        ([1, 8, 64, 512], ["2^{0}", "2^{3}", "2^{6}", "2^{9}"]),
        ([2.0**k for k in range(9)], ["2^{0}", "2^{2}", "2^{4}", "2^{6}", "2^{8}"]),
        ([10, 100, 300], ["10", "100", "300"]),
    ],
)
def test_ticks_stand_on_batch_sizes(sizes, ticks):
    ax = nqm.plot_steps_to_target({"a curve with a long name": (sizes, [1.0 / size for size in sizes])})
    figure_rules.check(ax.figure)
    assert set(ax.get_xticks()) <= set(sizes)
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert len(shown) == len(ticks)
    assert all(tick in label for tick, label in zip(ticks, shown, strict=True))


def test_a_legend_stands_beside_the_axes_where_the_layout_makes_room():
    _, [above, below] = _plotting.make_panels(2)
    plain = plt.figure().add_subplot()
    for ax in (above, below, plain):
        ax.plot([0, 1], [0, 1], label="line")
        _plotting.add_legend(ax)
        ax.figure.canvas.draw()
    extents = [(ax.get_legend().get_window_extent(), ax.patch.get_window_extent()) for ax in (above, below, plain)]
    inside = [legend.overlaps(axes) for legend, axes in extents]
    assert inside == [False, False, True]


def test_one_legend_above_all_axes_has_each_name_once():
    figure, panels = _plotting.make_panels(1, 2)
    for ax in panels:
        ax.plot([0, 1], [0, 1], label="line")
        ax.plot([0, 1], [1, 0], label="other")
        ax.legend()
    _plotting.move_legends_above(figure)
    figure_rules.check(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["line", "other"]
    assert all(ax.get_legend() is None for ax in panels)


def draw_over(ax):
    ax.legend(loc="center")


def clip(ax):
    ax.set_ylim(0, 0.5)


def recolour(ax):
    ax.lines[0].set_color("red")


@pytest.mark.parametrize(
    ("spoil", "message"), [(draw_over, "a legend covers axes"), (clip, "clipped"), (recolour, "palette")]
)
def test_the_rules_for_figures_find_faults(spoil, message):
    ax = _plotting.get_axes()
    ax.plot([0, 1], [0, 1], label="line")
    spoil(ax)
    with pytest.raises(AssertionError, match=message):
        figure_rules.check(ax.figure)
