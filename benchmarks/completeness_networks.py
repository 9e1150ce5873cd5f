"""The networks of `benchmarks.completeness`, in jax and in torch, and DeepLIFT by the peers."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

HIDDEN, WIDTH, LENGTH = 16, 8, 6
NUMBERS = ("NCHW", "OIHW", "NCHW")


class Network(NamedTuple):
    """A network in both frameworks; parameters go by torch's names."""

    jax: Callable[[Any, Any], jax.Array]
    torch: str
    shape: tuple[int, ...]


def dense(p: Any, name: str, x: Any) -> Any:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def conv(p: Any, name: str, x: Any) -> Any:
    y = lax.conv_general_dilated(
        x[None], p[f"{name}.weight"], (1, 1), "SAME", dimension_numbers=NUMBERS
    )[0]
    return y + p[f"{name}.bias"][:, None, None] if f"{name}.bias" in p else y


def pool(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID")


def mlp(p: Any, x: Any) -> Any:
    return dense(p, "c", jnp.tanh(dense(p, "b", jax.nn.relu(dense(p, "a", x)))))[0]


def cnn(p: Any, x: Any) -> Any:
    h = pool(conv(p, "b", jax.nn.relu(conv(p, "a", x))))
    return dense(p, "d", jax.nn.sigmoid(dense(p, "c", h.ravel())))[0]


def norm(p: Any, x: Any) -> Any:
    h = jax.nn.standardize(dense(p, "a", x), epsilon=1e-5) * p["norm.weight"] + p["norm.bias"]
    return dense(p, "b", jax.nn.gelu(h, approximate=False))[0]


def gate(p: Any, x: Any) -> Any:
    return dense(p, "c", jax.nn.sigmoid(dense(p, "a", x)) * dense(p, "b", x))[0]


def transformer(p: Any, x: Any) -> Any:
    """Two causal blocks with root-mean-square norms before, and SwiGLU."""
    for n in range(2):
        at = lambda name, v, n=n: v @ p[f"blocks.{n}.{name}.weight"].T

        def rms(name, v, n=n):
            scale = lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + 1e-6)
            return v * scale * p[f"blocks.{n}.{name}.weight"]

        h = rms("one", x)
        q, k, v = at("q", h), at("k", h), at("v", h)
        seen = jnp.tril(jnp.ones((len(x), len(x)), bool))
        scores = jnp.where(seen, q @ k.T / math.sqrt(q.shape[-1]), -1e9)
        x = x + at("o", jax.nn.softmax(scores, axis=-1) @ v)
        h = rms("two", x)
        x = x + at("down", jax.nn.silu(at("gate", h)) * at("up", h))
    return dense(p, "last", x[-1])[0]


def gru(p: Any, x: Any) -> Any:
    def step(h, v):
        a = v @ p["rnn.weight_ih_l0"].T + p["rnn.bias_ih_l0"]
        b = h @ p["rnn.weight_hh_l0"].T + p["rnn.bias_hh_l0"]
        (ar, az, an), (br, bz, bn) = jnp.split(a, 3), jnp.split(b, 3)
        r, z = jax.nn.sigmoid(ar + br), jax.nn.sigmoid(az + bz)
        return (1 - z) * jnp.tanh(an + r * bn) + z * h, None

    return dense(p, "last", lax.scan(step, jnp.zeros(WIDTH, x.dtype), x)[0])[0]


def lstm(p: Any, x: Any) -> Any:
    """Both directions, of which the states are averaged over the steps."""

    def states(end, v):
        def step(state, v):
            h, c = state
            a = v @ p[f"rnn.weight_ih_{end}"].T + p[f"rnn.bias_ih_{end}"]
            b = h @ p[f"rnn.weight_hh_{end}"].T + p[f"rnn.bias_hh_{end}"]
            i, f, g, o = jnp.split(a + b, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros(WIDTH, x.dtype)
        return lax.scan(step, (zero, zero), v, reverse=end.endswith("reverse"))[1]

    both = jnp.concatenate([states("l0", x), states("l0_reverse", x)], axis=-1)
    return dense(p, "last", both.mean(0))[0]


def resnet(p: Any, x: Any) -> Any:
    """Two residual blocks with batch norms by their running statistics."""

    def batch_norm(name, v):
        scale = p[f"{name}.weight"] * lax.rsqrt(p[f"{name}.running_var"] + 1e-5)
        return (v - p[f"{name}.running_mean"][:, None, None]) * scale[:, None, None] + p[
            f"{name}.bias"
        ][:, None, None]

    x = jax.nn.relu(batch_norm("norm", conv(p, "stem", x)))
    for n in range(2):
        h = jax.nn.relu(batch_norm(f"blocks.{n}.one", conv(p, f"blocks.{n}.a", x)))
        x = jax.nn.relu(x + batch_norm(f"blocks.{n}.two", conv(p, f"blocks.{n}.b", h)))
    return dense(p, "last", x.mean((1, 2)))[0]


IMAGE, ROWS = (2, 6, 6), (LENGTH, WIDTH)
NETWORKS = {
    "MLP": Network(mlp, "MLP", (WIDTH,)),
    "CNN with max pooling": Network(cnn, "CNN", IMAGE),
    "functional ReLU": Network(mlp, "Functional", (WIDTH,)),
    "one ReLU used twice": Network(
        lambda p, x: dense(p, "c", jax.nn.relu(dense(p, "b", jax.nn.relu(dense(p, "a", x)))))[0],
        "Reused",
        (WIDTH,),
    ),
    "layer norm and GELU": Network(norm, "Norm", (WIDTH,)),
    "sigmoid gate": Network(gate, "Gate", (WIDTH,)),
    "GRU": Network(gru, "GRU", ROWS),
    "bidirectional LSTM": Network(lstm, "LSTM", ROWS),
    "residual CNN with BatchNorm": Network(resnet, "ResNet", IMAGE),
    "pre-norm SwiGLU transformer": Network(transformer, "Transformer", ROWS),
}


def _linear(name: str, a: int, b: int, bias: bool = True) -> dict:
    return {f"{name}.weight": (b, a)} | ({f"{name}.bias": (b,)} if bias else {})


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Parameters of a network and their shapes."""
    kind, h, w = NETWORKS[name].torch, HIDDEN, WIDTH
    if kind in ("MLP", "Functional", "Reused"):
        return _linear("a", w, h) | _linear("b", h, h) | _linear("c", h, 1)
    if kind == "CNN":
        convs = {"a.weight": (4, 2, 3, 3), "a.bias": (4,), "b.weight": (4, 4, 3, 3), "b.bias": (4,)}
        return convs | _linear("c", 36, h) | _linear("d", h, 1)
    if kind == "Norm":
        return _linear("a", w, h) | _linear("b", h, 1) | {"norm.weight": (h,), "norm.bias": (h,)}
    if kind == "Gate":
        return _linear("a", w, h) | _linear("b", w, h) | _linear("c", h, 1)
    found = _linear("last", w, 1)
    if kind == "Transformer":
        for n in range(2):
            for part, a, b in [(part, w, w) for part in "qkvo"] + [
                ("gate", w, h),
                ("up", w, h),
                ("down", h, w),
            ]:
                found |= _linear(f"blocks.{n}.{part}", a, b, bias=False)
            found |= {f"blocks.{n}.one.weight": (w,), f"blocks.{n}.two.weight": (w,)}
        return found
    if kind == "ResNet":
        layers = ["stem"] + [f"blocks.{n}.{part}" for n in range(2) for part in "ab"]
        norms = ["norm"] + [f"blocks.{n}.{part}" for n in range(2) for part in ("one", "two")]
        found |= {f"{v}.weight": (w, 2 if v == "stem" else w, 3, 3) for v in layers}
        parts = ("weight", "bias", "running_mean", "running_var")
        return found | {f"{v}.{part}": (w,) for v in norms for part in parts}
    gates, ends = (3, ("l0",)) if kind == "GRU" else (4, ("l0", "l0_reverse"))
    for end in ends:
        found |= {f"rnn.weight_{v}_{end}": (gates * w, w) for v in ("ih", "hh")}
        found |= {f"rnn.bias_{v}_{end}": (gates * w,) for v in ("ih", "hh")}
    return found | _linear("last", w * len(ends), 1)


def weights(name: str) -> dict[str, np.ndarray]:
    """Random weights of size about 1.5 / root of inputs; scales and variances about 1."""
    draw, found = np.random.default_rng(0), {}
    for key, shape in shapes(name).items():
        value = draw.normal(size=shape)
        if len(shape) > 1:
            value *= 1.5 / math.sqrt(np.prod(shape[1:]))
        elif key.endswith(("weight", "running_var")):
            value = 1 + 0.3 * np.abs(value)
        else:
            value *= 0.3
        found[key] = value
    return found


def peers(name: str, params: dict[str, np.ndarray], x: np.ndarray, start: np.ndarray) -> dict:
    """Relative errors of Captum's DeepLift and SHAP's DeepExplainer, or what they raise."""
    try:
        import captum.attr  # pyright: ignore
        import shap  # pyright: ignore
        import torch  # pyright: ignore

        from benchmarks import completeness_torch
    except ImportError as error:
        return {"peers": f"left out: {error}"}
    torch.set_default_dtype(torch.float64)
    model = getattr(completeness_torch, NETWORKS[name].torch)()
    model.load_state_dict({k: torch.tensor(v) for k, v in params.items()}, strict=False)
    model.eval()
    xs, starts = torch.tensor(x), torch.tensor(start)
    with torch.no_grad():
        output, ground = (model(v)[:, 0].numpy() for v in (xs, starts))
    network = NETWORKS[name]
    mine = jax.jit(jax.vmap(lambda x: network.jax(params, x)))(jnp.asarray(x))
    same = float(np.abs(np.asarray(mine) - output).max() / np.abs(output).max())

    def by_captum() -> np.ndarray:
        return captum.attr.DeepLift(model).attribute(xs, starts, target=0).detach().numpy()

    def by_shap() -> np.ndarray:
        found = []
        for n in range(len(xs)):  # it explains a batch against one set of baselines
            explainer = shap.DeepExplainer(model, starts[n : n + 1])
            found.append(explainer.shap_values(xs[n : n + 1], check_additivity=False))
        return np.concatenate([np.asarray(v).reshape(1, *x.shape[1:]) for v in found])

    row: dict[str, Any] = {"networks_differ": same}
    for peer, explain in (("captum", by_captum), ("shap", by_shap)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores = explain()
        except Exception as error:  # what its user meets
            row[peer] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        gap = np.abs(scores.reshape(len(x), -1).sum(1) - (output - ground))
        relative = gap / np.abs(output - ground)
        row |= {
            f"{peer}_median": float(np.median(relative)),
            f"{peer}_worst": float(relative.max()),
        }
    return row
