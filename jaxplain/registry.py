"""The methods by name: what each claims, which options it takes, and how text is read as options.

A table for callers that start from a name (the command line, tests, benchmarks). Code that knows
which method it wants calls it.
"""

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import baselines
from jaxplain.methods import contextual, relevance
from jaxplain.methods.deeplift import DEEP_LIFT, deep_lift, deep_shap
from jaxplain.methods.gradient import input_x_gradient, saliency
from jaxplain.methods.lime import lime
from jaxplain.methods.path import expected_gradients, integrated_gradients
from jaxplain.methods.perturbation import feature_ablation
from jaxplain.methods.quadrature import Nodes
from jaxplain.methods.rectified import deconvnet, guided_backprop
from jaxplain.methods.regression import kernel_shap
from jaxplain.methods.shapley import shapley_sampling
from jaxplain.methods.smooth import smooth
from jaxplain.methods.tokens import token_scores
from jaxplain.types import Explainer, JaxplainError


class Method(NamedTuple):
    """A method and what it claims; the tests hold it to its claims on every model they have.

    Attributes:
        name: as users type it.
        function: `(f, x, *, key, **options)`.
        summary: one line.
        complete: scores sum to f(x) - f(baseline), and gap says how nearly; for a sampling method,
            in expectation.
        conserving: scores sum to f(x) less what constants in f keep, and gap says how much that is.
        dummy: an input that f ignores scores exactly 0.
        linearity: scores of a f + b g are a times those of f + b times those of g, by equal keys.
        symmetry: inputs that f treats alike, equal in x and in the baseline, score alike; for a
            sampling method, in expectation.
        implementation_invariance: scores depend on the function f computes, not on how it does.
        needs_key: raises without `key`.
        needs_baselines: raises without `baselines`, a set of reference inputs.
        needs_relu: raises where no ReLU is between x and f(x).
        takes_where: takes `where`, which rows of x are no padding.
        takes_units: takes `units`, which rows of x join to groups.
        takes_groups: takes `groups`, numbers of what is taken away together.
        rules: the tables that its option `rules` may name.
        refined_by: the option that a run with a tolerance raises until gaps or standard errors are
            small enough; empty where no option does that.
    """

    name: str
    function: Callable[..., Any]
    summary: str
    complete: bool = False
    conserving: bool = False
    dummy: bool = True
    linearity: bool = True
    symmetry: bool = True
    implementation_invariance: bool = True
    needs_key: bool = False
    needs_baselines: bool = False
    needs_relu: bool = False
    takes_where: bool = False
    takes_units: bool = False
    takes_groups: bool = False
    rules: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    refined_by: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that `configure` takes, in alphabetical order."""
        return tuple(options(self))


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
_NOT_OPTIONS = {"key", "baselines", "where", "units", "groups", "method", "statistic"}


def find(name: str, methods: Mapping[str, Method] = METHODS) -> Method:
    """The method called `name`.

    Raises:
        JaxplainError: there is none; the message gives the nearest names, or all.
    """
    if name in methods:
        return methods[name]
    close = difflib.get_close_matches(name, methods, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {_listed(methods)}"
    raise JaxplainError(f"there is no method {name!r}: {hint}")


def options(method: Method | str) -> dict[str, tuple[Any, Any]]:
    """`{name: (default, annotation)}` of what `configure` takes, in alphabetical order."""
    method = find(method) if isinstance(method, str) else method
    return {
        name: (p.default, _told(p.annotation))
        for name, p in sorted(inspect.signature(method.function).parameters.items())
        if p.kind is p.KEYWORD_ONLY and name not in _NOT_OPTIONS
    }


def configure(name: Method | str, options: Mapping[str, Any] = MappingProxyType({})) -> Explainer:
    """Bind `options` to a method, or the one called `name`, reading strings as their option's type.

    A baseline may be "zeros", "mean", "blur" or a number in a string, rules the name of one of the
    method's tables, or either anything the method takes.
    `baselines`, where the method needs them, may be among the options or bound later.

    Raises:
        JaxplainError: one line, on an unknown method or option, a value that cannot be read, or one
            that the method would refuse.

    >>> configure("integrated_gradients", {"steps": "8", "baseline": "mean"}).keywords["steps"]
    8
    """
    method = find(name) if isinstance(name, str) else name
    name, known = method.name, _options(method)
    bound = {}
    for option, value in options.items():
        if option == "baselines" and method.needs_baselines:
            bound[option] = value
        elif option not in known:
            takes = f"it takes {_listed(known)}" if known else "it takes none"
            raise JaxplainError(f"{name} has no option {option!r}; {takes}")
        else:
            bound[option] = _read(name, option, value, known[option][1], method.rules)
    _try(method, bound)
    return functools.partial(method.function, **bound)


_options = options


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


def _read(name: str, option: str, value: Any, annotation: Any, rules: Mapping) -> Any:
    """`value` as `annotation` has it, parsed if it is a string."""
    if option == "baseline":
        return _read_baseline(name, value)
    if option == "rules":
        return _read_rules(name, value, rules)
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        if value in choices:
            return value
        raise JaxplainError(f"{name}: {option} must be {' or '.join(choices)}, not {value!r}")
    kinds = _kinds(annotation)
    if isinstance(value, str):
        for kind in kinds:
            try:
                return _PARSERS[kind](value.strip().lower())
            except (KeyError, ValueError):
                continue
    elif Any in kinds or type(value) in kinds or (type(value) is int and float in kinds):
        return value
    what = " or ".join(_WORDS[kind] for kind in kinds)
    raise JaxplainError(f"{name}: {option} must be {what}, not {value!r}")


def _read_baseline(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in BASELINES:
        return BASELINES[value]
    try:
        return float(value)
    except ValueError:
        raise JaxplainError(
            f"{name}: baseline must be a number or one of {_listed(BASELINES)}, not {value!r}"
        ) from None


def _read_rules(name: str, value: Any, rules: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str) and value in rules:
        return rules[value]
    raise JaxplainError(f"{name}: rules must be one of {_listed(rules)}, not {value!r}")


def _told(annotation: Any) -> Any:
    """What of an annotation a name and a text can say: no rules of quadrature."""
    kinds = [kind for kind in _kinds(annotation) if kind is not Nodes]
    return kinds[0] if len(kinds) == 1 else annotation


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: {"true": True, "yes": True, "false": False, "no": False}.__getitem__,
    int: int,
    float: float,
    Any: float,
    type(None): {"none": None}.__getitem__,
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Any: "a number",
    type(None): "none",
}


def _try(method: Method, bound: dict[str, Any]) -> None:
    """Trace the method on a toy, so that it refuses its options now and not in the middle of a run.

    Arrays and functions of the user's are left out: they need not fit the toy.
    """
    simple: dict[str, Any] = {
        k: v for k, v in bound.items() if isinstance(v, bool | int | float | None)
    }
    if method.needs_baselines:
        simple["baselines"] = np.zeros((2, 2), np.float32)
    toy = (lambda x: jnp.sum(jax.nn.relu(x))) if method.needs_relu else jnp.sum
    explain = functools.partial(method.function, toy, **simple)
    try:
        jax.eval_shape(lambda: explain(jnp.zeros(2), key=jax.random.key(0)))
    except JaxplainError as error:
        raise JaxplainError(f"{method.name}: {error}") from None
