"""Colours: steps of a score on either side of zero, and what the terminal shows for them."""

import numpy as np

LEVELS = 4
# Dark letters on a tint are readable whatever the terminal's background is.
POSITIVE = ("", "", "#000000 on #f8d2a4", "#000000 on #f2a64e", "bold #000000 on #e67e00")
NEGATIVE = ("", "", "#000000 on #b5d4f4", "#000000 on #78b0ea", "bold #000000 on #4090e0")
# What is kept of a word, from nothing to all: readable as an order on dark and light alike.
KEPT = ("on #e4e6ee", "on #bcc4e0", "on #8c9acb", "on #5b6cb0", "on #2f3f8c")


def level(score: float, largest: float, levels: int) -> int:
    """The signed colour step of a score, 0 to `levels`, where `largest` gets the strongest."""
    if not largest or not np.isfinite(score):
        return 0
    return int(np.rint(score / largest * levels))
