"""The terminal's colours: by steps of a score, 0 to `LEVELS`, on either side of zero."""

LEVELS = 4
# Dark letters on a tint are readable whatever the terminal's background is.
POSITIVE = ("", "", "#000000 on #f8d2a4", "#000000 on #f2a64e", "bold #000000 on #e67e00")
NEGATIVE = ("", "", "#000000 on #b5d4f4", "#000000 on #78b0ea", "bold #000000 on #4090e0")
