"""Certified explanations of any JAX function, at dataset scale."""

from jaxplain import baselines as baselines
from jaxplain.methods.gradient import input_x_gradient as input_x_gradient
from jaxplain.methods.gradient import saliency as saliency
from jaxplain.methods.path import expected_gradients as expected_gradients
from jaxplain.methods.path import integrated_gradients as integrated_gradients
from jaxplain.methods.smooth import smooth as smooth
from jaxplain.registry import METHODS as METHODS
from jaxplain.registry import configure as configure
from jaxplain.run import Record as Record
from jaxplain.run import Records as Records
from jaxplain.run import Summary as Summary
from jaxplain.run import load as load
from jaxplain.run import run as run
from jaxplain.types import Attribution as Attribution
from jaxplain.types import Explainer as Explainer
from jaxplain.types import JaxplainError as JaxplainError
from jaxplain.types import SampledAttribution as SampledAttribution

__version__ = "0.1.0"
