"""Figures of explanations, for notebooks and papers: text, images, bars.

Orange raises f(x), blue lowers it, as on the pages; the range is symmetric about 0. Every function
takes a record of a run, an attribution, or the scores themselves, and returns a matplotlib `Figure`
that shows itself in a notebook: change it through `figure.axes`, write it by `figure.savefig`.
"""

from jaxplain.plot.figures import bar as bar
from jaxplain.plot.figures import image as image
from jaxplain.plot.figures import text as text
