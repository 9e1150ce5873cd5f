"""The Fourier domain: which frequencies made f(x) what it is."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxplain.transformed.checks import Axes, Lengths, check_axes, fit
from jaxplain.transformed.domain import Transform
from jaxplain.types import JaxplainError, check_positive


def fourier(lengths: Lengths, *, axes: Axes = None) -> Transform:
    """The discrete Fourier transform of real arrays, along one to three axes.

    Args:
        lengths: x's sizes along `axes`, even or odd; a number serves one axis.
        axes: as many, default the leading ones: `fourier((28, 28))` fits `[28, 28]` and
            `[28, 28, C]`, and `fourier(100)` fits `[100]` and `[100, D]`.

    Returns:
        A Transform of one array. s is that of `numpy.fft.rfftn`, with real and imaginary parts on
        a last axis of 2; along the last of `axes` it has `n // 2 + 1` frequencies, 0 to the
        highest. float32 or wider. Parts that every real x has at zero score 0. With two axes or
        more, frequency 0 (and n / 2, if n is even) of the halved axis holds conjugates twice, which
        share their score.

    Raises:
        JaxplainError: lengths and axes do not pair up; on use, x's shape is another.

    >>> fourier(5).forward(jnp.arange(5.0)).shape
    (3, 2)
    """
    lengths, axes = check_axes(lengths, axes, 3)

    def forward(x):
        s = jnp.fft.rfftn(fit(x, lengths, axes), axes=axes)
        return jnp.stack([s.real, s.imag], -1)

    def inverse(s):
        return jnp.fft.irfftn(s[..., 0] + 1j * s[..., 1], s=lengths, axes=axes)

    return Transform(forward, inverse)


def frequencies(lengths: Lengths) -> np.ndarray:
    """Radial frequency of each coefficient of `fourier(lengths)`, in cycles per sample, float64.

    Up to 1/2 along each axis, and so to 0.71 in the corners of two.

    >>> frequencies(5).tolist()
    [0.0, 0.2, 0.4]
    """
    lengths, _ = check_axes(lengths, None, 3)
    grid = [np.fft.fftfreq(n) for n in lengths[:-1]] + [np.fft.rfftfreq(lengths[-1])]
    return np.sqrt(sum(v**2 for v in np.meshgrid(*grid, indexing="ij")))


def bands(
    lengths: Lengths, edges: int | Sequence[Any], *, axes: Axes = None, ndim: int | None = None
) -> np.ndarray:
    """Masks of bands of radial frequency, for `contextual_decomposition` or `group_sum`.

    `G` bands.

    Args:
        lengths: as in `fourier`.
        edges: in cycles per sample, `[G + 1]` rising, the last one included; or `[G, 2]`, one
            low <= frequency < high a band, which may overlap; or a number of equally wide bands
            from 0 to the highest frequency, which hold every coefficient once.
        axes: as in `fourier`.
        ndim: how many axes x has, default as many as lengths: 3 for `[H, W, C]`.

    Returns:
        `[G, ...]` bool, broadcastable along x's other axes and the two parts.

    Raises:
        JaxplainError: as in `fourier`; edges do not rise; a band holds no frequency.

    References: as in `in_domain`.
    Differs: frequencies of the published code are in units of the highest along one axis (about
        twice ours), bands are centre ± width, and frequencies above its last band are in none.

    >>> bands(8, [0, 0.1, 0.5])[..., 0].astype(int).tolist()
    [[1, 0, 0, 0, 0], [0, 1, 1, 1, 1]]
    """
    radius = frequencies(lengths)
    lengths, axes = check_axes(lengths, axes, 3)
    ndim = len(lengths) if ndim is None else ndim
    if not all(-ndim <= a < ndim for a in axes):
        raise JaxplainError(f"axes {list(axes)} need an x of more axes: set ndim, which is {ndim}")
    if isinstance(edges, int):
        edges = np.linspace(0, radius.max(), check_positive("edges", edges) + 1)
    limits = np.asarray(edges, np.float64)
    if limits.ndim == 1:
        limits = np.stack([limits[:-1], limits[1:]], -1)
        limits[-1:, 1] = np.nextafter(limits[-1:, 1], np.inf)
    if limits.ndim != 2 or limits.shape[1] != 2 or not (limits[:, 0] < limits[:, 1]).all():
        raise JaxplainError("edges must rise: give [G + 1] boundaries or [G, 2] of low, high")
    low, high = (limits[:, i].reshape(-1, *(1,) * radius.ndim) for i in (0, 1))
    masks = (low <= radius) & (radius < high)
    empty = np.flatnonzero(~masks.reshape(len(masks), -1).any(1))
    if empty.size:
        raise JaxplainError(
            f"no frequency lies in band {empty[0]}, {limits[empty[0]].round(4).tolist()} cycles "
            "per sample: make it wider"
        )
    places = [a % ndim for a in axes]
    shape = [radius.shape[places.index(a)] if a in places else 1 for a in range(ndim)]
    return masks.transpose(0, *(1 + np.argsort(places))).reshape(-1, *shape, 1)
