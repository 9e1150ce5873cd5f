"""The certificate of a table of rules: which steps of a program it served, and what they kept."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain.interpret import pairs
from jaxplain.interpret.backward import Applied
from jaxplain.methods.deeplift import Pair
from jaxplain.methods.path import Baseline, check_baseline
from jaxplain.methods.relevance import LRP_EPSILON, absorbed
from jaxplain.types import Array, JaxplainError, PyTree, ScalarFunction, check_example


class Coverage(NamedTuple):
    """Which rules served a function, and what of its score stayed where.

    `K` kinds of steps: same name, module path and rule. Printed, it is a table.

    Attributes:
        steps: `Applied(name, path, kind, rule, count)` of each; a loop's body counts once.
        kept: `[K]` in f's units: how much came to these steps and was not handed on; negative where
            they made something up.
        explained: `[]` what the steps were to hand down, in f's units: f(x), or for DeepLIFT
            f(x) - f(baseline).
    """

    steps: tuple[Applied, ...]
    kept: Array
    explained: Array

    def __str__(self) -> str:
        head = ("step", "module", "rule", "steps", "kept", "of all")
        whole = abs(float(self.explained)) or float("nan")
        rows = [head] + [
            (s.name, s.path or "-", s.rule, str(s.count), f"{kept:.3g}", _percent(kept / whole))
            for s, kept in zip(self.steps, self.kept.tolist(), strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)


def coverage(
    f: ScalarFunction,
    x: PyTree,
    rules: Mapping[str, Any] = LRP_EPSILON,
    *,
    baseline: Baseline = None,
) -> Coverage:
    """Which primitives a table's rules serve on the way from x to f(x), and what each one keeps.

    For the tables of `lrp`, and of `deep_lift`, whose rules keep nothing: what one shows there is
    rounding, or a rule of the caller's that loses something. Of a contextual decomposition nothing
    is lost by construction, and `jaxplain.missing` says what it has no rule for.

    Args:
        f: `x -> []`, one score.
        x: one example, any pytree of float arrays.
        rules: a table of `lrp`, such as `LRP_EPSILON`, or of `deep_lift`, such as `DEEP_LIFT`,
            which is told by its rule for "maximum".
        baseline: of `deep_lift`, as there.

    Returns:
        `Coverage`. The kept parts and the sum of all scores add up to what was to be explained.
        Cost: as `lrp`, or twice `deep_lift`.

    Raises:
        MissingRule, JaxplainError: as the method; a table of contextual decomposition.

    >>> import jax, jax.numpy as jnp
    >>> from jaxplain.methods.relevance import LRP_ZERO
    >>> print(coverage(lambda x: jax.nn.relu(3 * x + 2), jnp.float32(4), LRP_ZERO))
    step  module  rule      steps  kept  of all
    mul   -       zero()    1      2     14.29%
    relu  -       identity  1      0     0.00%
    """
    if "bias" in rules:
        raise JaxplainError(
            "rules is a table of contextual decomposition, which loses nothing: ask "
            "jaxplain.missing(f, x, rules) for what has no rule"
        )
    check_example(f, x)
    x = jax.tree.map(jnp.asarray, x)
    if "maximum" in rules:
        return _of_differences(f, x, check_baseline(baseline, x), rules)
    if baseline is not None:
        raise JaxplainError("baseline is for tables of deep_lift: lrp compares with nothing")
    steps, kept = absorbed(f, x, rules=rules)
    return Coverage(steps, kept, f(x))


def _of_differences(f: ScalarFunction, x: PyTree, start: PyTree, rules: Mapping) -> Coverage:
    """Each step's own loss, by the derivative of f's change with respect to a share of it."""
    places: dict[tuple[str, str, str, str], int] = {}
    seen: dict[int, tuple] = {}  # a loop's body is traced more than once
    change = jax.tree.map(jnp.subtract, x, start)

    def moved(shares: Array | None) -> tuple:
        def watch(step, kind, run, operands, out):
            rule = getattr(rules[kind], "__name__", repr(rules[kind]))
            row = (step.name, step.path, kind, rule)
            place = places.setdefault(row, len(places))
            if shares is None:
                seen[_identity(step)] = (step, row)
                return out
            whole = lambda v: v._replace(change=v.value - v.reference)
            alone = run([whole(v) if _changes(v) else v for v in operands])
            return [
                v._replace(change=v.change + shares[place] * (whole(v).change - a.change))
                if _changes(v)
                else v
                for v, a in zip(out, alone, strict=True)
            ]

        pair = pairs.differences(f, x, start, change, rules, watch)
        return pair.change, pair.value - pair.reference

    jax.eval_shape(lambda: moved(None))
    zeros = jnp.zeros(len(places), jnp.promote_types(jnp.result_type(*jax.tree.leaves(x)), "f4"))
    out, backward, explained = jax.vjp(moved, zeros, has_aux=True)
    (kept,) = backward(jnp.ones_like(out))
    counts = [sum(row == found for _, found in seen.values()) for row in places]
    steps = tuple(Applied(*row, count) for row, count in zip(places, counts, strict=True))
    return Coverage(steps, kept, explained)


def _identity(step: Any) -> int:
    """The same for a step that was grouped twice: of the last primitive in it."""
    while step.inner is not None and step.inner.steps:
        step = step.inner.steps[-1]
    return id(step)


def _percent(share: float) -> str:
    return f"{round(share, 4) + 0.0:.2%}"  # no negative zero


def _changes(value: Any) -> bool:
    return isinstance(value, Pair) and value.change is not None
