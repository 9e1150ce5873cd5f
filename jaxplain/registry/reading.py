"""How names and text are read as methods and options."""

import difflib
import functools
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.registry.method import Method, kinds, options_of
from jaxplain.registry.table import BASELINES, METHODS
from jaxplain.types import Explainer, JaxplainError


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
    return options_of(find(method) if isinstance(method, str) else method)


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
    name, known = method.name, options_of(method)
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
    known = kinds(annotation)
    if isinstance(value, str):
        for kind in known:
            try:
                return _PARSERS[kind](value.strip().lower())
            except (KeyError, ValueError):
                continue
    elif Any in known or type(value) in known or (type(value) is int and float in known):
        return value
    what = " or ".join(_WORDS[kind] for kind in known)
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
