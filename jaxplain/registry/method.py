"""What the table says of a method."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxplain.methods.quadrature import Nodes

# Arrays of one example or of a data set, and what a method's name already says.
_NOT_OPTIONS = {"key", "baselines", "where", "units", "groups", "method", "statistic"}


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
        return tuple(options_of(self))


def options_of(method: Method) -> dict[str, tuple[Any, Any]]:
    """`{name: (default, annotation)}` of what `configure` takes, in alphabetical order."""
    return {
        name: (p.default, _told(p.annotation))
        for name, p in sorted(inspect.signature(method.function).parameters.items())
        if p.kind is p.KEYWORD_ONLY and name not in _NOT_OPTIONS
    }


def _told(annotation: Any) -> Any:
    """What of an annotation a name and a text can say: no rules of quadrature."""
    left = [kind for kind in kinds(annotation) if kind is not Nodes]
    return left[0] if len(left) == 1 else annotation


def kinds(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
