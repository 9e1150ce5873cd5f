"""What a person looks at: a run as a one-file page, or in the terminal."""

from jaxplain.report.api import page as page
from jaxplain.report.api import terminal as terminal
from jaxplain.report.compare import compare as compare
from jaxplain.report.corpus import corpus as corpus
