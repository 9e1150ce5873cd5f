"""Loops of unlike length in a batch: results of each alone, at the cost of their sum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxplain.methods import lanes
from jaxplain.methods.lanes import repeat

LENGTHS = np.random.default_rng(0).integers(1, 40, 96)
LENGTHS[::24] = 200  # a few that would hold up all others


def count_down(x, bonus=0.0):
    """Adds `x[1] + bonus` as often as `x[0]` says, and counts."""
    return repeat(
        lambda x: (jnp.int32(0), x[1] * 10),
        lambda x, state: (state[0] + 1, state[1] + x[1] + bonus),
        lambda x, state: state[0] < x[0],
        x,
    )


def inputs(lengths=LENGTHS):
    return jnp.asarray(lengths), jnp.arange(len(lengths), dtype=jnp.float32)


def check(found, lengths, slope, bonus: Any = 0.0):
    steps, total = found
    np.testing.assert_array_equal(steps, lengths)
    # Sums of at most 200 numbers up to 110: exact in float32 where they are whole.
    np.testing.assert_allclose(total, 10 * slope + lengths * (slope + bonus), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8, 9, 96])
def test_each_ends_where_it_would_alone(size):
    x = inputs(LENGTHS[:size])
    check(jax.jit(jax.vmap(count_down))(x), LENGTHS[:size], np.arange(size))


def test_alone_and_at_least_once():
    check(count_down((jnp.int32(3), jnp.float32(2.0))), 3, 2.0)
    assert count_down((jnp.int32(0), jnp.float32(2.0)))[0] == 1


def test_closed_over_values_may_be_batched_or_not():
    bonus = jnp.linspace(0, 3, len(LENGTHS))
    both = jax.vmap(lambda length, slope, b: count_down((length, slope), b))
    check(both(*inputs(), bonus), LENGTHS, np.arange(len(LENGTHS)), np.asarray(bonus))
    # Alone in being batched, and closed over: the loop's own input is one for all.
    only = jax.vmap(lambda b: count_down((jnp.int32(4), jnp.float32(1.0)), b))
    check(only(bonus), np.full(len(LENGTHS), 4), 1.0, np.asarray(bonus))


def test_batches_of_batches():
    lengths, slopes = (v.reshape(12, 8) for v in inputs())
    found = jax.jit(jax.vmap(jax.vmap(count_down)))((lengths, slopes))
    check([v.reshape(-1) for v in found], LENGTHS, np.arange(len(LENGTHS)))


@pytest.mark.slow
def test_random_keys_are_values_too():
    def one(key):
        return repeat(
            lambda k: (jnp.int32(0), jnp.zeros(())),
            lambda k, s: (s[0] + 1, s[1] + jax.random.normal(jax.random.fold_in(k, s[0]))),
            lambda k, s: s[0] < 5,
            key,
        )[1]

    keys = jax.random.split(jax.random.key(0), 20)
    np.testing.assert_allclose(jax.vmap(one)(keys), jnp.stack([one(k) for k in keys]), rtol=1e-6)


def test_batch_costs_the_sum_and_not_the_longest():
    calls = []

    def one(x):
        def step(x, state):
            jax.debug.callback(lambda: calls.append(1))  # once for all lanes
            return (state[0] + 1,)

        return repeat(lambda x: (jnp.int32(0),), step, lambda x, s: s[0] < x, x)

    jax.block_until_ready(jax.jit(jax.vmap(one))(jnp.asarray(LENGTHS)))
    jax.effects_barrier()
    at_once = len(LENGTHS) // lanes.SHARE
    # Until the queue is empty every lane works; then nothing is longer than the longest loop.
    assert LENGTHS.max() < len(calls) <= LENGTHS.sum() / at_once + LENGTHS.max()
    assert len(calls) * at_once < 0.5 * LENGTHS.max() * len(LENGTHS)


def test_devices_have_queues_of_their_own():
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = inputs()
    with jax.set_mesh(mesh):
        program = jax.jit(jax.vmap(count_down), in_shardings=((rows, rows),), out_shardings=rows)
        program = program.lower(x).compile()
    found = program(jax.device_put(x, rows))
    check(found, LENGTHS, np.arange(len(LENGTHS)))
    # All that devices tell each other is whether any of them goes on.
    text = program.as_text() or ""
    talk = [t for t in text.split("\n") if "all-" in t or "collective" in t]
    talk = [t for t in talk if "= " in t and "replica_groups" in t]
    assert talk and all("pred[] all-reduce" in t for t in talk), talk
