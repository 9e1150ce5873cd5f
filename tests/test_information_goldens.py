"""Word information against the numbers of the published code, and against its slow replica.

The numbers are stored in goldens/information.npz; goldens/make_information.py says how they were
made.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.methods.information import published_loss, word_information
from jaxplain.methods.noise import draw
from jaxplain.methods.spread import hidden_spread
from tests import information_replica as replica

# Of float32 and of float64 runs of one computation, of the largest number; and of two in float64.
TOLERANCE = {"f4": 1e-5, "f8": 1e-10}
KINDS = ("none", "spread")
RATES = (0.01, 0.5)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "goldens" / "information.npz") as file:
        return {key: file[key] for key in file.files}


def network(golden, name, dtype="f4"):
    start = f"{name}_param_"
    params = {k[len(start) :]: jnp.asarray(v, dtype) for k, v in golden.items() if start in k}
    return partial(replica.NETWORKS[name], params)


def pieces(golden, name, dtype="f4", loop=False):
    """The network jitted as the replica takes it, x, and the options of a loop or of one loss."""
    h = network(golden, name, dtype)
    options: dict[str, Any] = {k: float(golden[f"{name}_{k}"]) for k in ("scale", "rate")}
    x, options["spread"] = golden[f"{name}_x"], golden[f"{name}_spread"]
    if loop and name == "toy":  # whose loop sees a part of the columns
        columns = golden["toy_loop_noise"].shape[2]
        x, options["spread"] = x[:, :columns], options["spread"][:columns]
    cast = lambda v: jnp.asarray(v, dtype)
    state, pull = jax.jit(h), jax.jit(lambda x, g: jax.vjp(h, x)[1](g)[0])
    return lambda x: state(cast(x)), lambda x, g: pull(cast(x), cast(g)), x, options


def equal(got, want, tolerance=TOLERANCE["f4"]):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", replica.NETWORKS)
def test_loss_and_gradient_are_the_published(golden, name, kind):
    check_loss(golden, name, kind, "f4")


def test_loss_and_gradient_in_float64(x64, golden):
    check_loss(golden, "attention", "none", "f8")


def check_loss(golden, name, kind, dtype):
    x, ratio, noise = (jnp.asarray(golden[f"{name}_{k}"], dtype) for k in ("x", "ratio", "noise"))
    spread = None if kind == "none" else jnp.asarray(golden[f"{name}_spread"], dtype)
    scale, rate = (float(golden[f"{name}_{k}"]) for k in ("scale", "rate"))
    h = network(golden, name, dtype)

    def loss(ratio, noise):
        return published_loss(h, x, ratio, noise, scale=scale, rate=rate, spread=spread)

    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(ratio, noise)
    # Row by row: a small gradient beside a large one is not rounded away by it.
    for got, want in ((losses, "loss"), (gradients, "gradient")):
        for row, wanted in zip(got, golden[f"{name}_{want}_{kind}"], strict=True):
            equal(row, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", replica.NETWORKS)
def test_replica_has_the_published_objective(golden, name, kind):
    h, pull, x, options = pieces(golden, name)
    if kind == "none":
        options["spread"] = None
    for row in range(3):
        loss, gradient = replica.published_objective(
            h, pull, x, *(golden[f"{name}_{k}"][row] for k in ("ratio", "noise")), **options
        )
        equal(loss, golden[f"{name}_loss_{kind}"][row])
        equal(gradient, golden[f"{name}_gradient_{kind}"][row])


@pytest.mark.parametrize("learning_rate", RATES)
@pytest.mark.parametrize("name", replica.NETWORKS)
def test_replica_has_the_published_loop(x64, golden, name, learning_rate):
    # In float64: 30 steps of Adam at 0.5 make 1e-4 of a rounding in float32.
    h, pull, x, options = pieces(golden, name, "f8", loop=True)
    kept, losses = replica.published_loop(
        partial(replica.published_objective, h, pull, x, **options),
        golden[f"{name}_loop_ratio"],
        golden[f"{name}_loop_noise"],
        learning_rate=learning_rate,
    )
    stored = f"{name}_loop_{learning_rate}"
    equal(losses, golden[f"{stored}_losses"], TOLERANCE["f8"])
    equal(kept, golden[f"{stored}_kept"], TOLERANCE["f8"])
    sigma = options["scale"] * replica.sigmoid(kept)
    equal(sigma, golden[f"{stored}_sigma"], TOLERANCE["f8"])


@pytest.mark.parametrize("learning_rate", RATES)
def test_sigmoid_parametrisation_runs_the_published_loop(x64, key, golden, learning_rate):
    """On the draws of `word_information` itself, the replica keeps the same sigma."""
    h, pull, x, options = pieces(golden, "lstm", "f8")
    steps = 40
    found = jax.jit(
        lambda x: word_information(
            network(golden, "lstm", "f8"), x, key=key, steps=steps, parametrisation="sigmoid",
            learning_rate=learning_rate, **options,
        )
    )(jnp.asarray(x, "f8"))  # fmt: skip
    start, draws, _ = jax.random.split(key, 3)
    noises = [draw(draws, t, 1, jnp.asarray(x, "f8"))[0] for t in range(steps)]
    objective = partial(replica.published_objective, h, pull, x, **options)
    ratio = jax.random.normal(start, x.shape[:1])
    kept, losses = replica.published_loop(objective, ratio, noises, learning_rate=learning_rate)
    assert losses.argmin() < steps - 1  # or the last parameters would pass too
    equal(found.sigma, options["scale"] * replica.sigmoid(kept), TOLERANCE["f8"])
    assert int(found.steps) == steps


def test_published_objective_is_the_papers(golden):
    """n / rate times the published loss is eq. 7 and a constant, at K lambda = rate D / n."""
    h, pull, x, options = pieces(golden, "lstm")
    noise = golden["lstm_noise"][0]
    words, width = x.shape
    differences = []
    for ratio in golden["lstm_ratio"]:
        loss, _ = replica.published_objective(h, pull, x, ratio, noise, **options)
        sigma = options["scale"] * replica.sigmoid(ratio)
        balance = options["rate"] * np.size(h(x)) / (words * width)
        paper = replica.paper_objective(
            h, x, sigma, noise, balance=balance, spread=options["spread"]
        )
        differences.append(words / options["rate"] * loss - paper)
    np.testing.assert_allclose(differences, words * np.log(options["scale"]), rtol=1e-9)


def test_closed_form_is_the_optimum_of_the_tutorial(golden):
    """The formula, of an explicit Jacobian, against the known numbers of the published example."""
    x, spread = golden["tutorial_x"], golden["tutorial_spread"]
    for one, deviation, optimum in zip(x, spread, golden["tutorial_optimum"], strict=True):
        jacobian = jax.jacobian(partial(replica.toy, {"words": jnp.asarray(replica.TOY, "f4")}))
        found = replica.closed_form(jacobian(jnp.asarray(one)), rate=0.1, spread=deviation)
        np.testing.assert_allclose(found, optimum, rtol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_mean_spread_is_the_published(golden, name):
    spread, xs, states = spread_job(golden, name)
    got = spread(xs, axes=(0,), reduce="mean")
    equal(got, golden[f"ragged_{name}_reduced"])
    equal(got, replica.mean_spread(states))
    whole = spread(xs | {"mask": np.ones_like(xs["mask"])})
    equal(whole, golden[f"ragged_{name}_full"])


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_pooled_spread_is_that_of_all_words(golden, name):
    spread, xs, states = spread_job(golden, name)
    equal(spread(xs, axes=(0,), chunk=2), replica.pooled_spread(states))


def spread_job(golden, name):
    """`hidden_spread` of padded sentences, jitted; those; and the states of each, cut short."""
    f, x, lengths = network(golden, name), golden["ragged_x"], golden["ragged_lengths"]
    mask = np.arange(x.shape[1])[None, :] < lengths[:, None]

    def h(example):  # a state of the LSTM does not know what follows
        return f(example["x"], example["mask"]) if name == "attention" else f(example["x"])

    def spread(xs, **settings):
        counted = lambda example: example["mask"][:, None]
        return jax.jit(lambda xs: hidden_spread(h, xs, counted=counted, **settings))(xs)

    states = [np.asarray(f(jnp.asarray(v[:n]))) for v, n in zip(x, lengths, strict=True)]
    return spread, {"x": x, "mask": mask}, states
