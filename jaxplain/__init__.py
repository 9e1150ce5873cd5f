"""Certified explanations of any JAX function, at dataset scale."""

from jaxplain.types import Attribution as Attribution
from jaxplain.types import Explainer as Explainer
from jaxplain.types import JaxplainError as JaxplainError
from jaxplain.types import SampledAttribution as SampledAttribution

__version__ = "0.1.0"
