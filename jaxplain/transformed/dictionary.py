"""Domains given by a matrix: which components of PCA or NMF made f(x) what it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxplain.transformed.checks import fit
from jaxplain.transformed.domain import Transform
from jaxplain.types import JaxplainError, check_positive


def linear(atoms: Any, *, offset: Any = 0.0) -> Transform:
    """Coordinates in a basis or dictionary: PCA, whitening, any invertible or tall matrix.

    `K` atoms of x's shape `[...]`. For scikit-learn's PCA: `linear(pca.components_,
    offset=pca.mean_)`.

    Args:
        atoms: `[K, ...]` numpy array, or whatever numpy makes one of.
        offset: broadcastable to `[...]`: PCA's mean.

    Returns:
        A Transform of one array. s `[K]` is the least-squares fit of `offset + s @ atoms` to x, by
        the pseudo-inverse, taken in float64 (the transpose, for orthonormal atoms).

    Raises:
        JaxplainError: atoms are no `[K, ...]` floats; offset does not fit; on use, x's shape is
            another.

    >>> linear([[0.6, 0.8]], offset=1.0).forward(jnp.array([1.6, 1.8])).round(3).tolist()
    [1.0]
    """
    matrix, shape = _check_atoms(atoms)
    inverted = np.linalg.pinv(matrix)
    offset = _check_offset(offset, shape)

    def forward(x):
        x = fit(x, shape, tuple(range(len(shape))), whole=True)
        centred = (x - jnp.asarray(offset, x.dtype)).reshape(-1)
        return jnp.matmul(
            centred, jnp.asarray(inverted, x.dtype), precision=jax.lax.Precision.HIGHEST
        )

    def inverse(s):
        x = jnp.matmul(
            s, jnp.asarray(matrix, s.dtype), precision=jax.lax.Precision.HIGHEST
        ).reshape(shape)
        return x + jnp.asarray(offset, s.dtype) if offset.any() else x

    return Transform(forward, inverse)


def nonnegative(atoms: Any, *, steps: int = 500) -> Transform:
    """Nonnegative coordinates in a dictionary: NMF.

    `K` atoms of x's shape `[...]`. For scikit-learn's NMF: `nonnegative(nmf.components_)`. With
    codes of your own, write `Transform(lambda x: codes, nonnegative(atoms).inverse)`.

    Args:
        atoms: as in `linear`.
        steps: of the fit. What a fit of fewer steps misses stays in the residual.

    Returns:
        A Transform of one array. s `[K]`, none below 0, is the least-squares fit of `s @ atoms` to
        x, by `steps` accelerated projected-gradient steps of `K` x `K` products each.

    Raises:
        JaxplainError: as in `linear`; steps below 1.

    References: Polyak, Projected gradient method for non-negative least square, 2015,
        https://doi.org/10.1090/conm/636/12735

    >>> nonnegative([[1.0, 0.0], [1.0, 1.0]]).forward(jnp.array([2.0, -1.0])).round(3).tolist()
    [2.0, 0.0]
    """
    matrix, shape = _check_atoms(atoms)
    largest = np.linalg.norm(matrix @ matrix.T, 2)
    check_positive("steps", steps)

    def forward(x):
        x = fit(x, shape, tuple(range(len(shape))), whole=True)
        return optax.nnls(jnp.asarray(matrix.T, x.dtype), x.reshape(-1), steps, L=float(largest))

    return Transform(forward, linear(atoms).inverse)


def _check_atoms(atoms: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Atoms as a float64 matrix `[K, D]`, and the shape of one."""
    values = np.asarray(atoms, np.float64)
    if values.ndim < 2 or not values.size:
        raise JaxplainError(f"atoms must be [K, ...], K arrays like x, not {list(values.shape)}")
    return values.reshape(len(values), -1), values.shape[1:]


def _check_offset(offset: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(np.asarray(offset, np.float64), shape)
    except ValueError:
        raise JaxplainError(
            f"offset has shape {list(np.shape(offset))}, and atoms {list(shape)} each"
        ) from None
