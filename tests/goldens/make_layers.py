"""Write layers.npz: Captum's layer and neuron methods on random networks, in float64.

"cnn" has ReLUs, and its layer is what average pooling leaves; "mlp" is smooth; "linear" is linear.

Needs torch, captum and numpy; run by hand, never by the tests.
"""

from pathlib import Path

import captum  # pyright: ignore
import numpy as np
import torch  # pyright: ignore
from captum.attr import (  # pyright: ignore
    GuidedGradCam,
    InternalInfluence,
    LayerConductance,
    LayerGradCam,
    NeuronConductance,
)
from torch import nn  # pyright: ignore

UNIT = 2


def networks():
    torch.manual_seed(4)
    cnn = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),  # the layer: [4, 4, 4]
        nn.Conv2d(4, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 1),
    )
    mlp = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    linear = nn.Sequential(nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 1))
    return {name: net.double() for name, net in (("cnn", cnn), ("mlp", mlp), ("linear", linear))}


def main():
    found = {"captum": captum.__version__, "torch": torch.__version__}
    nets = networks()
    draw = np.random.default_rng(0)
    x = {
        "cnn": torch.tensor(draw.normal(size=(1, 2, 8, 8))),
        "mlp": torch.tensor(draw.normal(size=(1, 5))),
    }
    start = {"mlp": torch.tensor(draw.normal(size=(1, 5)))}
    x["linear"], start["linear"] = x["mlp"], start["mlp"]
    for name, net in nets.items():
        found |= {f"{name}_param_{k}": v.detach().numpy() for k, v in net.named_parameters()}
        found[f"{name}_x"] = x[name][0].numpy()
        if name in start:
            found[f"{name}_baseline"] = start[name][0].numpy()

    cnn, image = nets["cnn"], x["cnn"].requires_grad_()
    found["cnn_grad_cam"] = LayerGradCam(cnn, cnn[2]).attribute(image, target=0)[0, 0]
    found["cnn_guided_grad_cam"] = GuidedGradCam(cnn, cnn[2]).attribute(image, target=0)[0]
    influence = InternalInfluence(cnn, cnn[2])  # Gauss-Legendre nodes
    found["cnn_influence"] = influence.attribute(image, target=0, n_steps=20)[0]

    mlp, ends = nets["mlp"], {"inputs": x["mlp"], "baselines": start["mlp"], "target": 0}
    found["mlp_influence"] = InternalInfluence(mlp, mlp[1]).attribute(**ends, n_steps=20)[0]
    for steps in (1000, 2000):
        conductance = LayerConductance(mlp, mlp[1])
        options = {"n_steps": steps, "method": "riemann_right"}
        found[f"mlp_conductance_{steps}"] = conductance.attribute(**ends, **options)[0]
    neuron = NeuronConductance(mlp, mlp[1])
    options = {"neuron_selector": UNIT, "n_steps": 20, "method": "gausslegendre"}
    found["mlp_neuron"] = neuron.attribute(**ends, **options)[0]

    linear = nets["linear"]
    neuron = NeuronConductance(linear, linear[1])
    found["linear_neuron_default"] = neuron.attribute(**ends, neuron_selector=UNIT)[0]
    found["unit"] = np.array(UNIT)
    arrays = {k: v.detach().numpy() if hasattr(v, "detach") else v for k, v in found.items()}
    np.savez_compressed(Path(__file__).parent / "layers.npz", **arrays)


if __name__ == "__main__":
    main()
