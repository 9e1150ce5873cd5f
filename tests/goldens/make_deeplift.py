"""Write deeplift.npz: Captum's DeepLift and DeepLiftShap on small networks of random weights.

    pip install torch captum numpy
    python tests/goldens/make_deeplift.py

Run by hand, never by the tests. Float64. Each case is stored under its name: parameters, input `x`,
`baselines` (the first is the one of DeepLift), `deep_lift`, `deep_shap`, and `f` of the input and
of the first baseline. In cnn and mlp, Captum's scores add up to f(x) - f(baseline). In the others
they do not: a ReLU with the pooling right behind it, windows that overlap, an activation that is no
module, a layer norm, a gate, a softmax, attention.
"""

import math
from pathlib import Path

import captum
import numpy as np
import torch
from captum.attr import DeepLift, DeepLiftShap
from torch import nn
from torch.nn import functional

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


class CNN(nn.Module):
    def __init__(self, stride=2, features=12, row=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
        self.c, self.d = nn.Linear(features, 5), nn.Linear(5, 4)
        self.e = nn.Linear(4, 1)
        self.act = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, stride), nn.Tanh(), nn.Sigmoid())
        self.row = row

    def forward(self, x):
        relu, pool, tanh, sigmoid = self.act
        h = self.a(x)
        h = pool(relu(self.b(h))) if self.row else pool(self.b(relu(h)))
        return self.e(sigmoid(self.d(tanh(self.c(h.flatten(1))))))[:, 0]


class Row(CNN):
    def __init__(self):
        super().__init__(row=True)


class Overlap(CNN):
    def __init__(self):
        super().__init__(1, 27)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.act = nn.Sequential(nn.ELU(), nn.Softplus(), nn.LeakyReLU(0.1))

    def forward(self, x):
        elu, softplus, leaky = self.act
        return leaky(self.c(softplus(self.b(elu(self.a(x))))))[:, 0]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.b(functional.relu(self.a(x)))[:, 0]


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 1), nn.LayerNorm(8)
        self.act = nn.GELU()

    def forward(self, x):
        return self.b(self.act(self.norm(self.a(x))))[:, 0]


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 1)
        self.act = nn.Sigmoid()

    def forward(self, x):
        return self.c(self.act(self.a(x)) * self.b(x))[:, 0]


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Linear(6, 4), nn.Softmax(-1)

    def forward(self, x):
        return self.act(self.a(x))[:, 1]


class Transformer(nn.Module):
    """Two causal blocks with norms before (RMS), SwiGLU, and no biases but in the last layer."""

    def __init__(self, width=8, hidden=12):
        super().__init__()
        linear = lambda a, b: nn.Linear(a, b, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {n: linear(width, width) for n in "qkvo"}
                | {"gate": linear(width, hidden), "up": linear(width, hidden)}
                | {"down": linear(hidden, width), "act": nn.SiLU(), "softmax": nn.Softmax(-1)}
                | {"one": nn.RMSNorm(width, eps=1e-6), "two": nn.RMSNorm(width, eps=1e-6)}
            )
            for _ in range(2)
        )
        self.last = nn.Linear(width, 1)

    def forward(self, x):
        length = x.shape[1]
        ahead = torch.ones(length, length).triu(1).bool()
        for b in self.blocks:
            h = b["one"](x)
            q, k, v = b["q"](h), b["k"](h), b["v"](h)
            scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(ahead, -1e9)
            x = x + b["o"](b["softmax"](scores) @ v)
            h = b["two"](x)
            x = x + b["down"](b["act"](b["gate"](h)) * b["up"](h))
        return self.last(x[:, -1])[:, 0]


CASES = {
    "cnn": (CNN, (2, 6, 6)),
    "mlp": (MLP, (6,)),
    "row": (Row, (2, 6, 6)),
    "overlap": (Overlap, (2, 6, 6)),
    "functional": (Functional, (6,)),
    "norm": (Norm, (6,)),
    "gate": (Gate, (6,)),
    "softmax": (Softmax, (6,)),
    "transformer": (Transformer, (5, 8)),
}


def main():
    stored = {"captum": np.array(captum.__version__), "torch": np.array(torch.__version__)}
    for name, (make, shape) in CASES.items():
        model = make()
        for p in model.parameters():  # torch's own are small: differences between methods, too
            p.data = p.data * 2 + 0.1 * torch.randn_like(p) * (p.ndim == 1)
        x, baselines = torch.randn(1, *shape) * 1.5, torch.randn(3, *shape)
        lift = DeepLift(model).attribute(x, baselines[:1])
        shap = DeepLiftShap(model).attribute(x, baselines)
        case = {"x": x[0], "baselines": baselines, "deep_lift": lift[0], "deep_shap": shap[0]}
        case["f"] = torch.stack([model(x)[0], model(baselines[:1])[0]])
        case |= {f"p.{n}": p for n, p in model.named_parameters()}
        stored |= {f"{name}/{n}": v.detach().numpy() for n, v in case.items()}
        print(name, float(lift.sum() - (case["f"][0] - case["f"][1])), case["f"].detach().numpy())
    np.savez_compressed(Path(__file__).parent / "deeplift.npz", **stored)


if __name__ == "__main__":
    main()
