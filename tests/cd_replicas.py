"""Contextual decomposition once more, as the papers write it: numpy in float64, layer by layer.

A value is a pair of its parts, (relevant, irrelevant). Parameters are those of the linen models in
decomposed_models.py, as trees of numpy arrays.
"""

import math
from typing import NamedTuple

import numpy as np


class Parts(NamedTuple):
    rel: np.ndarray
    irr: np.ndarray

    @property
    def total(self):
        return self.rel + self.irr


def each(fn, *parts):
    """A function that moves elements or is linear, on each part alone."""
    return Parts(fn(*(p.rel for p in parts)), fn(*(p.irr for p in parts)))


def masked(x, mask):
    x, mask = np.asarray(x, np.float64), np.asarray(mask, np.float64)
    return Parts(x * mask, x * (1 - mask))


def share(p, tie=0.5):
    """|relevant| : |irrelevant| as a fraction, elementwise; `tie` where both are zero."""
    size = np.abs(p.rel) + np.abs(p.irr)
    return np.where(size > 0, np.abs(p.rel) / np.where(size > 0, size, 1), tie)


def plus(p, constant, tie=0.5):
    """Singh et al. 2019, eq. 5 and 6: a bias goes to the parts in proportion to their sizes."""
    part = share(p, tie)
    return Parts(p.rel + part * constant, p.irr + (1 - part) * constant)


def dense(p, layer, tie=0.5):
    p = each(lambda v: v @ layer["kernel"], p)
    return plus(p, layer["bias"], tie) if "bias" in layer else p


# Activations.


def first(phi, p):
    """Singh et al. 2019, eq. 10 and 11."""
    return Parts(phi(p.rel), phi(p.total) - phi(p.rel))


def last(phi, p):
    """Hsu et al. 2024: what the relevant part adds when it comes last."""
    return Parts(phi(p.total) - phi(p.irr), phi(p.irr))


def shapley(phi, p, tie=0.5):
    """The mean of coming first and coming last; phi(0) goes to the parts as a bias does."""
    return plus(apart(phi, p), phi(np.zeros_like(p.rel)), tie)


def apart(phi, p):
    """What the parts add to phi(0): the mean of coming first and coming last."""
    zero = phi(np.zeros_like(p.rel))
    rel = (phi(p.rel) - zero + phi(p.total) - phi(p.irr)) / 2
    irr = (phi(p.irr) - zero + phi(p.total) - phi(p.rel)) / 2
    return Parts(rel, irr)


def times(a, b):
    """The two-part Shapley value of a product: what both parts make together is halved."""
    cross = (a.rel * b.irr + a.irr * b.rel) / 2
    return Parts(a.rel * b.rel + cross, a.irr * b.irr + cross)


def relu(v):
    return np.maximum(v, 0)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def gelu(v):
    return v * (1 + np.vectorize(math.erf)(v / math.sqrt(2))) / 2


def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Images, [H, W, C].


def conv(p, layer):
    """3 by 3, zeros beyond the edges."""

    def one(image):
        height, width, _ = image.shape
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros((height, width, layer["kernel"].shape[-1]))
        for i in range(height):
            for j in range(width):
                out[i, j] = np.einsum("abc,abco->o", padded[i : i + 3, j : j + 3], layer["kernel"])
        return out

    return plus(each(one, p), layer["bias"])


def batch_norm(p, layer, stats, epsilon=1e-5):
    """The published code's: one affine step, whose value at zero is its bias."""
    scale = layer["scale"] / np.sqrt(stats["var"] + epsilon)
    return plus(each(lambda v: v * scale, p), layer["bias"] - stats["mean"] * scale)


def max_pool(p):
    """2 by 2: both parts of the element that is the greatest in all."""
    height, width, channels = p.rel.shape
    out = Parts(*(np.zeros((height // 2, width // 2, channels)) for _ in "ri"))
    for i in range(height // 2):
        for j in range(width // 2):
            for c in range(channels):
                window = [(2 * i + a, 2 * j + b, c) for a in (0, 1) for b in (0, 1)]
                top = max(window, key=lambda at: p.total[at])
                out.rel[i, j, c], out.irr[i, j, c] = p.rel[top], p.irr[top]
    return out


def avg_pool(p):
    def one(v):
        height, width, channels = v.shape
        return v.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))

    return each(one, p)


def acd_cnn(variables, x, mask):
    """Singh et al. 2019 on `decomposed_models.CNN`."""
    params, stats = variables["params"], variables["batch_stats"]
    norm = lambda p, i: batch_norm(p, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"])
    p = first(relu, norm(conv(masked(x, mask), params["Conv_0"]), 0))
    p = max_pool(p)
    p = first(relu, each(np.add, p, norm(conv(p, params["Conv_1"]), 1)))
    return dense(each(np.ravel, avg_pool(p)), params["Dense_0"])


def mlp(variables, x, mask, rule, activations):
    """Dense layers, the activations between them by `rule`."""
    params, p = variables["params"], masked(x, mask)
    for i, phi in enumerate(activations):
        p = rule(phi, dense(p, params[f"Dense_{i}"]))
    return dense(p, params[f"Dense_{len(activations)}"])


# Recurrent networks, x [T, D], mask [T]. The last state and a dense layer.


def three_parts(phi, rel, irr, bias):
    """Murdoch et al. 2018, eq. 13, over the orders in which the bias comes first."""
    r = (phi(rel + bias) - phi(bias) + phi(rel + irr + bias) - phi(irr + bias)) / 2
    q = (phi(irr + bias) - phi(bias) + phi(rel + irr + bias) - phi(rel + bias)) / 2
    return r, q, phi(bias)


def murdoch(variables, x, start, stop, bias_product="inclusive"):
    """Murdoch et al. 2018 on `LSTMCell` or `OptimizedLSTMCell`; the phrase is `start` to `stop`.

    `bias_product`: where the product of the two gates' biases goes at a word of the phrase;
    "exclusive" is to the phrase but for its last word.
    """
    cell, head = variables["params"]["cell"], variables["params"]["Dense_0"]
    width = head["kernel"].shape[0]
    rel_h, irr_h, rel_c, irr_c = (np.zeros(width) for _ in range(4))
    for t, word in enumerate(np.asarray(x, np.float64)):
        inside = start <= t <= stop

        def parts(gate, word=word, inside=inside, rel_h=rel_h, irr_h=irr_h):
            h, i = cell[f"h{gate}"], cell[f"i{gate}"]
            now = word @ i["kernel"]
            rel = rel_h @ h["kernel"] + (now if inside else 0)
            irr = irr_h @ h["kernel"] + (0 if inside else now)
            return rel, irr, h["bias"]

        r_i, q_i, z_i = three_parts(sigmoid, *parts("i"))
        r_g, q_g, z_g = three_parts(np.tanh, *parts("g"))
        r_f, q_f, z_f = three_parts(sigmoid, *parts("f"))
        rel = r_i * (r_g + z_g) + z_i * r_g
        irr = q_i * (r_g + q_g + z_g) + (r_i + z_i) * q_g
        last_one = {"inclusive": stop + 1, "exclusive": stop, "irrelevant": start}[bias_product]
        if start <= t < last_one:
            rel = rel + z_i * z_g
        else:
            irr = irr + z_i * z_g
        if t > 0:
            rel = rel + (r_f + z_f) * rel_c
            irr = irr + (r_f + q_f + z_f) * irr_c + q_f * rel_c
        o = sigmoid(sum(parts("o")))
        rel_c, irr_c = rel, irr
        rel_h = o * (np.tanh(rel) + np.tanh(rel + irr) - np.tanh(irr)) / 2
        irr_h = o * (np.tanh(irr) + np.tanh(rel + irr) - np.tanh(rel)) / 2
    return Parts(rel_h @ head["kernel"], irr_h @ head["kernel"] + head["bias"])


def gru(variables, x, mask):
    """Two-part Shapley values all through a `GRUCell`.

    All constants that come before an activation or a product are one, of 1 - sigmoid(v) too; where
    there is no part yet, as in the first state, it is shared by how much of x is in the group.
    """
    cell, head = variables["params"]["cell"], variables["params"]["Dense_0"]
    tie = np.mean(mask, dtype=np.float64)
    through = lambda p, name: each(lambda v: v @ cell[name]["kernel"], p)
    h = Parts(*(np.zeros(head["kernel"].shape[0]) for _ in "ri"))
    for t in range(len(x)):
        word = masked(x[t], mask[t])

        def before(name, more, word=word):
            both = each(np.add, through(word, f"i{name}"), more)
            return plus(both, cell[f"i{name}"]["bias"], tie)

        r = shapley(sigmoid, before("r", through(h, "hr")), tie)
        opened = apart(sigmoid, before("z", through(h, "hz")))
        z, kept = plus(opened, 0.5, tie), plus(each(np.negative, opened), 0.5, tie)
        n = shapley(np.tanh, before("n", times(r, dense(h, cell["hn"], tie))), tie)
        h = each(np.add, times(kept, n), times(z, h))
    return dense(h, head, tie)


# Transformers, x [T, D].


def layer_norm(p, layer, epsilon=1e-6):
    """Hsu et al. 2024: the total's variance; the bias in proportion to the parts of the input."""

    def one(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(variance + epsilon) * layer["scale"]

    variance = p.total.var(-1, keepdims=True)
    size = np.abs(p.rel) + np.abs(p.irr) + 1e-8
    rel = one(p.rel) + layer["bias"] * np.abs(p.rel) / size
    return Parts(rel, one(p.total) + layer["bias"] - rel)


def attention(p, layers, heads, *, held):
    """Hsu et al. 2024: the weights held as the total makes them, or queries and keys decomposed."""
    tokens, width = p.rel.shape
    split = lambda v: v.reshape(tokens, heads, -1)
    q, k, v = (each(split, dense(p, layers[name])) for name in ("query", "key", "value"))
    weights = lambda a, b: softmax(np.einsum("qhd,khd->hqk", a, b) / math.sqrt(width / heads))
    mix = lambda w, u: np.einsum("hqk,khd->qhd", w, u).reshape(tokens, -1)
    whole = weights(q.total, k.total)
    rel = mix(whole if held else weights(q.rel, k.rel), v.rel)
    return dense(Parts(rel, mix(whole, v.total) - rel), layers["out"])


def block(p, attended, norms, inner, outer, epsilon):
    """What follows attention in a layer: sums, norms, and two dense layers with gelu."""
    p = layer_norm(each(np.add, p, attended), norms[0], epsilon)
    fed = dense(last(gelu, dense(p, inner)), outer)
    return layer_norm(each(np.add, p, fed), norms[1], epsilon)


def transformer(variables, x, mask, *, held=True):
    """Hsu et al. 2024 on `decomposed_models.Transformer`."""
    params = variables["params"]
    layer, p = params["Block_0"], masked(x, mask)
    flat = {}
    for name, v in layer["MultiHeadDotProductAttention_0"].items():
        kernel = v["kernel"]  # [D, heads, d], and [heads, d, D] for the last
        shape = (-1, kernel.shape[-1]) if name == "out" else (kernel.shape[0], -1)
        flat[name] = {"kernel": kernel.reshape(shape), "bias": v["bias"].reshape(-1)}
    norms = [layer[f"LayerNorm_{i}"] for i in range(2)]
    attended = attention(p, flat, 2, held=held)
    p = block(p, attended, norms, layer["Dense_0"], layer["Dense_1"], 1e-6)
    pooled = last(np.tanh, dense(each(lambda v: v[0], p), params["Dense_0"]))
    return dense(pooled, params["Dense_1"])


def bert(params, x, mask, *, heads, epsilon, held=True):
    """Hsu et al. 2024 on a Hugging Face BERT with a pooler, cut at its words: x has no padding."""
    tokens = len(x)
    p = plus(masked(x, mask), params["token_type_embeddings"]["embedding"][:1])
    p = plus(p, params["position_embeddings"]["embedding"][:tokens])
    p = layer_norm(p, params["embeddings_norm"], epsilon)
    for i in range(sum(name.startswith("layer_") for name in params)):
        layer = params[f"layer_{i}"]
        layers = {**layer, "out": layer["attention_output"]}
        attended = attention(p, layers, heads, held=held)
        norms = layer["attention_norm"], layer["output_norm"]
        p = block(p, attended, norms, layer["intermediate"], layer["output"], epsilon)
    pooled = last(np.tanh, dense(each(lambda v: v[0], p), params["pooler"]))
    return dense(pooled, params["classifier"])
