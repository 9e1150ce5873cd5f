"""Networks whose contextual decomposition was published: their weights drawn, and JAX ports.

A port keeps the names and shapes of torch's state_dict; what one torch module computes is in one
`jax.named_scope`. An image is `[C, H, W]`, a sentence of word vectors `[T, E]`.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Names of the parameters and their shapes are torch's; the LSTM's gates are in its order, i f g o.
LSTMS = {"16": (16, 8, 10), "128": (128, 32, 12)}  # hidden, embedding, words
BERT = {"width": 32, "inner": 48, "heads": 4, "layers": 2, "tokens": 8, "classes": 3}
BERT_EPSILON = 1e-3  # of LayerNorm; transformers' 1e-12 cannot be told from none


def draw_lstm(size: str) -> dict[str, np.ndarray]:
    """Weights in float64 and `words [T, E]`, the same on every machine."""
    hidden, embedding, words = LSTMS[size]
    draw = np.random.RandomState(hidden)
    uniform = lambda *shape: draw.uniform(-2, 2, shape) / hidden**0.5  # twice torch's own range
    return {
        "weight_ih_l0": uniform(4 * hidden, embedding),
        "weight_hh_l0": uniform(4 * hidden, hidden),
        "bias_ih_l0": uniform(4 * hidden),
        "bias_hh_l0": uniform(4 * hidden),
        "out": uniform(2, hidden),
        "out_bias": uniform(2),
        "words": draw.normal(size=(words, embedding)),
    }


def draw_bert() -> dict[str, np.ndarray]:
    """Weights of the layers, pooler and classifier in float64, the same on every machine."""
    draw = np.random.RandomState(3)
    width, inner = BERT["width"], BERT["inner"]
    weights = {}

    def dense(name, rows, columns, scale=1.0):
        weights[f"{name}.weight"] = scale * draw.normal(size=(rows, columns)) / columns**0.5
        weights[f"{name}.bias"] = 0.3 * draw.normal(size=rows)

    def norm(name):
        weights[f"{name}.weight"] = 1 + 0.3 * draw.normal(size=width)
        weights[f"{name}.bias"] = 0.3 * draw.normal(size=width)

    for i in range(BERT["layers"]):
        layer = f"bert.encoder.layer.{i}"
        for name in ("query", "key"):  # 1.5: attention that is neither uniform nor one-hot
            dense(f"{layer}.attention.self.{name}", width, width, 1.5)
        dense(f"{layer}.attention.self.value", width, width)
        dense(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", inner, width)
        dense(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    dense("bert.pooler.dense", width, width)
    dense("classifier", BERT["classes"], width)
    return weights


def lstm(p, x):
    """`[T, E] -> [2]`, the logits less the classifier's bias, which the published scores omit."""

    def cell(state, token):
        h, c = state
        bias = p["bias_ih_l0"] + p["bias_hh_l0"]
        i, f, g, o = jnp.split(p["weight_ih_l0"] @ token + p["weight_hh_l0"] @ h + bias, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros(p["weight_hh_l0"].shape[1], x.dtype)
    return p["out"] @ jax.lax.scan(cell, (zero, zero), x)[0][0]


def dense(p, name, x):
    with jax.named_scope(name):
        return x @ p[f"{name}.weight"].T + jnp.broadcast_to(
            p[f"{name}.bias"], (*x.shape[:-1], p[f"{name}.bias"].shape[0])
        )


def layer_norm(p, name, x):
    with jax.named_scope(name):
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + BERT_EPSILON)
        return x * p[f"{name}.weight"][None] + p[f"{name}.bias"][None]


def bert_layer(p, name, x, attend):
    tokens, width = x.shape
    heads = (tokens, BERT["heads"], width // BERT["heads"])
    part = lambda key: dense(p, f"{name}.attention.self.{key}", x).reshape(heads)
    logits = jnp.einsum("qhd,khd->hqk", part("query"), part("key")) / heads[2] ** 0.5
    logits = jnp.where(attend[None, None], logits, jnp.finfo(x.dtype).min)
    mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), part("value"))
    mixed = dense(p, f"{name}.attention.output.dense", mixed.reshape(tokens, width))
    x = layer_norm(p, f"{name}.attention.output.LayerNorm", mixed + x)
    inner = jax.nn.gelu(dense(p, f"{name}.intermediate.dense", x), approximate=False)
    return layer_norm(p, f"{name}.output.LayerNorm", dense(p, f"{name}.output.dense", inner) + x)


def bert(p, attend, x):
    """The embeddings' output `[T, D]`, `attend [T]` -> every layer's output, and the logits."""
    layers = []
    for i in range(BERT["layers"]):
        x = bert_layer(p, f"bert.encoder.layer.{i}", x, attend)
        layers.append(x)
    pooled = jnp.tanh(dense(p, "bert.pooler.dense", x[:1]))
    return {"layers": layers, "logits": dense(p, "classifier", pooled)[0]}


def convolution(p, name, x, stride=1, padding=0):
    with jax.named_scope(name):
        kernel = p[f"{name}.weight"]
        x = jax.lax.conv_general_dilated(
            x[None], kernel, (stride, stride), [(padding, padding)] * 2
        )
        return x[0] + p[f"{name}.bias"][:, None, None] if f"{name}.bias" in p else x[0]


def batch_norm(p, name, x):
    with jax.named_scope(name):
        mean, var, weight, bias = (
            p[f"{name}.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * weight) + bias


def pool(x, size, reduce):
    window = (1, size, size)
    if reduce == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / size**2


def basic_block(p, name, x, stride=1):
    h = convolution(p, f"{name}.conv1", x, stride, 1)
    h = jax.nn.relu(batch_norm(p, f"{name}.bn1", h))
    h = batch_norm(p, f"{name}.bn2", convolution(p, f"{name}.conv2", h, 1, 1))
    if f"{name}.downsample.0.weight" in p:
        x = convolution(p, f"{name}.downsample.0", x, stride)
        x = batch_norm(p, f"{name}.downsample.1", x)
    return jax.nn.relu(h + x)


def stem(p, x):
    return pool(jax.nn.relu(batch_norm(p, "bn1", convolution(p, "conv1", x, 1, 1))), 2, "mean")


def residual(p, x):
    """`[2, 12, 12] -> [3]`: two residual blocks, and a convolution with a bias."""
    x = basic_block(p, "block2", basic_block(p, "block1", stem(p, x)), 2)
    x = jax.nn.relu(convolution(p, "conv2", x))
    return dense(p, "fc", x.mean((1, 2)))


def resnet18(p, x):
    """`[2, 16, 16] -> [3]`: ResNet-18, narrow, with average pooling after its first layer."""
    x = stem(p, x)
    for layer, stride in zip(("layer1", "layer2", "layer3", "layer4"), (1, 2, 2, 1), strict=True):
        x = basic_block(p, f"{layer}.1", basic_block(p, f"{layer}.0", x, stride))
    return dense(p, "fc", x.mean((1, 2)))


def mnist(p, x):
    """`[1, 28, 28] -> [10]`: the MNIST network of the published package."""
    for name in ("conv1", "conv2"):
        x = jax.nn.relu(pool(convolution(p, name, x), 2, "max"))
    return dense(p, "fc2", jax.nn.relu(dense(p, "fc1", x.reshape(-1))))


CNNS = {"residual": residual, "resnet18": resnet18}
