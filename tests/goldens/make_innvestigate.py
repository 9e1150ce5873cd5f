"""Write innvestigate_rectified.npz and innvestigate_lrp.npz: iNNvestigate's numbers, by layer.

    pip install h5py numpy
    python tests/goldens/make_innvestigate.py FOLDER

FOLDER holds GuidedBackprop.hdf5, Deconvnet.hdf5 and so on, the reference files of iNNvestigate's
own tests: https://github.com/albermax/innvestigate, tests/references. Run by hand, never by the
tests.

Each file has 8 inputs `[10, 10, 3]`, networks of one layer with random weights and biases of zero,
and their attributions. The unit explained is the one with the largest output, and the signal starts
from its value (for gradients, from 1). Everything is stored as it is, but for the inputs, which
become float32 as the network read them, and the outputs, which are left out. SmoothGrad, which
draws noise, is left out, too.

innvestigate_LICENSE.txt is the licence of those numbers.
"""

import sys
from pathlib import Path

import h5py  # pyright: ignore
import numpy as np

FILES = {
    "rectified": {"guided_backprop": "GuidedBackprop", "deconvnet": "Deconvnet"},
    "lrp": {
        name: name
        for name in """
            Gradient InputTimesGradient IntegratedGradients LRPZ LRPZIgnoreBias LRPEpsilon
            LRPEpsilonIgnoreBias LRPFlat LRPWSquare LRPAlpha1Beta0 LRPAlpha1Beta0IgnoreBias
            LRPAlpha2Beta1 LRPAlpha2Beta1IgnoreBias LRPZPlus LRPZPlusFast LRPZ_Flat_input_layer_rule
            LRPZ_boxed_input_layer_rule LRPSequentialPresetA LRPSequentialPresetAFlat
            LRPSequentialPresetB LRPSequentialPresetBFlat DeepTaylor BoundedDeepTaylor
        """.split()
    },
}
LAYERS = ("Dense", "Dense_relu", "Conv2D", "Conv2D_relu", "MaxPooling2D", "AveragePooling2D")


def main(folder):
    for out, methods in FILES.items():
        stored = {}
        for method, name in methods.items():
            with h5py.File(Path(folder) / f"{name}.hdf5") as file:
                stored["x"] = file["input"][:].astype("f4")  # equal in all
                for layer in LAYERS:
                    group = file[layer]
                    stored[f"{method}_{layer}"] = group["attribution"][:]
                    for number, weights in group["weights"].items():
                        stored[f"{method}_{layer}_{number}"] = weights[:]
        np.savez_compressed(Path(__file__).parent / f"innvestigate_{out}.npz", **stored)


if __name__ == "__main__":
    main(sys.argv[1])
