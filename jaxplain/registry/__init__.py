"""The methods by name: what each claims, which options it takes, and how text is read as options.

A table for callers that start from a name (the command line, tests, benchmarks). Code that knows
which method it wants calls it.
"""

from jaxplain.registry.method import Method as Method
from jaxplain.registry.reading import configure as configure
from jaxplain.registry.reading import find as find
from jaxplain.registry.reading import options as options
from jaxplain.registry.table import BASELINES as BASELINES
from jaxplain.registry.table import DECOMPOSITIONS as DECOMPOSITIONS
from jaxplain.registry.table import METHODS as METHODS
