"""The table of methods, and of what a name may stand for in their options."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxplain import baselines
from jaxplain.methods import contextual, relevance
from jaxplain.methods.deeplift import DEEP_LIFT, deep_lift, deep_shap
from jaxplain.methods.gradient import input_x_gradient, saliency
from jaxplain.methods.lime import lime
from jaxplain.methods.path import expected_gradients, integrated_gradients
from jaxplain.methods.perturbation import feature_ablation
from jaxplain.methods.rectified import deconvnet, guided_backprop
from jaxplain.methods.regression import kernel_shap
from jaxplain.methods.shapley import shapley_sampling
from jaxplain.methods.smooth import smooth
from jaxplain.methods.tokens import token_scores
from jaxplain.registry.method import Method

DECOMPOSITIONS: Mapping[str, contextual.Rules] = MappingProxyType(
    {
        "shapley": contextual.CD_SHAPLEY,
        "acd": contextual.CD_ACD,
        "lstm": contextual.CD_LSTM,
        "transformer": contextual.CD_TRANSFORMER,
        "transformer_qk": contextual.CD_TRANSFORMER_QK,
    }
)
_RELEVANCE = MappingProxyType(
    {
        "epsilon": relevance.LRP_EPSILON,
        "zero": relevance.LRP_ZERO,
        "gamma": relevance.LRP_GAMMA,
        "alpha2_beta1": relevance.LRP_ALPHA2_BETA1,
        "alpha1_beta0": relevance.LRP_ALPHA1_BETA0,
        "epsilon_plus": relevance.epsilon_plus(),
        "attention": relevance.ATTN_LRP,
        "attention_held": relevance.CP_LRP,
        "gates_held": relevance.CP_LRP,  # by Arras et al. 2017 for LSTMs
        "deep_taylor": relevance.deep_taylor(),
    }
)
_RESCALE = MappingProxyType({"rescale": DEEP_LIFT})
_GRADIENT = functools.partial(saliency, absolute=False)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "saliency",
                saliency,
                "magnitude of the gradient: how fast the score moves with each input",
                linearity=False,
            ),
            Method(
                "input_x_gradient",
                input_x_gradient,
                "input times gradient: a first-order guess of each input's part",
            ),
            Method(
                "integrated_gradients",
                integrated_gradients,
                "average gradient on the way from a baseline: parts that add up to the difference",
                complete=True,
                refined_by="steps",
            ),
            Method(
                "expected_gradients",
                expected_gradients,
                "integrated gradients averaged over a set of baselines",
                complete=True,
                needs_key=True,
                needs_baselines=True,
                refined_by="samples",
            ),
            Method(
                "smoothgrad",
                smooth(_GRADIENT, statistic="mean"),
                "average gradient over noisy copies of the input",
                needs_key=True,
                refined_by="samples",
            ),
            Method(
                "smoothgrad_squared",
                smooth(_GRADIENT, statistic="square"),
                "average squared gradient over noisy copies of the input",
                linearity=False,
                needs_key=True,
                refined_by="samples",
            ),
            Method(
                "vargrad",
                smooth(_GRADIENT, statistic="variance"),
                "variance of the gradient over noisy copies of the input",
                linearity=False,
                needs_key=True,
                refined_by="samples",
            ),
            Method(
                "deep_lift",
                deep_lift,
                "differences from a baseline, handed back through every step: parts that add up",
                complete=True,
                symmetry=False,
                implementation_invariance=False,
                rules=_RESCALE,
            ),
            Method(
                "deep_shap",
                deep_shap,
                "DeepLIFT averaged over a set of baselines",
                complete=True,
                symmetry=False,
                implementation_invariance=False,
                needs_baselines=True,
                rules=_RESCALE,
            ),
            Method(
                "lrp",
                relevance.lrp,
                "the score itself, handed back through every step by a rule",
                conserving=True,
                linearity=False,
                symmetry=False,
                implementation_invariance=False,
                rules=_RELEVANCE,
            ),
            Method(
                "feature_ablation",
                feature_ablation,
                "what the score loses when each input is replaced by the baseline",
                dummy=False,  # but for rounding
                takes_groups=True,
            ),
            Method(
                "shapley_sampling",
                shapley_sampling,
                "what each input adds to the others, averaged over random orders of joining",
                complete=True,
                dummy=False,  # but for rounding
                needs_key=True,
                takes_groups=True,
                refined_by="samples",
            ),
            Method(
                "kernel_shap",
                kernel_shap,
                "Shapley values by regression on random coalitions of the inputs",
                complete=True,
                dummy=False,  # but for sampling
                needs_key=True,
                takes_groups=True,
                refined_by="samples",
            ),
            Method(
                "lime",
                lime,
                "a linear model of what f gives when inputs near by are taken away",
                dummy=False,  # but for sampling
                needs_key=True,
                takes_groups=True,
                refined_by="samples",
            ),
            Method(
                "guided_backprop",
                guided_backprop,
                "gradient that each ReLU lets through only where it is on and the signal positive",
                linearity=False,
                symmetry=False,
                implementation_invariance=False,
                needs_relu=True,
            ),
            Method(
                "deconvnet",
                deconvnet,
                "gradient that each ReLU lets through only where the signal is positive",
                linearity=False,
                symmetry=False,
                implementation_invariance=False,
                needs_relu=True,
            ),
            Method(
                "contextual_decomposition",
                token_scores,
                "what came from each token alone, by rules for how values split on their way",
                dummy=False,
                linearity=False,
                implementation_invariance=False,
                takes_where=True,
                rules=DECOMPOSITIONS,
            ),
        )
    }
)

BASELINES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"blur": baselines.blur, "mean": baselines.mean, "zeros": baselines.zeros}
)

# Arrays of one example or of a data set, and what a method's name already says.
