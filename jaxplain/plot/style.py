"""Figures, colours, and what they mean."""

import io
from typing import Any

from jaxplain.types import JaxplainError

EM = 11.0  # points: the size of letters
PAD = 0.18  # around a word, in sizes of its letters
LINE = 22.0  # points from line to line of a text


def figure_of(width: float, height: float, layout: Any = None) -> Any:
    """An empty figure that shows itself in a notebook, once, whatever backend is set there."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JaxplainError("figures need matplotlib: pip install 'jaxplain[plot]'") from error

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=110)
            return file.getvalue()

    figure = Shown(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def ends() -> tuple[Any, Any, Any]:
    """The colours of the most negative score, of none, and of the most positive."""
    from jaxplain.report.png import NEGATIVE, NEUTRAL, POSITIVE

    return tuple(tuple(colour / 255) for colour in (NEGATIVE, NEUTRAL, POSITIVE))  # type: ignore


def colours_of(sign: str, size: float) -> tuple[Any, Any]:
    """A colour map, and what brings scores to it."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    below, middle, above = ends()
    told = {"all": (below, middle, above), "negative": (below, middle)}.get(sign, (middle, above))
    low, high = -size * (sign in ("all", "negative")), size * (sign != "negative")
    # An odd number of steps: the middle one has no colour at all.
    colours = LinearSegmentedColormap.from_list(f"jaxplain {sign}", told, N=257)
    return colours, Normalize(low, high, clip=True)


def legend(figure: Any, colours: Any, norm: Any, **where: Any) -> None:
    """What the colours mean, in f's units."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, colours), **where)
    ticks = sorted({norm.vmin, 0.0, norm.vmax})
    bar.set_ticks(ticks, labels=[f"{t:+.2g}".replace("-", "−") if t else "0" for t in ticks])
    bar.ax.tick_params(labelsize=EM - 3, length=2)
    bar.outline.set_visible(False)
