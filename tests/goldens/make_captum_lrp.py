"""Write captum_lrp.npz: Captum's LRP on small networks, with the networks' weights.

Needs torch, captum and numpy; run by hand, never by the tests.
The weights are drawn here, so nothing but this file is needed to make the goldens again.
"""

from pathlib import Path

import captum  # pyright: ignore
import numpy as np
import torch  # pyright: ignore
from captum.attr import LRP  # pyright: ignore
from captum.attr._utils import lrp_rules as rules  # pyright: ignore
from captum.attr._utils.custom_modules import Addition_Module  # pyright: ignore
from torch import nn  # pyright: ignore

EPSILON = 1e-9
PLAIN = (nn.MaxPool2d, nn.AvgPool2d, nn.BatchNorm2d, Addition_Module)
RULES = {
    "epsilon": lambda: rules.EpsilonRule(EPSILON),
    "gamma": lambda: rules.GammaRule(0.25),
    "gamma_unbiased": lambda: rules.GammaRule(0.25, set_bias_to_zero=True),
    "alpha1beta0": lambda: rules.Alpha1_Beta0_Rule(),
    "alpha1beta0_unbiased": lambda: rules.Alpha1_Beta0_Rule(set_bias_to_zero=True),
}


class Residual(nn.Module):
    """A convolution, a block around which the signal goes too, both kinds of pooling."""

    def __init__(self, norm):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm else None
        self.most = nn.MaxPool2d(2)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.add = Addition_Module()
        self.mean = nn.AvgPool2d(2)
        self.head = nn.Linear(16, 3)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        x = self.most(self.relus[0](x if self.norm is None else self.norm(x)))
        x = self.mean(self.add(x, self.relus[1](self.block(x))))
        return self.head(x.flatten(1))


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def draw(model, rng):
    """Random weights, so that biases, means and variances matter."""
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if p.dtype != torch.float64:
            continue
        noise = torch.as_tensor(rng.normal(size=tuple(p.shape)))
        if name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif p.ndim > 1:
            noise = noise * (p[0].numel() ** -0.5)
        else:
            noise = noise * 0.5
        p.data = noise
    return model.eval()


def main():
    rng = np.random.default_rng(0)
    stored = {"versions": np.array([captum.__version__, torch.__version__])}
    models = {
        "mlp": (mlp, (4, 6)),
        "cnn": (lambda: Residual(False), (2, 2, 10, 10)),
        "cnn_norm": (lambda: Residual(True), (2, 2, 10, 10)),
    }
    for name, (build, shape) in models.items():
        model = draw(build().double(), rng)
        x = torch.as_tensor(rng.normal(size=shape))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        stored |= {f"{name}:{k}": v.numpy() for k, v in state.items() if v.dtype == torch.float64}
        stored[f"{name}:x"] = x.numpy()
        for rule, make in RULES.items():
            if name == "cnn_norm" and rule != "epsilon":
                continue
            for signed in (True, False):
                inputs = x if signed else x.abs()
                for module in model.modules():
                    if isinstance(module, nn.Linear | nn.Conv2d):
                        module.rule = make()
                    elif isinstance(module, PLAIN):
                        module.rule = rules.EpsilonRule(EPSILON)
                scores = LRP(model).attribute(inputs, target=1)
                model.load_state_dict(state)
                key = f"{name}:{rule}:{'signed' if signed else 'positive'}"
                stored[key] = scores.detach().numpy()
    np.savez_compressed(Path(__file__).parent / "captum_lrp.npz", **stored)


if __name__ == "__main__":
    main()
