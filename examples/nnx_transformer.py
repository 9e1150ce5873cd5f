"""A transformer in Flax nnx, trained on a task whose answer is known, then asked what it looks at.

    python -m examples.nnx_transformer --out runs/nnx_transformer

A sequence holds eight letters and one star. Its class is the letter after the star, and the model
has to give it at the first place. So it is known what matters: the star, and the letter after it.
Scores that point elsewhere are wrong, and the last lines say how many do.

    embed = jxp.models.from_nnx(module, method="embed")     # ids -> vectors: ids have no gradient
    model = jxp.models.from_nnx(module, method="classify")  # vectors -> logits, without dropout
    h, g = model.cut("blocks/0")                            # in two, after the first block

At a cut, `layer_conductance` says through which places the answer passes. After the first block it
is all with the star: that block brought the letter there, and the second one takes it to the first
place, where it is read. So this is how the model solves its task.
"""

from pathlib import Path
from typing import Any

import cyclopts
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxplain as jxp
from jaxplain import report

LETTERS = "abcdefgh"
STAR, READ = len(LETTERS), len(LETTERS) + 1  # the place where the answer is read has a sign, too
SYMBOLS = [*LETTERS, "*", ">"]
LENGTH = 10


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.05, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class Transformer(nnx.Module):
    def __init__(self, width=32, layers=2, *, rngs):
        self.symbols = nnx.Embed(len(SYMBOLS), width, rngs=rngs)
        self.places = nnx.Param(0.3 * jax.random.normal(rngs.params(), (LENGTH, width)))
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.head = nnx.Linear(width, len(LETTERS), rngs=rngs)

    def embed(self, ids):  # [..., T] -> [..., T, D]
        return self.symbols(ids)

    def classify(self, x):  # [..., T, D] -> [..., letters]
        x = x + jnp.broadcast_to(self.places[...], x.shape)
        for block in self.blocks:
            x = block(x)
        return self.head(x[..., 0, :])

    def __call__(self, ids):
        return self.classify(self.embed(ids))


def sequences(count, seed):
    """`[N, T]` ids, and the place `[N]` of the letter that is the answer."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, len(LETTERS), (count, LENGTH)).astype(np.int32)
    star = draw.integers(1, LENGTH - 1, count)
    ids[:, 0], ids[np.arange(count), star] = READ, STAR
    return ids, star + 1


def train(module, *, updates, batch=64):
    """Train the module as it is, with dropout."""
    ids, place = sequences(updates * batch, seed=0)
    ids, labels = ids.reshape(updates, batch, -1), ids[np.arange(len(ids)), place]
    definition, params, rest = nnx.split(module, nnx.Param, ...)
    optimiser = optax.adam(3e-3)

    def loss(params, rest, ids, labels):
        model = nnx.merge(definition, params, rest, copy=True)  # of this trace
        losses = optax.softmax_cross_entropy_with_integer_labels(model(ids), labels)
        return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))  # what dropout drew from

    def step(state, given):
        params, rest, moments = state
        slope, rest = jax.grad(loss, has_aux=True)(params, rest, *given)
        updates, moments = optimiser.update(slope, moments)
        return (optax.apply_updates(params, updates), rest, moments), None

    state = params, rest, optimiser.init(params)
    given = jnp.array(ids), jnp.array(labels.reshape(updates, batch))
    params, rest, _ = jax.jit(lambda s: jax.lax.scan(step, s, given)[0])(state)
    nnx.update(module, params, rest)


def main(
    *,
    out: Path = Path("runs/nnx_transformer"),
    updates: int = 400,
    count: int = 200,
    steps: int = 128,
):
    """Train for UPDATES, explain COUNT new sequences by STEPS nodes, write a page and a figure."""
    module = nnx.jit(lambda: Transformer(rngs=nnx.Rngs(0)))()  # in one program, which is quicker
    train(module, updates=updates)

    # Two functions of one sequence; both take the same parameters. The module stays as it is.
    embed = jxp.models.from_nnx(module, method="embed")
    model = jxp.models.from_nnx(module, method="classify")
    h, g = model.cut("blocks/0")

    ids, places = sequences(count, seed=1)
    logits = jax.jit(lambda params, ids: model.f(params, embed.f(params, ids)))(model.params, ids)
    right = logits.argmax(-1) == ids[np.arange(count), places]
    print(f"test accuracy {right.mean():.1%} on {count} new sequences")

    def explain(params, example, key):
        x = embed.f(params, example["ids"])
        logits = model.f(params, x)
        target = jnp.argmax(logits)
        over = lambda logits: logits[target] - jnp.mean(logits)
        # What an average letter is: against it, a score says that it is this one that counts.
        mean = jnp.mean(embed.f(params, jnp.arange(len(LETTERS))), 0)
        along: Any = dict(baseline=jnp.broadcast_to(mean, x.shape), steps=steps)
        scores = jxp.integrated_gradients(lambda x: over(model.f(params, x)), x, **along)
        # Nothing bypasses a block: what g still takes of x is its shape.
        through = jxp.layer_conductance(
            lambda x: h(params, x), lambda a: over(g(params, a, x)), x, **along
        )
        return dict(attribution=scores, logits=logits, target=target, through=through)

    examples = [
        {"ids": row, "pieces": [SYMBOLS[n] for n in row], "label": SYMBOLS[row[place]]}
        for row, place in zip(ids, places, strict=True)
    ]
    about = {"data": "letter after the star", "model": "nnx transformer"}
    about |= {"method": "integrated_gradients", "classes": list(LETTERS)}
    summary = jxp.run(
        explain, model.params, examples, out, key=jax.random.key(0), configuration=about
    )
    print(f"{summary.done} of {summary.examples} sequences explained, {summary.failed} failed")

    records = [record for record in jxp.load(out) if record.result]
    scores = np.stack([r.result["attribution"].scores.sum(-1) for r in records])
    through = np.stack([r.result["through"].scores.sum(-1) for r in records])
    answers = places[[r.index for r in records]]
    rows = np.arange(len(records))
    found = np.abs(scores).argmax(1)
    hit = (found == answers) | (found == answers - 1)
    print(f"the largest score is the answer's or the star's in {hit.mean():.1%}")

    print("share of the change that passes through   the letter   the star   the first place")
    for name, part in (("embeddings", scores), ("block 0", through)):
        shares = [part[rows, at] / part.sum(1) for at in (answers, answers - 1, 0 * answers)]
        print(f"{name:<38}" + "".join(f"{np.median(s):>13.0%}" for s in shares))

    jxp.plot.text(records[0], title=f"class {records[0].notes['label']}").savefig(out / "text.png")
    print(f"figure: {out / 'text.png'}; page: {report.page(out)}")


if __name__ == "__main__":
    cyclopts.run(main)
