"""Cutting a model at a submodule: h gives what the submodule puts out, and g goes on from there."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.interpret.dependence import depends
from jaxplain.types import Array, JaxplainError, PyTree

Part = int | str | None


class Cut(NamedTuple):
    """A model in two at one of its layers: f(params, x) = g(params, h(params, x), x).

    g is the model at x with `a` in place of the layer's output. What bypasses the layer (a skip
    connection) still comes from x, so that g's gradient to `a` is what goes through the layer. To
    explain both ways at once, carry x in the state: `lambda x: (h(params, x), x)`.

    Attributes:
        h: `(params, *inputs) -> a [...]`, the layer's output.
        g: `(params, a [...], *inputs) ->` what f gives.
    """

    h: Callable[..., Array]
    g: Callable[..., Array]


class Point(NamedTuple):
    """Where a model is cut.

    Attributes:
        layer: path of the submodule, as "encoder/layer_1".
        method: the method of it whose output counts.
        call: which of its calls, from 0; None where there is only one.
        part: which part of what it returns; None for all.
    """

    layer: str
    method: str
    call: int | None
    part: Part

    def output(self, number: int, compute: Callable[[], Any], new: Any) -> tuple[Any, Any]:
        """What call `number` returns, where `new` is not None with that in it; and the part."""
        if self.call not in (None, number):
            new = None
        if new is not None and self.part is None:
            return new, new  # what it would have computed does not matter
        whole = compute()
        if new is not None:
            return put(whole, self.part, new), new
        return whole, take(whole, self.part, repr(self.layer), "part")


class Seen(NamedTuple):
    """What a model returned, the layer's output at each call, and the paths of its submodules."""

    output: Any
    calls: Sequence[Array]
    names: Iterable[str]


Run = Callable[[PyTree, tuple, dict[str, Any], Point, Array | None], Seen]


def cutter(run: Run, finish: Callable[[Any], Array], batched: bool) -> Callable[..., Cut]:
    """The `cut` of a model that `run` runs, where `finish` makes of what it returns what f gives.

    `batched`: arrays within the model have a first axis, of one, that h and g leave off.
    """

    def cut(
        layer: str, *, call: int | None = None, part: Part = None, method: str = "__call__"
    ) -> Cut:
        point = Point(layer, method, call, part)
        known = set()  # shapes that were checked

        def h(params: PyTree, *inputs: PyTree, **named: PyTree) -> Array:
            a = chosen(run(params, inputs, named, point, None), point)
            return unbatched(a, repr(layer)) if batched else a

        def g(params: PyTree, a: Array, *inputs: PyTree, **named: PyTree) -> Array:
            def rest(a):
                new = a[None] if batched else a
                return finish(run(params, inputs, named, point, new).output)

            a = jnp.asarray(a)
            if (shapes := described((params, a, inputs, named))) not in known:
                want = jax.eval_shape(lambda p, i: h(p, *i, **named), params, inputs)
                check(point, rest, a, want)
                known.add(shapes)
            return rest(a)

        return Cut(h, g)

    return cut


def check(point: Point, rest: Callable[[Array], Array], a: Array, want: Any) -> None:
    """Raise unless `a` may stand for the layer's output, and something comes of it."""
    if a.shape != want.shape:
        raise JaxplainError(
            f"{point.layer!r} puts out {list(want.shape)}, and a is {list(a.shape)}: give g what h "
            "gives, or something of its shape"
        )
    if not depends(rest, a):
        raise JaxplainError(
            f"nothing of {point.layer!r} reaches the output: cut at a layer that it is made of, or "
            "select another output"
        )


def chosen(seen: Seen, point: Point) -> Array:
    """The output of the call that is meant."""
    calls, names, layer = len(seen.calls), sorted(set(seen.names) - {""}), point.layer
    if not calls and layer in names:
        raise JaxplainError(
            f"{layer!r} is not seen to give anything: say which method= of it counts, or, where a "
            "scan or vmap of the model runs it for many, cut at the submodule that holds it"
        )
    if not calls:
        near = difflib.get_close_matches(layer, names, 5, 0.5) or names[:12]
        raise JaxplainError(f"no submodule {layer!r} is called; there are {', '.join(near)}")
    if point.call is None and calls > 1:
        raise JaxplainError(
            f"{layer!r} is called {calls} times: say which call to cut at, call=0 to {calls - 1}"
        )
    number = point.call or 0
    if not 0 <= number < calls:
        raise JaxplainError(
            f"{layer!r} is called {calls} times, and call={number} asked for: take 0 to {calls - 1}"
        )
    return seen.calls[number]


def unbatched(a: Array, what: str) -> Array:
    """`a` without its first axis."""
    if jnp.ndim(a) < 1 or a.shape[0] != 1:
        raise JaxplainError(
            f"{what} gives {list(a.shape)} for a batch of one: with per_example, the first axis of "
            "all that goes in and out is the batch"
        )
    return a[0]


def described(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


def parts(value: Any) -> list[Any]:
    """What a value is made of, by name or number."""
    if isinstance(value, Mapping):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return list(getattr(value, "_fields", range(len(value))))
    return []


def read(value: Any, part: Any) -> Any:
    by_key = isinstance(value, Mapping) or isinstance(part, int)
    return value[part] if by_key else getattr(value, str(part))


def take(value: Any, part: Part | Callable[[Any], Any], what: str, option: str) -> Array:
    """One array of what `what` returned: all of it, or the part that `option` names."""
    there = parts(value)
    if callable(part):
        value = part(value)
    elif part is not None:
        numbers = range(-len(value), len(value)) if isinstance(value, list | tuple) else ()
        if part not in there and part not in numbers:
            made = f"holds {', '.join(map(repr, there))}" if there else "is no tuple, dict or class"
            raise JaxplainError(f"what {what} returns has no {part!r}: it {made}; change {option}")
        value = read(value, part)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return jnp.asarray(value)
    inside = parts(value)
    which = repr(inside[0]) if inside and part is None else "a function of what it returns"
    raise JaxplainError(
        f"{what} returns a {type(value).__name__}"
        + (f" of {', '.join(map(repr, inside))}" if inside else "")
        + f", and one array is needed: choose it, as by {option}={which}"
    )


def put(value: Any, part: Part, new: Any) -> Any:
    """`value` with one part replaced by `new`."""
    if part is None:
        return new
    if isinstance(value, Mapping):
        return type(value)({**value, part: new})  # type: ignore[call-arg]
    if isinstance(part, str):
        fresh: Any = (
            dataclasses.replace if dataclasses.is_dataclass(value) else type(value)._replace
        )
        return fresh(value, **{part: new})
    changed = [*value]
    changed[part] = new
    return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
