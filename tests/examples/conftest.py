import figure_rules
import matplotlib.figure
import pytest


@pytest.fixture(scope="module", autouse=True)
def checked_figures():
    """Checks every figure that an example writes."""
    save = matplotlib.figure.Figure.savefig

    def check_and_save(figure, *args, **options):
        figure_rules.check(figure)
        save(figure, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", check_and_save)
        yield
