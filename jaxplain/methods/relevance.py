"""Layer-wise relevance propagation: the score, handed down from step to step to the inputs.

Each step of f's program hands what came to it to what it was made of, by a rule; which rule, stands
in a table, an ordinary mapping, of which a caller replaces what should be otherwise:
`{**LRP_EPSILON, "conv_general_dilated": gamma(0.1)}`. A name in a table is that of a primitive
("erf", "dot_general"), of a call (a function marked with `jaxplain.named`), or one of:

    affine          a product with weights, and constants added and multiplied after it: a dense
                    layer or a convolution with its bias and the BatchNorm after it, all as one; a
                    constant that is added; a BatchNorm by itself
    first           the affine steps with a product of matrices or a convolution that no other such
                    step is before, on the way from x; it comes before the name of a primitive
    scale           a product with constants, element by element
    sum             of two values: a residual connection
    pooling         a sum of elements of one value: the mean, average pooling
    product         of two values: attention, gates
    quotient        of two values
    elementwise     a function of one element each: activations
    softmax
    normalization   by the mean square of the value itself: LayerNorm, RMSNorm, GroupNorm
    switch          maximum, max pooling, sorting: what picks elements

A name with a "/" in it is a pattern of module paths, with a table for the steps of such modules:
`{"*/head": {"affine": zero()}, **LRP_EPSILON}`. Patterns come before names, and of several that fit
the first that has a rule. Steps that move elements hand on what came to each: reshapes, slices,
concatenations, gathers, choices of `jnp.where`. `jax.lax.stop_gradient` hands on nothing: what is
behind it counts as a constant, and keeps its part as a bias does; but not the maximum that a
logsumexp takes off. A derivative of a call's own is not asked: its program is.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.interpret.backward import Applied as Applied
from jaxplain.interpret.backward import Layer as Layer
from jaxplain.interpret.backward import Rule as Rule
from jaxplain.interpret.redistribution import redistributed
from jaxplain.methods.relevance_rules import alpha_beta as alpha_beta
from jaxplain.methods.relevance_rules import derivative as derivative
from jaxplain.methods.relevance_rules import epsilon as epsilon
from jaxplain.methods.relevance_rules import flat as flat
from jaxplain.methods.relevance_rules import gamma as gamma
from jaxplain.methods.relevance_rules import identity as identity
from jaxplain.methods.relevance_rules import numerator as numerator
from jaxplain.methods.relevance_rules import signal_takes_all as signal_takes_all
from jaxplain.methods.relevance_rules import softmax_taylor as softmax_taylor
from jaxplain.methods.relevance_rules import stop as stop
from jaxplain.methods.relevance_rules import uniform as uniform
from jaxplain.methods.relevance_rules import w_square as w_square
from jaxplain.methods.relevance_rules import z_box as z_box
from jaxplain.methods.relevance_rules import z_plus as z_plus
from jaxplain.methods.relevance_rules import zero as zero
from jaxplain.methods.sampling import residual
from jaxplain.types import Array, Attribution, PyTree, ScalarFunction, check_example

Rules = Mapping[str, Any]


def _table(affine: Rule, other: Rule | None = None, **rules: Any) -> Rules:
    """A table with one rule for what has weights, and one for all else that is linear."""
    other = other or epsilon()
    return MappingProxyType(
        {
            "affine": affine,
            "sum": other,
            "pooling": other,
            "normalization": other,
            "product": uniform(),
            "quotient": numerator,
            "softmax": softmax_taylor,
            "scale": identity,
            "elementwise": identity,
            "switch": derivative,
            **rules,
        }
    )


LRP_EPSILON = _table(epsilon())
LRP_ZERO = _table(zero(), zero())
LRP_GAMMA = _table(gamma())
LRP_ALPHA2_BETA1 = _table(alpha_beta(2, 1))
LRP_ALPHA1_BETA0 = _table(alpha_beta(1, 0))
# The rules of Achtibat et al. 2024 for language models; all that is linear by epsilon.
ATTN_LRP = LRP_EPSILON
# Of Ali et al. 2022: attention weights and gates are held, as what normalises is, so that nothing
# but constants keeps relevance.
CP_LRP = _table(epsilon(), softmax=stop, product=signal_takes_all())


def epsilon_plus(eps: float = 1e-6) -> Rules:
    """Dense layers by `epsilon`, convolutions by `z_plus`.

    References: as `epsilon_gamma_box`.
    """
    return _table(epsilon(eps), conv_general_dilated=z_plus())


def epsilon_plus_flat(eps: float = 1e-6) -> Rules:
    """As `epsilon_plus`, with the first layer by `flat`."""
    return MappingProxyType({**epsilon_plus(eps), "first": flat()})


def epsilon_alpha2_beta1(eps: float = 1e-6) -> Rules:
    """Dense layers by `epsilon`, convolutions by `alpha_beta(2, 1)`.

    References: as `epsilon_gamma_box`.
    """
    return _table(epsilon(eps), conv_general_dilated=alpha_beta(2, 1))


def epsilon_alpha2_beta1_flat(eps: float = 1e-6) -> Rules:
    """As `epsilon_alpha2_beta1`, with the first layer by `flat`."""
    return MappingProxyType({**epsilon_alpha2_beta1(eps), "first": flat()})


def epsilon_gamma_box(low: Any, high: Any, eps: float = 1e-6, rate: float = 0.25) -> Rules:
    """Dense layers by `epsilon`, convolutions by `gamma`, the first layer by `z_box`.

    Args:
        low: the smallest value of an input, as in `z_box`.
        high: the largest.
        eps: of `epsilon`.
        rate: of `gamma`.

    References: Montavon, Binder, Lapuschkin, Samek, Müller, Layer-Wise Relevance Propagation: An
        Overview, 2019, https://doi.org/10.1007/978-3-030-28954-6_10; Kohlbrenner et al., Towards
        Best Practice in Explaining Neural Network Decisions with LRP, 2020,
        https://arxiv.org/abs/1910.09840
    """
    rules = {"conv_general_dilated": gamma(rate), "first": z_box(low, high)}
    return _table(epsilon(eps), **rules)


def deep_taylor(low: Any = None, high: Any = None) -> Rules:
    """Layers by `z_plus`, pooling by `flat`; the first by `z_box`, or without bounds `w_square`.

    Args:
        low: the smallest value of an input, as in `z_box`.
        high: the largest.

    References: Montavon, Lapuschkin, Binder, Samek, Müller, Explaining Nonlinear Classification
        Decisions with Deep Taylor Decomposition, 2017, https://doi.org/10.1016/j.patcog.2016.11.008
    """
    first = w_square() if low is None and high is None else z_box(low, high)
    return _table(z_plus(), pooling=flat(), first=first)


def lrp(
    f: ScalarFunction, x: PyTree, *, key: Array | None = None, rules: Rules = LRP_EPSILON
) -> Attribution:
    """Layer-wise relevance propagation: f(x) handed down to the inputs, step by step.

    Works on any function that JAX can trace, without changes to it: the rules apply to the steps
    of its program, through calls, `scan`, `cond` and `jax.checkpoint`, with layers that are used
    many times. An affine layer is one step however it is written. Nothing is given its derivative
    silently: a step without a rule raises.

    Works on any pytree of float arrays; below, `[...]` is the shape of one leaf.

    Args:
        f: `x -> []`, one score: a logit, not a probability.
        x: `[...]`, one example; batch with `jax.vmap`.
        key: ignored; the method is deterministic.
        rules: a table. `LRP_EPSILON`, `LRP_ZERO`, `LRP_GAMMA`, `LRP_ALPHA2_BETA1`,
            `LRP_ALPHA1_BETA0` have one rule for all layers with weights; `epsilon_plus()`,
            `epsilon_alpha2_beta1()`, `epsilon_gamma_box(low, high)` tell convolutions, dense layers
            and the first layer apart; for transformers, `ATTN_LRP` shares attention between weights
            and values, and `CP_LRP` holds its weights.

    Returns:
        scores `[...]` in f's units, x's dtype; gap = sum of scores - f(x). It is what constants
        keep (biases, offsets; a softmax's part that is not proportional, but under `CP_LRP`), with
        the other sign, and what stabilisers do, 1e-6 in the units of each value. So it is near 0
        for a network without biases, and nowhere else: rules that leave biases out (`flat`,
        `w_square`, `z_plus`, `z_box`, `ignore_bias=True`) bring it nearer. `absorbed` says where it
        is. Cost: 1 gradient with `epsilon` or `zero`; 2 to 4 with rules by sign.

    Raises:
        MissingRule: a `NotImplementedError`: a step between x and f(x) has no rule; the message
            names it, its module path and the line that adds one.
        JaxplainError: x holds something other than floats, f does not return one float; a pattern
            fits no module, or a `while` loop is on the way.

    References:
        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation, 2015, https://doi.org/10.1371/journal.pone.0130140
        Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019,
        https://doi.org/10.1007/978-3-030-28954-6_10
        Achtibat et al., AttnLRP: Attention-Aware Layer-wise Relevance Propagation for Transformers,
        2024, https://arxiv.org/abs/2402.05602
        Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation,
        2022, https://arxiv.org/abs/2202.07304

    Differs: a normalisation hands down by epsilon what it makes of x, its scale held, so that its
        offset keeps a part, where AttnLRP's identity rule is for RMSNorm without one.

    >>> import jax, jax.numpy as jnp
    >>> f = lambda x: jax.nn.relu(x[0] - x[1]) * 2
    >>> result = lrp(f, jnp.array([3.0, 1.0]), rules=LRP_ZERO)
    >>> result.scores.tolist(), float(result.output)
    ([6.0, -2.0], 4.0)
    """
    del key
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    output, back = jax.vjp(redistributed(f, (x,), rules).run, x)
    (scores,) = back(output)
    return Attribution(scores, output, residual(scores, output))


def absorbed(
    f: ScalarFunction, x: PyTree, *, rules: Rules = LRP_EPSILON
) -> tuple[tuple[Applied, ...], Array]:
    """Where relevance stays: which rule each step has, and how much came to it and went no further.

    Args:
        f: as in `lrp`.
        x: as in `lrp`.
        rules: as in `lrp`.

    Returns:
        One `Applied(name, path, kind, rule, count)` for each of `K` rules, names and module paths,
        and `[K]` in f's units, float32 or wider. With the sum of scores they add up to f(x), but
        for what comes to constants in an element's place, as of `jnp.where`. Cost: as `lrp`.

    Raises:
        As `lrp`.

    >>> import jax, jax.numpy as jnp
    >>> steps, kept = absorbed(lambda x: jax.nn.relu(3 * x + 2), jnp.float32(4), rules=LRP_ZERO)
    >>> [(step.name, step.rule) for step in steps], kept.tolist()
    ([('mul', 'zero()'), ('relu', 'identity')], [2.0, 0.0])
    """
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    changed = redistributed(f, (x,), rules)
    dtype = jnp.promote_types(jax.eval_shape(f, x).dtype, jnp.float32)
    taps = jnp.zeros(len(changed.applied), dtype)
    output, back = jax.vjp(changed.watched, taps, x)
    return changed.applied, back(output)[0]
