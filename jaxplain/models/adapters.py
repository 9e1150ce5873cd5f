"""The user's own model as a function: from a Flax linen module, or from an nnx module."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxplain.models.cut import Cut, Part, Point, Seen, cutter, take, unbatched
from jaxplain.types import Array, JaxplainError, PyTree

Select = Part | Callable[[Any], Array]

# What a submodule is to put out, and what it did, are variables of Flax's own: so they pass through
# its remat and jit, and no program that was kept from another call meets them.
PLACE, SEEN = "jaxplain_place", "jaxplain_seen"


class Function(NamedTuple):
    """A model as a pure function and its parameters.

    Attributes:
        f: `(params, *inputs) -> [...]`, one array. Inputs are pytrees, by place or by name.
        params: the model's parameters and statistics, a pytree of arrays. They are f's argument, so
            that no compiled program holds them as constants.
        cut: `(layer, *, call=None, part=None, method="__call__") -> Cut(h, g)`, f in two at the
            submodule with the path `layer`, "encoder/layer_1"; see `models.cut.Cut`. `call` chooses
            one where it is called several times, `part` an array where it returns several, and
            `method` another method of it.

            h and g raise a `JaxplainError` where there is no such submodule (and name some near
            it), where it is called several times, returns no array, runs in a scan or vmap of the
            model, or where the output does not depend on it.
    """

    f: Callable[..., Array]
    params: PyTree
    cut: Callable[..., Cut]


def from_linen(
    module: nn.Module,
    variables: Mapping[str, Any],
    *,
    method: str | Callable[..., Any] | None = None,
    select: Select = None,
    per_example: bool = False,
    **keywords: Any,
) -> Function:
    """A linen module and its variables as a function.

    Args:
        module: the module, not bound.
        variables: what `module.init` or training gave, with all collections: `{"params": ...}`.
        method: the method to call; `__call__` if None.
        select: which part of what it returns is the output: a key, a field's name, a position, or a
            function of it. None where it returns one array.
        per_example: the module takes batches only; f takes one example, and gives its output.
        **keywords: further arguments of the module as they are, such as train=False or
            deterministic=True. Nothing else tells a linen module that it is not training.

    Returns:
        `Function(f, params, cut)`, params being `variables`.

    Raises:
        JaxplainError: from f, where the module draws random numbers or changes its variables (it is
            training: turn that off by a keyword), lacks variables, or returns no array.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> module, x = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), jnp.ones(3)
    >>> model = from_linen(module, module.init(jax.random.key(0), x))
    >>> h, g = model.cut("layers_0")
    >>> h(model.params, x).shape, g(model.params, h(model.params, x), x).shape
    ((4,), (2,))
    """

    def run(params, inputs, named, point: Point, new) -> Seen:
        marks = {"new": jnp.zeros(0) if new is None else new}
        for name in reversed(point.layer.split("/")):
            marks = {name: marks}
        names, running = [], []

        def intercept(call, args, kwargs, context):
            inside, path = context.module, context.module.path
            if context.method_name == "__call__":
                names.append("/".join(path))
            here = context.method_name == point.method and path not in running  # or it is super's
            if not (here and inside.has_variable(PLACE, "new")):
                return call(*args, **kwargs)
            number = len(inside.get_variable(SEEN, "calls", ()))
            given = None if new is None else inside.get_variable(PLACE, "new")
            running.append(path)
            try:
                whole, part = point.output(number, lambda: call(*args, **kwargs), given)
            finally:
                running.pop()
            inside.sow(SEEN, "calls", part)
            return whole

        with nn.intercept_methods(intercept):
            output, state = apply({**params, PLACE: marks}, inputs, named, [SEEN])
        found = state.get(SEEN, {})
        for name in point.layer.split("/"):
            found = found.get(name, {})
        return Seen(output, found.get("calls", ()), names)

    def apply(params, inputs, named, mutable) -> Any:
        given = {**keywords, **named}
        with evaluation():
            return module.apply(params, *inputs, method=method, mutable=mutable, **given)

    plain = lambda params, inputs, named: apply(params, inputs, named, False)
    return function(plain, variables, run, select, per_example)


@contextmanager
def evaluation() -> Iterator[None]:
    """Say in one line what a linen module lacks, or does that only training does."""
    turn = "from_linen(..., train=False), or deterministic=True, or however the module calls it"
    try:
        yield
    except flax.errors.InvalidRngError as error:
        raise JaxplainError(f"the module draws random numbers, as in training: {turn}") from error
    except flax.errors.ModifyScopeVariableError as error:
        raise JaxplainError(f"the module changes its variables, as in training: {turn}") from error
    except (
        flax.errors.ScopeParamNotFoundError,
        flax.errors.ScopeVariableNotFoundError,
        flax.errors.ScopeCollectionNotFound,
    ) as error:
        raise JaxplainError(
            "the module lacks variables: give all that module.init returned, as "
            '{"params": ..., "batch_stats": ...}'
        ) from error


def from_nnx(
    module: nnx.Module,
    *,
    method: str | Callable[..., Any] | None = None,
    select: Select = None,
    per_example: bool = False,
    **keywords: Any,
) -> Function:
    """An nnx module as a function.

    The module itself stays as it is: a copy is set to evaluation (`module.eval()`: no dropout,
    BatchNorm's running statistics).

    Args:
        module: the module.
        method: the method to call; `__call__` if None.
        select: as in `from_linen`.
        per_example: as in `from_linen`.
        **keywords: further arguments of the module as they are.

    Returns:
        `Function(f, params, cut)`, params being nested dicts of the module's arrays without the
        states of its random number generators.

    Raises:
        JaxplainError: from f, where the module draws random numbers or changes its state though it
            evaluates, or returns no array.

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> rngs = nnx.Rngs(0)
    >>> module = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))
    >>> model, x = from_nnx(module), jnp.ones(3)
    >>> h, g = model.cut("layers/0")
    >>> h(model.params, x).shape, g(model.params, h(model.params, x), x).shape
    ((4,), (2,))
    """
    copy = nnx.clone(module)
    copy.eval()
    for _, variable in nnx.iter_graph(copy):
        if isinstance(variable, nnx.Variable):
            variable.set_metadata(on_set_value=(refuse,))
    definition, random, state = nnx.split(copy, nnx.RngState, ...)
    random = nnx.to_pure_dict(random)

    def call(inside, inputs, named):
        bound = method if callable(method) else getattr(type(inside), method or "__call__")
        return bound(inside, *inputs, **keywords, **named)

    def run(params, inputs, named, point: Point, new) -> Seen:
        inside = nnx.merge(definition, random, params)
        names = ["/".join(map(str, path)) for path, _ in nnx.iter_modules(inside)]
        layer = descend(inside, point.layer)
        if layer is None or not hasattr(type(layer), point.method):
            return Seen(None, (), names)
        object.__setattr__(layer, "__class__", watched(type(layer), point))
        layer.jaxplain_calls = nnx.data([])
        layer.jaxplain_new = None if new is None else Given(new, of=jnp.shape(new))
        output = call(inside, inputs, named)
        stacked = any(seen.of != seen.get_value().shape for seen in layer.jaxplain_calls)
        calls = [] if stacked else [seen.get_value() for seen in layer.jaxplain_calls]
        return Seen(output, calls, [*names, point.layer])

    plain = lambda params, inputs, named: call(nnx.merge(definition, random, params), inputs, named)
    return function(plain, nnx.to_pure_dict(state), run, select, per_example)


class Given(nnx.Variable):
    """An array at a cut; `of` is its shape where it was put, another one inside a scan or vmap."""


@cache
def watched(kind: type[nnx.Module], point: Point) -> type[nnx.Module]:
    """`kind`, with what it puts out at `point` noted and, where there is something, replaced."""

    def call(self, *args, **kwargs):
        if getattr(self, "jaxplain_running", False):  # from the class below, by super()
            return getattr(kind, point.method)(self, *args, **kwargs)
        new = self.jaxplain_new
        if new is not None:
            new = new.get_value() if new.of == new.get_value().shape else new
        self.jaxplain_running = True
        compute = lambda: getattr(kind, point.method)(self, *args, **kwargs)
        try:
            whole, part = point.output(len(self.jaxplain_calls), compute, new)
        finally:
            self.jaxplain_running = False
        self.jaxplain_calls.append(Given(part, of=part.shape))
        return whole

    return type(kind.__name__, (kind,), {point.method: call, "__module__": kind.__module__})


def descend(module: Any, path: str) -> Any:
    """The submodule at a path; None if there is none."""
    for name in path.split("/"):
        held = isinstance(module, nnx.List | list | tuple) and name.isdigit()
        try:
            module = module[int(name)] if held else getattr(module, name)
        except (AttributeError, IndexError, KeyError):
            return None
    return module if isinstance(module, nnx.Module) else None


def refuse(variable: nnx.Variable, _: Any) -> Any:
    """Say in one line that a module does what only training does."""
    drawn = isinstance(variable, nnx.RngState)
    does = "draws random numbers" if drawn else f"changes its {type(variable).__name__}"
    raise JaxplainError(
        f"the module {does}, as in training, after module.eval(): turn that off by an argument, "
        "from_nnx(..., deterministic=True), or however the module calls it"
    )


def function(plain, params, run, select: Select, per_example: bool) -> Function:
    """Put together what both kinds of modules share."""

    def finish(output: Any) -> Array:
        output = take(output, select, "the model", "select")
        return unbatched(output, "the model") if per_example else output

    def f(params: PyTree, *inputs: PyTree, **named: PyTree) -> Array:
        inputs, named = batched((inputs, named))
        return finish(plain(params, inputs, named))

    def run_batched(params, inputs, named, point, new) -> Seen:
        inputs, named = batched((inputs, named))
        try:
            return run(params, inputs, named, point, new)
        except (ValueError, flax.errors.TraceContextError) as error:
            if isinstance(error, JaxplainError):
                raise
            jax.eval_shape(plain, params, inputs, named)  # which raises what is the model's own
            raise JaxplainError(
                f"{point.layer!r} is in a scan, vmap or other transformation of the model that "
                "lets no state out: cut at the submodule that holds it"
            ) from error

    batched = batch_of_one if per_example else lambda tree: tree
    return Function(f, params, cutter(run_batched, finish, per_example))


def batch_of_one(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def per_example(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of one example from a function of batches, `f(params, *inputs)`.

    Args:
        f: takes parameters, then batches, each a pytree, by place or name, and gives a pytree of
            batches; every leaf's first axis is the batch.

    Returns:
        the same function of one example's pytrees, without that axis.

    Raises:
        JaxplainError: when called, where a leaf of what f gives has not a first axis of one.

    >>> import jax.numpy as jnp
    >>> f = per_example(lambda params, x: x.reshape(len(x), -1) @ params)  # [B, 2, 2] -> [B]
    >>> f(jnp.ones(4), jnp.ones((2, 2))).item()
    4.0
    """

    def one(params: PyTree, *inputs: PyTree, **named: PyTree) -> PyTree:
        inputs, named = batch_of_one((inputs, named))
        return jax.tree.map(lambda leaf: unbatched(leaf, "f"), f(params, *inputs, **named))

    return one
