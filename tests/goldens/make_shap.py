"""Write shap.npz: shap's KernelExplainer on the network and inputs of captum_mlp.npz, with all of
its baselines as background, all coalitions evaluated and l1_reg off.

Needs shap and numpy; run by hand, never by the tests.
"""

import math
from pathlib import Path

import numpy as np
import shap  # pyright: ignore


def main():
    here = Path(__file__).parent
    stored = np.load(here / "captum_mlp.npz")
    p = {key[6:]: stored[key] for key in stored.files if key.startswith("param_")}
    gelu = np.vectorize(lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2)

    def network(x):
        return np.tanh(gelu(x @ p["a"] + p["b"]) @ p["c"] + p["d"]) @ p["e"]

    background = stored["baseline"]
    explainer = shap.KernelExplainer(network, background)
    values = explainer.shap_values(stored["x"], nsamples=2**5 - 2, l1_reg=False, silent=True)
    np.savez_compressed(
        here / "shap.npz",
        values=values,
        background=background,
        made_by=f"shap {shap.__version__}, numpy {np.__version__}",
    )


if __name__ == "__main__":
    main()
