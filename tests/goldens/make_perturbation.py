"""Write perturbation.npz: Captum's ablation, occlusion and Shapley values on the networks and
inputs of captum_<model>.npz, which make_captum.py writes.

Needs torch, captum and numpy; run by hand, never by the tests.
"""

from pathlib import Path

import captum  # pyright: ignore
import numpy as np
import torch  # pyright: ignore
from captum.attr import FeatureAblation, Occlusion, ShapleyValues  # pyright: ignore
from make_captum import SHAPES  # pyright: ignore

# Groups of entries, broadcastable to one example; numbers need no order.
GROUPS = {
    "mlp": np.array([0, 3, 3, 1, 0]),
    "cnn": (np.arange(8)[:, None] // 3 * 3 + np.arange(8)[None] // 3)[:, :, None] % 4,
    "attention": np.arange(6)[:, None],
}
# Window and strides: overlapping, and cut at the edge.
WINDOWS = {
    "mlp": ((2,), (1,)),
    "cnn": ((3, 4, 2), (2, 3, 1)),
    "attention": ((2, 3), (2, 2)),
}


def main():
    here, found = Path(__file__).parent, {"captum": captum.__version__, "torch": torch.__version__}
    for name, (network, shapes, shape) in SHAPES.items():
        stored = np.load(here / f"captum_{name}.npz")
        params = {key: torch.tensor(stored[f"param_{key}"]) for key in shapes}
        x, baseline = torch.tensor(stored["x"]), torch.tensor(stored["baseline"])
        f = lambda x, network=network, params=params: network(params, x)
        groups = torch.tensor(np.broadcast_to(GROUPS[name], shape).copy())[None]
        window, strides = WINDOWS[name]
        results = {
            "ablation": FeatureAblation(f).attribute(x, baselines=baseline),
            "grouped": FeatureAblation(f).attribute(x, baselines=baseline, feature_mask=groups),
            "occlusion": Occlusion(f).attribute(x, window, strides=strides, baselines=baseline),
            "shapley": ShapleyValues(f).attribute(x, baselines=baseline, feature_mask=groups),
        }
        found |= {f"{name}_{key}": value.detach().numpy() for key, value in results.items()}
        found[f"{name}_groups"] = GROUPS[name]
        found[f"{name}_window"], found[f"{name}_strides"] = np.array(window), np.array(strides)
    np.savez_compressed(here / "perturbation.npz", **found)


if __name__ == "__main__":
    main()
