"""The command line: explain a dataset, look at a run, list what there is.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 the run
broke off, 2 refused input, 130 interrupted.
"""

from jaxplain.cli.command import call as call
from jaxplain.cli.command import main as main
