"""The methods once more, as the papers write them: numpy in float64, loops, one step at a time.

`value` and `gradient` are functions of one flat numpy vector.
"""

import numpy as np


def integrated_gradients(gradient, x, baseline, steps):
    """Sundararajan et al. 2017, eq. 1, by Gauss-Legendre quadrature from numpy."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    result = np.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        alpha = (node + 1) / 2
        result += weight / 2 * gradient(baseline + alpha * (x - baseline)) * (x - baseline)
    return result


def riemann_integrated_gradients(gradient, x, baseline, steps):
    """Sundararajan et al. 2017, eq. 3: the right Riemann sum."""
    result = np.zeros_like(x)
    for k in range(1, steps + 1):
        result += (x - baseline) * gradient(baseline + k / steps * (x - baseline)) / steps
    return result


def expected_gradients(gradient, x, baselines, steps):
    """Erion et al. 2021, eq. 4: the exact mean over the baselines of integrated gradients."""
    return np.mean([integrated_gradients(gradient, x, b, steps) for b in baselines], axis=0)


def smooth_samples(gradient, x, deviation, samples, seed):
    """Smilkov et al. 2017: gradients at `samples` noisy copies, `[samples, D]`."""
    draw = np.random.default_rng(seed)
    return np.stack([gradient(x + draw.normal(size=x.shape) * deviation) for _ in range(samples)])


def gaussian_blur(image, sigma):
    """Weighted mean over an `[H, W]` image's pixels within 4 sigma in either direction."""
    height, width = image.shape
    result = np.zeros_like(image)
    radius = int(np.ceil(4 * sigma))
    for i in range(height):
        for j in range(width):
            value = weight = 0.0
            for k in range(max(0, i - radius), min(height, i + radius + 1)):
                for m in range(max(0, j - radius), min(width, j + radius + 1)):
                    w = np.exp(-0.5 * ((k - i) ** 2 + (m - j) ** 2) / sigma**2)
                    value, weight = value + w * image[k, m], weight + w
            result[i, j] = value / weight
    return result
