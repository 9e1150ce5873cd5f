"""Write captum_<model>.npz: Captum's scores on small networks, with the networks' weights.

Needs torch, captum and numpy; run by hand, never by the tests.
The weights are drawn here, so nothing but this file is needed to make the goldens again.
"""

import math
from pathlib import Path

import captum  # pyright: ignore
import numpy as np
import torch  # pyright: ignore
from captum.attr import InputXGradient, IntegratedGradients, Saliency  # pyright: ignore
from torch.nn import functional  # pyright: ignore

STEPS = 32


def mlp(p, x):
    h = functional.gelu(x @ p["a"] + p["b"])
    return torch.tanh(h @ p["c"] + p["d"]) @ p["e"]


def cnn(p, x):
    x = x.permute(0, 3, 1, 2)
    for w, b in ((p["a"], p["b"]), (p["c"], p["d"])):
        x = functional.softplus(functional.conv2d(x, w.permute(3, 2, 0, 1), b, stride=2))
    return x.permute(0, 2, 3, 1).flatten(1) @ p["e"]


def attention(p, x):
    h = functional.layer_norm(x, x.shape[-1:], eps=0.1)
    q, k, v = h @ p["a"], h @ p["b"], h @ p["c"]
    x = x + torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
    return torch.tanh(x @ p["d"]).mean(1) @ p["e"]


SHAPES = {
    "mlp": (mlp, {"a": (5, 8), "b": (8,), "c": (8, 4), "d": (4,), "e": (4,)}, (5,)),
    "cnn": (
        cnn,
        {"a": (3, 3, 2, 3), "b": (3,), "c": (2, 2, 3, 2), "d": (2,), "e": (2,)},
        (8, 8, 2),
    ),
    "attention": (
        attention,
        {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4), "e": (4,)},
        (6, 4),
    ),
}


def main():
    for name, (network, shapes, shape) in SHAPES.items():
        draw = np.random.default_rng(7)
        params = {
            key: draw.normal(size=s) * (np.prod(s[:-1]) ** -0.5 if len(s) > 1 else 1.0)
            for key, s in shapes.items()
        }
        x, baseline = 1.5 * draw.normal(size=(3, *shape)), 0.5 * draw.normal(size=(3, *shape))
        p = {key: torch.tensor(value) for key, value in params.items()}
        forward = lambda batch, network=network, p=p: network(p, batch)
        inputs, start = torch.tensor(x, requires_grad=True), torch.tensor(baseline)
        found = {
            "saliency": Saliency(forward).attribute(inputs),
            "input_x_gradient": InputXGradient(forward).attribute(inputs),
            "integrated_gradients": IntegratedGradients(forward).attribute(
                inputs, start, n_steps=STEPS, method="gausslegendre"
            ),
            "output": forward(inputs),
        }
        np.savez_compressed(
            Path(__file__).parent / f"captum_{name}.npz",
            x=x,
            baseline=baseline,
            steps=STEPS,
            made_by=f"captum {captum.__version__}, torch {torch.__version__}",
            **{f"param_{key}": value for key, value in params.items()},
            **{key: value.detach().numpy() for key, value in found.items()},
        )


if __name__ == "__main__":
    main()
