"""Layer-wise relevance propagation: every rule against the papers' formulas, in plain numpy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxplain.methods import relevance as r
from tests.helpers import close, quick_compile

NUMBERS = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


# A network is a list of affine layers with ReLUs between: of each, the whole matrix `W [in, out]`
# with BatchNorm folded in, which weights there are, `[in, out]`, and the constants `c [out]`.


def norm(p, name, z):
    """BatchNorm, as flax writes it; `scale` has both signs, so that it turns weights around."""
    mean, var, scale, offset = (p[f"{name}_{n}"] for n in ("mean", "var", "scale", "offset"))
    shape = (1,) * (z.ndim - 1) + (-1,)
    mul = lax.rsqrt(var.reshape(shape) + 1e-5) * scale.reshape(shape)
    return (z - mean.reshape(shape)) * mul + offset.reshape(shape)


def dense_net(p, x):
    """x `[5]`."""
    x = jax.nn.relu(norm(p, "n", x @ p["a"] + p["b"]))
    return jax.nn.relu((x @ p["c"]) * p["t"] - p["d"]) @ p["e"]


def conv_net(p, x):
    """x `[6, 6, 2]`."""
    x = lax.conv_general_dilated(x[None], p["a"], (1, 1), "SAME", dimension_numbers=NUMBERS)
    x = jax.nn.relu(norm(p, "n", x + p["b"].reshape(1, 1, 1, -1)))
    x = nn.avg_pool(x, (3, 3), (3, 3)).reshape(-1)
    return jax.nn.relu(p["t"] - x @ p["c"]) @ p["e"]


DENSE = {"a": (5, 8), "b": (8,), "c": (8, 4), "t": (4,), "d": (4,), "e": (4,)}
CONV = {"a": (3, 3, 2, 3), "b": (3,), "c": (12, 4), "t": (4,), "e": (4,)}
NETS = {"dense": (dense_net, DENSE, 8, (5,)), "conv": (conv_net, CONV, 3, (6, 6, 2))}


def draw(name, seed=0):
    net, shapes, units, shape = NETS[name]
    rng = np.random.default_rng(seed)
    p = {k: rng.normal(size=s) for k, s in shapes.items()}
    p |= {f"n_{n}": rng.normal(size=units) for n in ("mean", "scale", "offset")}
    return net, p | {"n_var": 0.5 + rng.uniform(size=units)}, rng.normal(size=shape)


def matrices(name, p, x):
    """`(kind, W, exists, c, bends)` of each layer."""
    s = p["n_scale"] / np.sqrt(p["n_var"] + 1e-5)
    c = (p["b"] - p["n_mean"]) * s + p["n_offset"]
    ones = np.ones_like
    last = ("dense", p["e"][:, None], ones(p["e"][:, None]), np.zeros(1), False)
    if name == "dense":
        a, b = p["a"] * s, p["c"] * p["t"]
        return [("first", a, ones(a), c, True), ("dense", b, ones(b), -p["d"], True), last]
    W, exists = np.zeros((2, 6, 6, 2, 6, 6, 3))
    for i, j, u, v in np.ndindex(6, 6, 3, 3):
        if 0 <= i + u - 1 < 6 and 0 <= j + v - 1 < 6:
            W[i + u - 1, j + v - 1, :, i, j] = p["a"][u, v] * s
            exists[i + u - 1, j + v - 1, :, i, j] = 1
    pool = np.zeros((6, 6, 3, 2, 2, 3))
    for i, j, k in np.ndindex(6, 6, 3):
        pool[i, j, k, i // 3, j // 3, k] = 1 / 9
    W, exists, pool = W.reshape(72, 108), exists.reshape(72, 108), pool.reshape(108, 12)
    return [
        ("first", W, exists, np.tile(c, 36), True),
        ("pooling", pool, pool > 0, np.zeros(12), False),
        ("dense", -p["c"], ones(p["c"]), p["t"], True),
        last,
    ]


def share(parts, c, relevance):
    """Each product's share of its output's sum of products and constants."""
    z = parts.sum(0) + c
    return parts @ np.where(z == 0, 0, relevance / np.where(z == 0, 1, z))


def up(v):
    return np.maximum(v, 0)


def down(v):
    return np.minimum(v, 0)


def epsilon(x, W, exists, c, R, e=0.3):
    z = x @ W + c
    return sum(
        (x * W.T).T[:, k] * R[k] / (z[k] + e * (1 if z[k] >= 0 else -1)) for k in range(len(z))
    )


def gamma_signed(x, W, exists, c, R, g=0.5):
    P, z = x[:, None] * W, x @ W + c
    above = share(P + g * up(P), c + g * up(c), R * (z >= 0))
    return above + share(P + g * down(P), c + g * down(c), R * (z < 0))


def alpha_beta(x, W, exists, c, R, a=2, b=1, bias=1):
    P = x[:, None] * W
    return a * share(up(P), bias * up(c), R) - b * share(down(P), bias * down(c), R)


def gamma(x, W, exists, c, R, g=0.5):
    return share(x[:, None] * (W + g * up(W)), c + g * up(c), R)


def box(x, W, exists, c, R):
    return share(x[:, None] * W - LOW[:, None] * up(W) - HIGH * down(W), 0, R)


LOW, HIGH = np.array([-3.0, -4.0]), 5.0
# Of each rule, the formula and where it is: layers of other kinds have LRP-0.
RULES = {
    "zero": (r.zero(), lambda x, W, exists, c, R: share(x[:, None] * W, c, R)),
    "zero_unbiased": (
        r.zero(ignore_bias=True),
        lambda x, W, exists, c, R: share(x[:, None] * W, 0, R),
    ),
    "epsilon": (r.epsilon(0.3), epsilon),
    "epsilon_unbiased": (
        r.epsilon(0.3, ignore_bias=True),
        lambda x, W, exists, c, R: epsilon(x, W, exists, 0, R),
    ),
    "gamma": (r.gamma(0.5, signed=False), gamma),
    "gamma_unbiased": (
        r.gamma(0.5, signed=False, ignore_bias=True),
        lambda x, W, exists, c, R: gamma(x, W, exists, 0 * c, R),
    ),
    "gamma_signed": (r.gamma(0.5), gamma_signed),
    "gamma_signed_unbiased": (
        r.gamma(0.5, ignore_bias=True),
        lambda x, W, exists, c, R: gamma_signed(x, W, exists, 0 * c, R),
    ),
    "alpha2_beta1": (r.alpha_beta(2, 1), alpha_beta),
    "alpha1_beta0": (r.alpha_beta(1, 0), partial(alpha_beta, a=1, b=0)),
    "alpha2_beta1_unbiased": (r.alpha_beta(2, 1, ignore_bias=True), partial(alpha_beta, bias=0)),
    "z_plus": (r.z_plus(), partial(alpha_beta, a=1, b=0, bias=0)),
    "z_plus_of_positive": (
        r.z_plus(signed=False),
        lambda x, W, exists, c, R: share(x[:, None] * up(W), 0, R),
    ),
    "w_square": (r.w_square(), lambda x, W, exists, c, R: share(W**2, 0, R)),
    "flat": (r.flat(), lambda x, W, exists, c, R: share(exists, 0, R)),
}


def replica(name, p, x, of):
    """The relevance of each input; `of(kind)` is the formula."""
    layers, states = matrices(name, p, x), [x.reshape(-1)]
    for _, W, _, c, bends in layers:
        z = states[-1] @ W + c
        states.append(up(z) if bends else z)
    R = states.pop()
    for (kind, W, exists, c, _), x in zip(layers[::-1], states[::-1], strict=True):
        R = of(kind)(x, W, exists, c, R)
    return R.reshape(NETS[name][-1])


SEED = 10  # where no rule leaves everything 0
ZERO = RULES["zero"][1]


@pytest.mark.parametrize("name", NETS)
def test_rules_are_the_papers(x64, name):
    net, p, x = draw(name, SEED)
    tables = {k: {**r.LRP_ZERO, "affine": rule} for k, (rule, _) in RULES.items()}
    every = lambda p, x: {k: r.lrp(partial(net, p), x, rules=t) for k, t in tables.items()}
    got = jax.jit(every)(p, x)
    wants = {}
    for k, (_, formula) in RULES.items():
        want = replica(
            name, p, x, lambda kind, formula=formula: ZERO if kind == "pooling" else formula
        )
        # Sums of products that cancel: 1 part in 1e3 is left of some.
        close(got[k].scores, want, factor=1e3)
        close(got[k].output, net(p, x))
        assert abs(got[k].gap + got[k].output - want.sum()) < 1e-9 * np.abs(want).max()
        assert np.abs(want).max() > 1e-2
        wants[k] = want
    pairs = [(a, b) for a in wants for b in wants if a < b]
    for a, b in pairs:  # so that the test can fail
        assert np.abs(wants[a] - wants[b]).max() > 1e-3 * np.abs(wants[a]).max(), (a, b)


@pytest.mark.parametrize("name", NETS)
def test_tables_by_kind_and_place_of_a_layer(x64, name):
    """Of the convolutional net the first layer is a convolution, and the only one."""
    net, p, x = draw(name, SEED)
    low = LOW if name == "conv" else -3.0
    e, plus, two = (RULES[k][1] for k in ("epsilon", "z_plus", "alpha2_beta1"))
    flat = RULES["flat"][1]

    def bounded(x, W, exists, c, R):
        least = np.tile(LOW, 36) if name == "conv" else np.full(5, -3.0)
        return share(x[:, None] * W - least[:, None] * up(W) - HIGH * down(W), 0, R)

    tables = {
        "plus": (r.epsilon_plus(0.3), plus),
        "plus_flat": (r.epsilon_plus_flat(0.3), flat),
        "two": (r.epsilon_alpha2_beta1(0.3), two),
        "two_flat": (r.epsilon_alpha2_beta1_flat(0.3), flat),
        "box": (r.epsilon_gamma_box(low, HIGH, 0.3), bounded),
        "deep": (r.deep_taylor(low, HIGH), bounded),
        "deep_square": (r.deep_taylor(), RULES["w_square"][1]),
    }
    every = lambda p, x: {k: r.lrp(partial(net, p), x, rules=t) for k, (t, _) in tables.items()}
    got = jax.jit(every)(p, x)
    for k, (_, first) in tables.items():
        deep = k.startswith("deep")
        by_kind = {
            "first": e if name == "dense" and k in ("plus", "two") else first,
            "pooling": flat
            if deep
            else partial(epsilon, e=1e-6 / 9),  # of the sum, before division
            "dense": plus if deep else e,
        }
        want = replica(name, p, x, by_kind.__getitem__)
        close(got[k].scores, want, factor=1e3)


# A transformer's layer, and a recurrent one.


def attention(p, x):
    """x `[T, 4]`: normalised, two products of values, a gate, a residual connection."""
    h = nn.LayerNorm().apply({"params": {"scale": p["scale"], "bias": p["bias"]}}, x)
    q, k, v = h @ p["q"] + p["qb"].reshape(1, -1), h @ p["k"], h @ p["v"]
    mask = jnp.where(jnp.arange(5) < 4, 0, -jnp.inf).reshape(1, -1)
    x = x + jax.nn.softmax(q @ k.T / 2 + mask, axis=-1) @ v
    x = x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * p["rms"].reshape(1, -1)
    x = jax.nn.silu(x @ p["g"]) * (x @ p["u"])
    return jnp.mean(jax.nn.gelu(x), 0) @ p["e"]


E = 1e-6


def stable(z):
    return z + E * np.where(z >= 0, 1, -1)


def linear(x, W, z, R):
    """x `[T, i]`, z and R `[T, j]`."""
    return x * ((R / stable(z)) @ W.T)


def attention_replica(p, x, held):
    """AttnLRP, or with attention and gates held; also the value that f has."""
    T = len(x)
    sigma = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    h = (x - x.mean(-1, keepdims=True)) * sigma * p["scale"] + p["bias"]
    q, k, v = h @ p["q"] + p["qb"], h @ p["k"], h @ p["v"]
    s = np.where(np.arange(T) < 4, q @ k.T / 2, -np.inf)
    a = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    y = x + a @ v
    n = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * p["rms"]
    g, u = n @ p["g"], n @ p["u"]
    m = (g / (1 + np.exp(-g))) * u
    act = np.asarray(jax.nn.gelu(m))
    mean = act.mean(0)
    out = mean @ p["e"]

    R = mean * p["e"] / stable(out) * out
    R = act * (R / stable(act.sum(0)))
    Rg = Ru = m / stable(m) * R / 2
    R = linear(n, p["g"], g, Rg) + linear(n, p["u"], u, Ru)
    R = n / stable(n) * R
    Rx, Ro = x / stable(y) * R, a @ v / stable(y) * R
    half = 1 if held else 2
    shares = Ro / stable(a @ v) / half
    Rv, Ra = v * (a.T @ shares), a * (shares @ v.T)
    Rh = linear(h, p["v"], v, Rv)
    if not held:
        finite = np.where(np.isfinite(s), s, 0)
        Rs = finite * (Ra - a * Ra.sum(-1, keepdims=True))
        Rs = Rs * finite / stable(finite)  # of the division by 2 with the mask added
        z = q @ k.T
        shares = Rs / stable(z) / 2
        Rq, Rk = q * (shares @ k), k * (shares.T @ q)
        Rh += linear(h, p["q"], q, Rq) + linear(h, p["k"], k, Rk)
    c = Rh / stable(h) * p["scale"] * sigma
    return Rx + x * (c - c.mean(-1, keepdims=True)), out


@pytest.mark.parametrize("held", [False, True])
def test_a_transformers_layer(x64, held):
    rng = np.random.default_rng(5)
    p = {n: rng.normal(size=(4, 4)) / 2 for n in "qkvgu"}
    p |= {n: rng.normal(size=4) for n in ("scale", "bias", "rms", "qb", "e")}
    x = rng.normal(size=(5, 4))
    rules = r.CP_LRP if held else r.ATTN_LRP
    got = jax.jit(lambda p, x: r.lrp(partial(attention, p), x, rules=rules))(p, x)
    want, out = attention_replica(p, x, held)
    close(got.output, out)
    close(got.scores, want, factor=1e3)


def recurrent(p, x):
    """x `[T, 3]`, by a scan."""

    def cell(state, token):
        h, c = state
        i, f, o, g = jnp.split(token @ p["a"] + h @ p["b"] + p["c"], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros(4)
    return lax.scan(cell, (zero, zero), x)[0][0] @ p["e"]


def recurrent_replica(p, x, held):
    """Arras et al. 2017: gates are held; or a product's relevance is halved."""
    T, n = len(x), 4
    h, c, kept = np.zeros(n), np.zeros(n), []
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    for token in x:
        xa, hb = token @ p["a"], h @ p["b"]
        z = xa + hb + p["c"]
        i, f, o, g = (
            sigmoid(z[:n]),
            sigmoid(z[n : 2 * n]),
            sigmoid(z[2 * n : 3 * n]),
            np.tanh(z[3 * n :]),
        )
        new = f * c + i * g
        kept.append((token, h, c, xa, hb, z, i, f, o, g, new))
        h, c = o * np.tanh(new), new
    out = h @ p["e"]
    Rh, Rc, scores = h * p["e"] / stable(out) * out, np.zeros(n), np.zeros_like(x)
    half = 1 if held else 2
    for t in reversed(range(T)):
        token, h, c, xa, hb, z, i, f, o, g, new = kept[t]
        shown = o * np.tanh(new)
        Ro = shown / stable(shown) * Rh / half
        Rc = Rc + Ro
        Rf, Ri = f * c / stable(new) * Rc, i * g / stable(new) * Rc
        Rf, Ri = f * c / stable(f * c) * Rf / half, i * g / stable(i * g) * Ri / half
        gates = (0 * Ri, 0 * Rf, 0 * Ro) if held else (Ri, Rf, Ro)
        Rz = np.concatenate([*gates, Ri])
        # The sum of both products, then the constant: as the program adds them.
        R = (xa + hb) / stable(z) * Rz
        Rx, Rb = xa / stable(xa + hb) * R, hb / stable(xa + hb) * R
        scores[t] = linear(token[None], p["a"], xa[None], Rx[None])[0]
        Rh, Rc = linear(h[None], p["b"], hb[None], Rb[None])[0], Rf
    return scores


@pytest.mark.parametrize("held", [False, True])
def test_a_recurrent_network_in_a_scan(x64, held):
    rng = np.random.default_rng(6)
    shapes = {"a": (3, 16), "b": (4, 16), "c": (16,), "e": (4,)}
    p = {k: rng.normal(size=s) for k, s in shapes.items()}
    x = rng.normal(size=(5, 3))
    rules = r.CP_LRP if held else r.LRP_EPSILON
    got = jax.jit(lambda p, x: r.lrp(partial(recurrent, p), x, rules=rules))(p, x)
    close(got.scores, recurrent_replica(p, x, held), factor=1e3)


def gated(p, x):
    """x `[T, 3]`: a GRU."""

    def cell(h, token):
        xa, hb = jnp.split(token @ p["a"], 3), jnp.split(h @ p["b"], 3)
        z, reset = jax.nn.sigmoid(xa[0] + hb[0]), jax.nn.sigmoid(xa[1] + hb[1])
        new = jnp.tanh(xa[2] + reset * hb[2])
        return (1.0 - z) * new + z * h, None

    return lax.scan(cell, jnp.zeros(4), x)[0] @ p["e"]


def gated_replica(p, x):
    """Gates hold: the update gate, what it leaves of 1, and the reset gate."""
    h, kept, sigmoid = np.zeros(4), [], lambda v: 1 / (1 + np.exp(-v))
    for token in x:
        xa, hb = np.split(token @ p["a"], 3), np.split(h @ p["b"], 3)
        z, reset = sigmoid(xa[0] + hb[0]), sigmoid(xa[1] + hb[1])
        new = np.tanh(xa[2] + reset * hb[2])
        kept.append((token, h, xa, hb, z, reset, new))
        h = (1 - z) * new + z * h
    R, scores = h * p["e"] / stable(h @ p["e"]) * (h @ p["e"]), np.zeros_like(x)
    for t in reversed(range(len(x))):
        token, h, xa, hb, z, reset, new = kept[t]
        state = (1 - z) * new + z * h
        Rn, Rh = (1 - z) * new / stable(state) * R, z * h / stable(state) * R
        Rn, Rh = (v / stable(v) * r for v, r in (((1 - z) * new, Rn), (z * h, Rh)))
        before = xa[2] + reset * hb[2]
        Rx, Rr = xa[2] / stable(before) * Rn, reset * hb[2] / stable(before) * Rn
        Rr = reset * hb[2] / stable(reset * hb[2]) * Rr
        none = np.zeros(8)
        Rx, Rr = np.concatenate([none, Rx]), np.concatenate([none, Rr])
        scores[t] = linear(token[None], p["a"], np.concatenate(xa)[None], Rx[None])[0]
        R = Rh + linear(h[None], p["b"], np.concatenate(hb)[None], Rr[None])[0]
    return scores


def test_what_a_gate_leaves_of_one_is_a_gate(x64):
    rng = np.random.default_rng(7)
    p = {k: rng.normal(size=s) for k, s in {"a": (3, 12), "b": (4, 12), "e": (4,)}.items()}
    x = rng.normal(size=(5, 3))
    got = jax.jit(lambda p, x: r.lrp(partial(gated, p), x, rules=r.CP_LRP))(p, x)
    close(got.scores, gated_replica(p, x), factor=1e3)
