"""Certified explanations of any JAX function, at dataset scale."""

from jaxplain import baselines as baselines
from jaxplain import transformed as transformed
from jaxplain.interpret.parts import Missing as Missing
from jaxplain.interpret.parts import MissingRule as MissingRule
from jaxplain.methods import contextual as contextual
from jaxplain.methods import groups as groups
from jaxplain.methods.concepts import ConceptInformation as ConceptInformation
from jaxplain.methods.concepts import concept_information as concept_information
from jaxplain.methods.contextual import CD_ACD as CD_ACD
from jaxplain.methods.contextual import CD_LSTM as CD_LSTM
from jaxplain.methods.contextual import CD_SHAPLEY as CD_SHAPLEY
from jaxplain.methods.contextual import CD_TRANSFORMER as CD_TRANSFORMER
from jaxplain.methods.contextual import CD_TRANSFORMER_QK as CD_TRANSFORMER_QK
from jaxplain.methods.contextual import contextual_decomposition as contextual_decomposition
from jaxplain.methods.contextual import group_scores as group_scores
from jaxplain.methods.contextual import hold as hold
from jaxplain.methods.contextual import lstm_rules as lstm_rules
from jaxplain.methods.contextual import missing as missing
from jaxplain.methods.contextual import named as named
from jaxplain.methods.gradient import input_x_gradient as input_x_gradient
from jaxplain.methods.gradient import saliency as saliency
from jaxplain.methods.information import WordInformation as WordInformation
from jaxplain.methods.information import layer_information as layer_information
from jaxplain.methods.information import word_information as word_information
from jaxplain.methods.path import expected_gradients as expected_gradients
from jaxplain.methods.path import integrated_gradients as integrated_gradients
from jaxplain.methods.smooth import smooth as smooth
from jaxplain.methods.spread import hidden_spread as hidden_spread
from jaxplain.methods.tokens import token_scores as token_scores
from jaxplain.registry import METHODS as METHODS
from jaxplain.registry import configure as configure
from jaxplain.run import Record as Record
from jaxplain.run import Records as Records
from jaxplain.run import Summary as Summary
from jaxplain.run import load as load
from jaxplain.run import run as run
from jaxplain.types import Attribution as Attribution
from jaxplain.types import DecomposedAttribution as DecomposedAttribution
from jaxplain.types import Explainer as Explainer
from jaxplain.types import JaxplainError as JaxplainError
from jaxplain.types import SampledAttribution as SampledAttribution
from jaxplain.types import Split as Split

__version__ = "0.1.0"
