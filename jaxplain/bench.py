"""What methods cost on this machine, in gradients of the model on the same batch."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.contextual import contextual_decomposition
from jaxplain.methods.deeplift import deep_lift
from jaxplain.methods.gradient import saliency
from jaxplain.methods.information import word_information
from jaxplain.methods.path import integrated_gradients
from jaxplain.methods.perturbation import feature_ablation
from jaxplain.methods.relevance import lrp
from jaxplain.methods.shapley import shapley_sampling
from jaxplain.types import Array, JaxplainError, PyTree

GRADIENT = "value_and_grad"
STEPS = 32  # gradients of integrated gradients, orders of Shapley sampling, steps of a search
PRODUCT = 2048  # rows of the smallest product that measures what the machine can do
AHEAD = 4  # products that wait their turn, so that the device never waits for the next
BRIEF = 1e-3  # seconds: a product that takes less says more of its start than of the machine
WORDS = "a warm and funny film that never asks for more than it gives back"
LEAST = 0.05  # seconds that a timed turn takes, at least


class Task(NamedTuple):
    """A model and a batch.

    Letters: `B` examples, `T` tokens (or rows), `D` width.

    Attributes:
        score: `(params, x [T, D], mask [T]) -> []`, of one example.
        state: `(params, x, mask) -> [T, ...]`, a hidden state of it; None if there is none.
        params: the model's.
        x: `[B, T, D]`.
        mask: `[B, T]` bool.
    """

    score: Callable[[PyTree, Array, Array], Array]
    state: Callable[[PyTree, Array, Array], Array] | None
    params: PyTree
    x: Array
    mask: Array


class Cost(NamedTuple):
    """What a method took.

    Attributes:
        method: its name.
        examples_per_second: of the batch, compilation apart.
        gradients: the time in calls of `value_and_grad` on the same batch, taken in turns with it.
        seconds: of one call.
        compile_seconds: tracing and compiling.
        mebibytes: that the program needs besides its arguments, results included.
    """

    method: str
    examples_per_second: float
    gradients: float
    seconds: float
    compile_seconds: float
    mebibytes: float


def methods(steps: int = STEPS, *, chunk: int | None = None) -> Mapping[str, Callable[..., Any]]:
    """By name, `(task, params, x, mask, key) -> result` of one example.

    Args:
        steps: of integrated gradients and word information, and orders of Shapley sampling.
        chunk: gradients that integrated gradients takes at once; default its own.
    """

    def by(method: Callable, **options: Any) -> Callable:
        def explain(task, params, x, mask, key):
            return method(lambda x: task.score(params, x, mask), x, key=key, **options)

        return explain

    def tokens(method: Callable, **options: Any) -> Callable:
        def explain(task, params, x, mask, key):
            return by(method, groups=np.arange(len(x))[:, None], **options)(
                task, params, x, mask, key
            )

        return explain

    def decomposition(task, params, x, mask, key):
        del key
        words = jnp.zeros(x.shape, bool).at[: len(x) // 2].set(True)
        return contextual_decomposition(lambda x: task.score(params, x, mask), x, words)

    def information(task, params, x, mask, key):
        return word_information(
            lambda x: task.state(params, x, mask), x, key=key, scale=1.0, mask=mask,
            steps=steps, samples=1, tolerance=1e-9,
        )  # fmt: skip

    return MappingProxyType(
        {
            "saliency": by(saliency),
            f"integrated_gradients, {steps} steps": by(
                integrated_gradients, steps=steps, chunk=chunk
            ),
            "deep_lift": by(deep_lift),
            "lrp": by(lrp),
            "feature_ablation of tokens": tokens(feature_ablation),
            f"shapley_sampling, {steps} orders": tokens(shapley_sampling, samples=steps),
            "contextual_decomposition": decomposition,
            f"word_information, {steps} steps": information,
        }
    )


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, float, float]:
    """A program, the seconds that it took to make, and its mebibytes."""
    began = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds, stats = time.perf_counter() - began, program.memory_analysis()
    taken = 0 if stats is None else stats.temp_size_in_bytes + stats.output_size_in_bytes
    return program, seconds, taken / 2**20


def costs(
    task: Task, chosen: Mapping[str, Callable] | None = None, *, repeats: int = 5
) -> Iterator[Cost]:
    """Time methods on a batch, each in turns with the model's gradient; that one comes first.

    Args:
        task: model and batch.
        chosen: methods by name, as `methods` gives them; default all that the task has what for.
        repeats: turns, of which the median counts.

    Raises:
        JaxplainError: repeats below 1.
    """
    if repeats < 1:
        raise JaxplainError(f"repeats must be at least 1, not {repeats}")
    chosen = methods() if chosen is None else chosen
    keys = jax.random.split(jax.random.key(0), len(task.x))
    batch = task.params, task.x, task.mask
    gradient = jax.vmap(jax.value_and_grad(task.score, argnums=1), (None, 0, 0))
    unit, seconds, size = compiled(gradient, *batch)
    call = partial(unit, *batch)
    alone = statistics.median(turn(call) for _ in range(repeats + 1))
    yield Cost(GRADIENT, len(task.x) / alone, 1.0, alone, seconds, size)
    for name, explain in chosen.items():
        if task.state is None and name.startswith("word_information"):
            continue
        each = jax.vmap(partial(explain, task), (None, 0, 0, 0))
        program, seconds, size = compiled(each, *batch, keys)
        mine = partial(program, *batch, keys)
        jax.block_until_ready((mine(), call()))
        pairs = [(turn(mine), turn(call)) for _ in range(repeats)]
        took = statistics.median(a for a, _ in pairs)
        ratio = statistics.median(a / b for a, b in pairs)
        yield Cost(name, len(task.x) / took, ratio, took, seconds, size)


def turn(call: Callable[[], Any], least: float = LEAST) -> float:
    """Seconds of a call: the mean over as many as take `least` seconds, and one at least."""
    calls, began = 0, time.perf_counter()
    while not calls or time.perf_counter() - began < least:
        jax.block_until_ready(call())
        calls += 1
    return (time.perf_counter() - began) / calls


def matrix_rate(dtype: Any = jnp.float32, *, repeats: int = 5) -> float:
    """Operations per second of one large product, which no method can exceed.

    Of random numbers; twice as large as long as it takes less than a millisecond.
    """
    size, best = PRODUCT, 0.0
    while True:
        a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        multiply, _, _ = compiled(jnp.matmul, a, a)
        several = lambda multiply=multiply, a=a: [multiply(a, a) for _ in range(AHEAD)]
        jax.block_until_ready(several())
        seconds = statistics.median(turn(several) for _ in range(repeats)) / AHEAD
        best = max(best, 2 * size**3 / seconds)
        if seconds >= BRIEF:
            return best
        size *= 2


def operations(task: Task) -> float | None:
    """Floating-point operations of the batch's gradient, as XLA counts them; None if it does not.

    XLA counts the body of a loop once, whatever its length: of recurrent models this is too few.
    """
    gradient = jax.vmap(jax.value_and_grad(task.score, argnums=1), (None, 0, 0))
    shapes = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (task.params, task.x, task.mask)
    )
    try:
        counts = jax.local_devices(backend="cpu")[0]  # GPUs do not count
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None
    with jax.default_device(counts):
        counted = jax.jit(gradient).lower(*shapes).cost_analysis()
    return None if not counted else float(counted.get("flops", 0)) or None


def text_task(model: Any, batch: int, length: int) -> Task:
    """The same words over and over under a text model, and the logit of its last class.

    Raises:
        JaxplainError: no rows, or a length that the model does not take.
    """
    if batch < 1 or not 1 <= length <= model.max_length:
        raise JaxplainError(
            f"batch {batch} and length {length}: give at least 1, and at most {model.max_length} "
            "tokens"
        )
    ids = np.resize(model.tokenize(WORDS).ids, (batch, length)).astype(np.int32)
    x = jax.vmap(model.embed, (None, 0))(model.params, jnp.asarray(ids))
    score = lambda params, x, mask: model.score(params, x, mask)[-1]
    state = lambda params, x, mask: model.states(params, x, mask)[-1]
    return Task(score, state, model.params, x, jnp.ones((batch, length), bool))
