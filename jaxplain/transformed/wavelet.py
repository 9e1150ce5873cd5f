"""The wavelet domain: which scales and places made f(x) what it is."""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.transformed.checks import Axes, Lengths, check_axes, fit
from jaxplain.transformed.domain import Transform
from jaxplain.types import Array, JaxplainError, check_positive

Mode: TypeAlias = Literal["periodization", "periodic", "zero"]
Filters: TypeAlias = str | Sequence[Any] | np.ndarray


def wavelets(
    lengths: Lengths,
    filters: Filters = "db2",
    *,
    levels: int | None = None,
    mode: Mode = "periodization",
    axes: Axes = None,
) -> Transform:
    """The discrete wavelet transform of real arrays, along one or two axes.

    `L` taps a filter.

    Args:
        lengths: x's sizes along `axes`, even or odd; a number serves one axis.
        filters: a name that PyWavelets knows, such as "haar", "db2", "sym5", "bior2.2"; or `[L]`
            low-pass and high-pass of the decomposition, orthonormal; or those two and the two of
            the reconstruction. L is even.
        levels: how often the coarse part is split again, default as often as it is longer than the
            filters, at least once: floor(log2(length / (L - 1))) for the shortest axis.
        mode: how x goes on beyond its ends. "periodization" repeats x with as many coefficients as
            x has values (one more a level and axis for an odd length) and is orthonormal where the
            filters and all lengths allow; "periodic" and "zero" pad, and have some more.
        axes: as in `fourier`.

    Returns:
        A Transform of one array. s is that of `pywt.wavedec`, `[coarse, detail, ..., finest]`, or
        of `pywt.wavedec2`, where a detail is (horizontal, vertical, diagonal). float32 or wider.
        Exact up to rounding.

    Raises:
        JaxplainError: lengths and axes do not pair up; filters do not fit the above; a name without
            PyWavelets installed; levels below 1; another mode; on use, x's shape is another.

    References: Mallat, A Theory for Multiresolution Signal Decomposition: The Wavelet
        Representation, 1989, https://doi.org/10.1109/34.192463
        Lee et al., PyWavelets: A Python package for wavelet analysis, 2019,
        https://doi.org/10.21105/joss.01237

    >>> haar = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    >>> coarse, fine = wavelets(4, haar, levels=1).forward(jnp.array([1.0, 1.0, 5.0, 3.0]))
    >>> (coarse**2).round().tolist(), (fine**2).round().tolist()
    ([2.0, 32.0], [0.0, 2.0])
    """
    lengths, axes = check_axes(lengths, axes, 2)
    if mode not in ("periodization", "periodic", "zero"):
        raise JaxplainError(f"mode must be periodization, periodic or zero, not {mode!r}")
    bank = _filter_bank(filters)
    if levels is None:
        levels = max(1, int(math.log2(max(min(lengths) / (bank.shape[1] - 1), 1))))
    if mode == "periodization" and bank.shape[1] % 4 == 0:  # an even half needs no special case
        bank = np.pad(bank, [(0, 0), (1, 1)])
    sizes = [lengths]  # of the coarse part, at each level
    for _ in range(check_positive("levels", levels)):
        sizes.append(tuple(_coarse(n, bank.shape[1], mode) for n in sizes[-1]))

    def forward(x):
        coarse, details = fit(x, lengths, axes), []
        for _ in range(levels):
            parts = [coarse]
            for axis in axes:
                parts = [part for v in parts for part in _split(v, axis, bank[:2], mode)]
            coarse, *detail = parts
            # Halves of axis 0, each then halved along axis 1: vertical comes before horizontal.
            details.append((detail[1], detail[0], detail[2]) if len(axes) == 2 else detail[0])
        return [coarse, *details[::-1]]

    def inverse(s):
        coarse, *details = s
        for detail, size in zip(details, sizes[-2::-1], strict=True):
            h, v, d = detail if len(axes) == 2 else (detail, None, None)
            parts = [coarse, h] if v is None else [coarse, v, h, d]
            for axis, n in reversed(list(zip(axes, size, strict=True))):
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [_merge(low, high, axis, n, bank[2:], mode) for low, high in pairs]
            (coarse,) = parts
        return coarse

    return Transform(forward, inverse)


def _filter_bank(filters: Filters) -> np.ndarray:
    """`[4, L]`: low-pass and high-pass of the decomposition, then of the reconstruction."""
    if isinstance(filters, str):
        try:
            from pywt import Wavelet  # pyright: ignore[reportAttributeAccessIssue]
        except ImportError:
            raise JaxplainError(
                f"the filters called {filters!r} come with PyWavelets: pip install PyWavelets, or "
                "give the filters themselves"
            ) from None
        try:
            return np.array(Wavelet(filters).filter_bank)
        except ValueError:
            raise JaxplainError(
                f"PyWavelets knows no discrete wavelet {filters!r}: pywt.wavelist(kind='discrete') "
                "lists them"
            ) from None
    shapes = {np.shape(v) for v in filters}
    bank = np.array(filters, np.float64) if len(shapes) == 1 else np.zeros((0, 0))
    if bank.ndim != 2 or len(bank) not in (2, 4) or bank.shape[1] % 2 or not bank.size:
        raise JaxplainError(
            "filters must be 2 or 4 arrays of one even length: pad the shorter ones with zeros"
        )
    if len(bank) == 4:
        return bank
    taps = bank.shape[1]
    shifts = np.pad(bank, [(0, 0), (0, taps)])
    rows = np.concatenate([np.roll(shifts, 2 * k, 1) for k in range(taps // 2)])
    if not np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-6):  # of coefficients in float32
        raise JaxplainError("two filters must be orthonormal: give those of the reconstruction too")
    return np.concatenate([bank, bank[:, ::-1]])


def _coarse(n: int, taps: int, mode: Mode) -> int:
    """How many coefficients each half of `n` values has."""
    return (n + 1) // 2 if mode == "periodization" else (n + taps - 1) // 2


def _split(x: Array, axis: int, bank: np.ndarray, mode: Mode) -> list[Array]:
    """Coarse and fine half of `x` along `axis`: y[k] = sum over j of filter[j] x[2k + 1 - j]."""
    x = jnp.moveaxis(x, axis, -1)
    n, taps = x.shape[-1], bank.shape[1]
    count = _coarse(n, taps, mode)
    if mode == "periodization":
        x = _extend(x, 0, n % 2, "edge")
        x = _extend(x, taps // 2 - 1, taps // 2 - 1, "wrap")
    else:
        x = _extend(x, taps - 2, 2 * count - n, "wrap" if mode == "periodic" else "constant")
    windows = jnp.stack([x[..., j : j + 2 * count - 1 : 2] for j in range(taps)], -1)
    filters = jnp.asarray(bank[:, ::-1].T, x.dtype)
    halves = jnp.matmul(windows, filters, precision=jax.lax.Precision.HIGHEST)
    return [jnp.moveaxis(halves[..., i], -1, axis) for i in range(2)]


def _merge(low: Array, high: Array, axis: int, n: int, bank: np.ndarray, mode: Mode) -> Array:
    """The `n` values that `_split` took apart, two (one even, one odd place) from each window."""
    half = bank.shape[1] // 2
    both = jnp.concatenate([jnp.moveaxis(v, axis, -1)[None] for v in (low, high)])
    if mode == "periodization":
        both = _extend(both, half // 2, half // 2, "wrap")
    count = both.shape[-1] - half + 1
    places = range(half - 1, -1, -1)
    windows = jnp.concatenate([both[..., u : u + count, None] for u in places], -1)
    filters = jnp.asarray(bank.reshape(2, half, 2), low.dtype)
    x = jnp.einsum("c...mu,cup->...mp", windows, filters, precision=jax.lax.Precision.HIGHEST)
    x = x.reshape(*x.shape[:-2], 2 * count)[..., :n]
    return jnp.moveaxis(x, -1, axis)


def _extend(x: Array, before: int, after: int, how: Literal["edge", "wrap", "constant"]) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)], mode=how)
