"""Numbers as a person reads them; page.js writes the same."""

import numpy as np

from jaxplain.report.parts import Part


def signed(value: float) -> str:
    return f"{value:+.4g}".replace("-", "−")


def rounded(value: float) -> float:
    """A score as the page keeps it: four digits.

    >>> rounded(0.123456), rounded(-2.00001e-9)
    (0.1235, -2e-09)
    """
    return float(f"{value:.4g}")


def brief(value: float) -> str:
    return f"{value:.1e}".replace("-", "−") if value else "0"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def share(value: float) -> str:
    """A relative gap as a person reads it.

    >>> share(0.0123), share(2.5e-8), share(float("inf"))
    ('1.2%', '<0.0001%', 'f(x) = f(baseline)')
    """
    if not np.isfinite(value):
        return "f(x) = f(baseline)"
    if value > 10:
        return ">1000%"
    if value < 1e-6:
        return "<0.0001%" if value else "0%"
    return f"{float(f'{100 * value:.2g}'):g}%"


def exact(part: Part, position: int) -> str:
    text = signed(float(part.scores[position]))
    if part.errors is not None:
        text += f" ± {float(part.errors[position]):.2g}"
    return text
