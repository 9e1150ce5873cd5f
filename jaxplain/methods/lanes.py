"""Loops of unlike length side by side: in a batch, one that is done makes room for the next."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

from jaxplain.interpret.compat import hoisted
from jaxplain.types import Array, PyTree

AXIS = "data"  # of a mesh, over which batches are split
LEAST = 8  # lanes, where there are as many
SHARE = 8  # of a batch, in lanes at once: the last ones to finish then cost little


def repeat(
    begin: Callable[[PyTree], PyTree],
    step: Callable[[PyTree, PyTree], PyTree],
    more: Callable[[PyTree, PyTree], Array],
    x: PyTree,
) -> PyTree:
    """`state = step(x, state)` from `begin(x)`, at least once, and on while `more(x, state)`.

    A `while_loop` under `vmap` goes on for all until the last one is done. Here a batch has lanes,
    an eighth of its size and at least 8: a loop that is done leaves its lane to the next of the
    batch, so that the batch costs about the sum of its loops, and the memory of its lanes. What
    the functions close over may be batched as well. Under `jax.set_mesh` each device of the axis
    `data` has lanes and a queue of its own.
    """
    like = jax.eval_shape(begin, x)
    functions, held = zip(
        *(hoisted(f, *a) for f, a in ((begin, (x,)), (step, (x, like)), (more, (x, like)))),
        strict=True,
    )
    starts, steps, goes = functions

    @custom_vmap
    def loop(held, x):
        def advance(carry):
            state = steps(held[1], x, carry[1])
            return goes(held[2], x, state), state

        begin = (jnp.bool_(True), starts(held[0], x))
        return jax.lax.while_loop(lambda carry: carry[0], advance, begin)[1]

    @loop.def_vmap
    def batch(size, batched, held, x):
        leaves, tree = jax.tree.flatten((held, x))
        flags = jax.tree.leaves(batched)
        axes, parts = tree.unflatten([0 if flag else None for flag in flags]), devices(size)
        if parts == 1:
            state = in_lanes(starts, steps, goes, (held, x), axes, size)
            return state, jax.tree.map(lambda _: True, state)
        # Each device's share becomes a row of its own.
        place = lambda v: jax.lax.with_sharding_constraint(v, PartitionSpec(AXIS))
        rows = lambda v: place(v.reshape(parts, size // parts, *v.shape[1:]))
        split = [rows(v) if flag else v for v, flag in zip(leaves, flags, strict=True)]
        queue = lambda inputs: in_lanes(starts, steps, goes, inputs, axes, size // parts)
        state = jax.vmap(queue, (axes,))(tree.unflatten(split))
        joined = jax.tree.map(lambda v: place(v).reshape(size, *v.shape[2:]), state)
        return joined, jax.tree.map(lambda _: True, joined)

    return loop(held, x)


def devices(size: int) -> int:
    """Among how many devices a batch is divided, as far as a trace can tell: 1 if it cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    count = mesh.shape[AXIS] if AXIS in mesh.auto_axes else 1
    return 1 if size % count else count


def in_lanes(starts, steps, goes, inputs: PyTree, axes: PyTree, size: int) -> PyTree:
    """The states of `size` loops when they are done; `axes` is 0 where `inputs` are batched."""
    lanes = min(size, max(LEAST, size // SHARE))
    leaves, tree = jax.tree.flatten(inputs)
    flags = jax.tree.leaves(axes, is_leaf=lambda a: a is None)
    mapped = tree.unflatten(flags)

    def of(rows: Any) -> PyTree:
        """The inputs of some loops."""
        pairs = zip(leaves, flags, strict=True)
        return tree.unflatten([v if a is None else v.at[rows].get(mode="clip") for v, a in pairs])

    def start(row):
        held, x = of(row)
        return starts(held[0], x)

    def advance(state):
        rows, following, done = state
        held, x = of(rows)
        old = jax.tree.map(lambda v: v.at[rows].get(mode="clip"), done)
        new = jax.vmap(lambda i, s: steps(i[0][1], i[1], s), (mapped, 0))((held, x), old)
        on = jax.vmap(lambda i, s: goes(i[0][2], i[1], s), (mapped, 0))((held, x), new)
        on = on & (rows < size)
        done = jax.tree.map(lambda v, n: v.at[rows].set(n, mode="drop"), done, new)
        rank = jnp.cumsum(~on) - 1
        rows = jnp.where(on, rows, jnp.minimum(following + rank, size))
        return rows, following + jnp.sum(~on), done

    states = jax.lax.map(start, jnp.arange(size), batch_size=lanes)
    begin = (jnp.arange(lanes), jnp.int32(lanes), states)
    return jax.lax.while_loop(lambda s: jnp.any(s[0] < size), advance, begin)[-1]
