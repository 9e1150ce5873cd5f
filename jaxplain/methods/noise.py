"""How the largest noise is found that the words of an input can bear."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxplain.methods.lanes import repeat
from jaxplain.methods.sampling import wide
from jaxplain.methods.target import Target
from jaxplain.types import Array

EXACT = 256  # states of at most so many units: their Jacobian is computed, not sampled
FALLING = 5  # steps at the full learning rate
FARTHEST = 0.5  # a step moves log sigma
LARGEST = 10.0  # gradient that counts for the steps that follow
KEPT = 0.95  # of the mean of squared gradients, from step to step
LEAST = 8  # steps before the averages say anything
FLATTEST = 0.05  # a cost that rises less with log sigma is taken to rise so much
ASIDE = 0.02  # in log sigma, to either side of an iterate: where costs are taken
JUDGES = 64  # noise draws by which the result of the published loop is judged
TOGETHER = 8  # evaluations at once, where how many is not the caller's to say


class Found(NamedTuple):
    """What a search came to; other fields as in `WordInformation`.

    Attributes:
        slope: `[T]` d loss / d log sigma times n / rate.
        change: `[]` mean over units of the squared change of the state, in squared spreads.
    """

    log_ratio: Array
    standard_error: Array
    slope: Array
    change: Array
    steps: Array
    converged: Array


def change(h: Callable, x: Array, target: Target, sigma: Array, noise: Array) -> Array:
    """Mean over units of the state's squared change under `noise [T, K]` times `sigma [T]`."""
    moved = wide(x) + jnp.where(target.real, sigma, 0)[:, None] * noise
    states = jax.tree.leaves(wide(h(moved.astype(x.dtype))))
    pairs = zip(states, target.state, target.weight, strict=True)
    return total(w * jnp.square(s - old) for s, old, w in pairs)


def total(terms) -> Array:
    return jnp.asarray(sum(jnp.sum(term) for term in terms))


def published_loss(h, x: Array, target: Target, ratio: Array, noise: Array, scale) -> Array:
    """The published objective for one noise draw; `sigma = scale sigmoid(ratio)`."""
    log_ratio = jax.nn.log_sigmoid(ratio)
    moved = change(h, x, target, jnp.exp(log_ratio) * scale, noise)
    return moved - target.rate * jnp.sum(log_ratio, where=target.real) / target.words


def objective(target: Target, found: Found) -> Array:
    """The loss that a search came to, as it measured it on the way."""
    kept = jnp.where(target.real, found.log_ratio, 0)
    return found.change - target.rate * jnp.sum(kept) / target.words


def closed_form(h, x: Array, target: Target, scale, key: Array, probes: int) -> Array:
    """log(sigma / scale) `[T]` where h is linear in the noise, infinite where it ignores a word.

    There the change is the sum of sigma_i^2 A_i with A_i the squared norm of word i's block of the
    Jacobian, weighted, and the optimum sigma_i^2 = rate / (2 n A_i). A backward pass from random
    signs gives all blocks' norms at once, without a cross term between words; from unit vectors,
    exactly.
    """
    state, back = jax.vjp(lambda v: jax.tree.leaves(wide(h(v))), x)
    sizes = [s.size for s in state]

    def blocks(cotangent: list[Array]) -> Array:
        pulled = [jnp.sqrt(w) * c for w, c in zip(target.weight, cotangent, strict=True)]
        pulled = [p.astype(s.dtype) for p, s in zip(pulled, state, strict=True)]
        return jnp.sum(jnp.square(wide(back(pulled)[0])), axis=1)

    if sum(sizes) <= EXACT:

        def one(i):
            row = jnp.arange(sum(sizes)) == i
            parts, start = [], 0
            for s in state:
                parts.append(row[start : start + s.size].reshape(s.shape))
                start += s.size
            return blocks(parts)

        norms = jnp.sum(jax.lax.map(one, jnp.arange(sum(sizes)), batch_size=TOGETHER), axis=0)
    else:

        def one(i):
            keys = jax.random.split(jax.random.fold_in(key, i), len(state))
            signs = zip(keys, state, strict=True)
            return blocks([jax.random.rademacher(k, s.shape, s.dtype) for k, s in signs])

        norms = jnp.mean(jax.lax.map(one, jnp.arange(probes), batch_size=TOGETHER), axis=0)
    return 0.5 * jnp.log(target.rate / (2 * target.words * norms)) - jnp.log(scale)


def independent(key: Array, count: int, x: Array, sample: Callable = jax.random.normal) -> Array:
    """`[count, T, K]`: standard normal noise, or what else `sample` draws.

    A word's noise depends on its place and not on how many follow, as padding does.
    """

    def word(place):
        shape = (count, x.shape[1])
        return sample(jax.random.fold_in(key, place), shape, wide(x).dtype)

    return jax.vmap(word, out_axes=1)(jnp.arange(x.shape[0]))


def draw(key: Array, step: Array | int, samples: int, x: Array) -> Array:
    """Standard normal noise `[samples, T, K]` of one step, in antithetic pairs."""
    noise = independent(jax.random.fold_in(key, step), -(-samples // 2), x)
    return jnp.concatenate([noise, -noise])[:samples]


def slopes(h, x, target: Target, scale, log_ratio: Array, noise: Array) -> tuple[Array, Array]:
    """What each word's noise costs, 1 where it balances, `[samples, T]`, and the change.

    `log_ratio` is `[T]`, or of each draw, `[samples, T]`.
    """

    def one(log_ratio, noise):
        sigma = lambda v: jnp.exp(v) * scale
        value, slope = jax.value_and_grad(lambda v: change(h, x, target, sigma(v), noise))(
            log_ratio
        )
        return slope * target.words / target.rate, value

    return jax.vmap(one)(jnp.broadcast_to(log_ratio, noise.shape[:2]), noise)


def rising(
    h: Callable, x: Array, target: Target, scale, log_ratio: Array, key: Array, samples: int
) -> tuple[Array, Array, Array]:
    """What noise costs `[T]`, by how much that rises with log sigma `[T]`, and the change `[]`.

    A quarter of the evaluations repeat another's draw: these pairs lie `ASIDE` to either side of
    `log_ratio` by random signs. Of the difference a word's sign leaves its own share, and others'
    cancel in the mean. An antithetic draw on the other side would save fewer steps than the noise
    that it leaves in the rise costs.
    """
    pairs = -(-samples // 4)
    draws, signs = jax.random.split(key)
    noise = independent(draws, max(samples - pairs, pairs), x)
    aside = ASIDE * independent(signs, pairs, x[:, :1], jax.random.rademacher)[..., 0]
    sides = jnp.concatenate([aside, jnp.zeros_like(noise[pairs:, :, 0]), -aside])
    noise = jnp.concatenate([noise, noise[:pairs]])
    cost, moved = slopes(h, x, target, scale, log_ratio[None] + sides, noise)
    # A pair counts once.
    once = lambda v: jnp.concatenate([(v[:pairs] + v[-pairs:]) / 2, v[pairs:-pairs]])
    rise = jnp.mean((cost[:pairs] - cost[-pairs:]) * aside, 0) / (2 * ASIDE**2)
    return jnp.mean(once(cost), 0), rise, jnp.mean(once(moved))


class _Average(NamedTuple):
    """Weighted averages over steps so far.

    Attributes:
        result: `[T]` of the iterates after each step.
        change: `[]` of the change of the state.
        at: `[T]` of the iterates at which costs were taken.
        cost: `[T]` of what noise costs.
        rise: `[T]` of how much that rises with log sigma.
        moved: `[T]` variance of `at`.
        varied: `[T]` variance of `cost`.
        both: `[T]` their covariance.
        bent: `[T]` variance of `rise`.
    """

    result: Array
    change: Array
    at: Array
    cost: Array
    rise: Array
    moved: Array
    varied: Array
    both: Array
    bent: Array

    def add(
        self, share: Array, result: Array, change: Array, at: Array, cost: Array, rise: Array
    ) -> "_Average":
        far, dear, steep = at - self.at, cost - self.cost, rise - self.rise
        second = lambda old, product: (1 - share) * (old + share * product)
        return _Average(
            self.result + share * (result - self.result),
            self.change + share * (change - self.change),
            self.at + share * far,
            self.cost + share * dear,
            self.rise + share * steep,
            second(self.moved, far * far),
            second(self.varied, dear * dear),
            second(self.both, far * dear),
            second(self.bent, steep * steep),
        )

    def error(self, taken: Array) -> tuple[Array, Array]:
        """By how much the cost rises with log sigma, and the standard error of log sigma.

        The rise is 2 where h is locally linear, and less where it saturates, so that the same noise
        leaves more doubt. A few noisy steps tell little of it: it is drawn towards 2 as if that
        were known to within 1, and never taken to be more, or a search would stop where it looks
        steep. What the iterates' own moves make of the costs is no doubt: it is taken off, by
        regression.
        """
        count = 0.75 * jnp.maximum(taken, 1)  # steps, by their weights, that grow with the step
        small = jnp.finfo(self.cost.dtype).tiny
        left = self.varied - self.both**2 / jnp.maximum(self.moved, small)
        unsure = self.bent / count  # variance of the mean
        rise = jnp.clip((self.rise + 2 * unsure) / (1 + unsure), FLATTEST, 2)
        return rise, jnp.sqrt(jnp.maximum(left, 0) / count) / rise


def search(
    h: Callable, x: Array, target: Target, scale, key: Array, *, steps: int, samples: int,
    tolerance: float, probes: int, learning_rate: float, starts: Sequence[float],
) -> Found:  # fmt: skip
    """Descend in log sigma from the closed form, moved by `starts`; give the averaged iterate.

    Of several starts the one whose search measured the lowest loss; all draw the same noise.

    In units of rate / n the gradient of a locally linear case is sigma^2 / sigma*^2 - 1, so its
    curvature is 2 whatever the model, and a learning rate of 1/2 is Newton's step. Elsewhere it may
    be steep: steps are divided by the size of gradients, but of earlier ones only. Near an edge of
    h one draw in a thousand can carry a tenth of the mean, and dividing a gradient by itself would
    leave it out, as Adam does, so that sigma would come to rest above the optimum. How far a step
    may go is bounded, and as steps get shorter the bound cuts ever less. Iterates are averaged with
    weights that grow with the step, which forgets the start.
    """
    pace = lambda t: learning_rate * jnp.minimum(1.0, (FALLING / (t + 1)) ** 0.7)

    def settled(average: _Average, taken: Array) -> tuple[Array, Array]:
        rise, error = average.error(taken)
        free = target.real & ~(average.result > -tolerance)  # NaN is free, and never good
        good = (jnp.abs(average.cost - 1) <= rise * tolerance) & (error <= tolerance)
        return error, jnp.all(good | ~free) & jnp.isfinite(average.change)

    def begin(call):
        key, start = call
        linear = closed_form(h, x, target, scale, jax.random.split(key)[0], probes)
        first = jnp.where(target.real, jnp.minimum(linear + start, 0), 0)
        zero = jnp.zeros_like(first)
        average = _Average(first, jnp.zeros((), first.dtype), first, *[zero] * 6)
        return jnp.int32(0), first, zero, average

    def more(_, state) -> Array:
        taken, *_, average = state
        done = settled(average, taken)[1] & (taken >= LEAST)
        return (taken < steps) & ~done

    def step(call, state):
        taken, log_ratio, squares, average = state
        now = jax.random.fold_in(jax.random.split(call[0])[1], taken)
        cost, rise, moved = rising(h, x, target, scale, log_ratio, now, samples)
        size = jnp.sqrt(squares / jnp.maximum(1 - KEPT**taken, 1 - KEPT))
        move = jnp.clip(pace(taken) * (1 - cost) / (1 + size), -FARTHEST, FARTHEST)
        new = jnp.where(target.real, jnp.minimum(log_ratio + move, 0), 0)
        latest = jnp.square(jnp.clip(cost - 1, -LARGEST, LARGEST))
        squares = KEPT * squares + (1 - KEPT) * latest
        share = (2 / (taken + 2)).astype(new.dtype)
        return taken + 1, new, squares, average.add(share, new, moved, log_ratio, cost, rise)

    def search_from(start) -> Found:
        taken, _, _, average = repeat(begin, step, more, (key, start))
        error, done = settled(average, taken)
        return Found(average.result, error, average.cost - 1, average.change, taken, done)

    places = jnp.asarray(starts, wide(x).dtype)
    if len(starts) == 1:
        return search_from(places[0])
    found = jax.lax.map(search_from, places)
    losses = jax.vmap(lambda one: objective(target, one))(found)
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    return jax.tree.map(lambda v: v[best], found)._replace(steps=jnp.sum(found.steps))


def published(
    h: Callable, x: Array, target: Target, scale, key: Array, *, steps: int, samples: int,
    tolerance: float, learning_rate: float,
) -> Found:  # fmt: skip
    """The published loop: Adam on noisy losses, and the parameters after the luckiest one."""
    start, noises, judges = jax.random.split(key, 3)
    ratio = jax.random.normal(start, x.shape[:1], wide(x).dtype)
    optimizer = optax.adam(learning_rate)

    def loss(ratio, noise):
        one = lambda n: published_loss(h, x, target, ratio, n, scale)
        return jnp.mean(jax.vmap(one)(noise))

    def step(state, t):
        ratio, memory, lowest, kept = state
        value, slope = jax.value_and_grad(loss)(ratio, draw(noises, t, samples, x))
        update, memory = optimizer.update(slope, memory)
        ratio = ratio + jnp.asarray(update)
        # The loss is of the parameters before the step, as published.
        kept = jnp.where(value < lowest, ratio, kept)
        return (ratio, memory, jnp.minimum(value, lowest), kept), None

    begin = (ratio, optimizer.init(ratio), jnp.full((), jnp.inf, ratio.dtype), ratio)
    kept = jax.lax.scan(step, begin, jnp.arange(steps))[0][-1]
    log_ratio = jax.nn.log_sigmoid(kept)

    def judge(i):
        cost, moved = slopes(h, x, target, scale, log_ratio, draw(judges, i, TOGETHER, x))
        return jnp.mean(cost, 0), jnp.mean(moved)

    cost, moved = jax.lax.map(judge, jnp.arange(JUDGES // TOGETHER))
    slope, moved = jnp.mean(cost, 0) - 1, jnp.mean(moved)
    free = target.real & ~(log_ratio > -tolerance)
    return Found(
        log_ratio,
        jnp.full_like(log_ratio, jnp.nan),
        slope,
        moved,
        jnp.int32(steps),
        jnp.all((jnp.abs(slope) <= 2 * tolerance) | ~free) & jnp.isfinite(moved),
    )
