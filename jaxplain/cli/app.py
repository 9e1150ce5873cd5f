"""The command that the others belong to."""

from cyclopts import App, Parameter

import jaxplain

app = App(
    name="jaxplain",
    help="Explain what a model looked at, for every example of a dataset, on every device.\n\n"
    "Start with `jaxplain explain`: it needs no argument and no network.",
    version=jaxplain.__version__,
    help_format="markdown",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
