"""The figures as drawn: a test looks at the data on their axes, not at how dark the file is."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def sheets(monkeypatch) -> list[Figure]:
    """Every figure that is saved, in order."""
    found: list[Figure] = []
    save = Figure.savefig

    def remember(self, *args, **options):
        found.append(self)
        return save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return found


def texts(figure: Figure) -> list[str]:
    """Title, cohort line, notice and whatever else is written beside the axes."""
    return [text.get_text() for text in figure.texts]


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]
