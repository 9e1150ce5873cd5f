"""Masks of groups of inputs, for `group_scores`: tokens, spans, tiles, superpixels, features.

Masks are boolean NumPy arrays with an axis of groups in front, shaped to broadcast to one example.
Letters: `G` groups, `T` tokens, `D` width of an embedding, `H` and `W` an image's height and width.
"""

from collections.abc import Sequence

import numpy as np

from jaxplain.types import JaxplainError, check_positive


def tokens(length: int) -> np.ndarray:
    """Each token alone: `[T, T, 1]`, for embeddings `[T, D]`.

    >>> tokens(3)[1, :, 0].tolist()
    [False, True, False]
    """
    return np.eye(check_positive("length", length), dtype=bool)[:, :, None]


def spans(length: int, *, longest: int | None = None) -> np.ndarray:
    """Every run of consecutive tokens: `[G, T, 1]`, in the order of `span_ends`.

    Args:
        length: T.
        longest: no run has more tokens; None for no limit, and G = T (T + 1) / 2.

    >>> spans(3)[:, :, 0].astype(int).tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]]
    """
    ends = span_ends(length, longest=longest)
    places = np.arange(length)
    return ((places >= ends[:, :1]) & (places < ends[:, 1:]))[:, :, None]


def span_ends(length: int, *, longest: int | None = None) -> np.ndarray:
    """Where the runs of `spans` start and stop: `[G, 2]`, the stop not included; shortest first.

    >>> span_ends(2).tolist()
    [[0, 1], [1, 2], [0, 2]]
    """
    check_positive("length", length)
    most = length if longest is None else min(check_positive("longest", longest), length)
    return np.array([(i, i + n) for n in range(1, most + 1) for i in range(length - n + 1)])


def tiles(shape: Sequence[int], size: int | Sequence[int]) -> np.ndarray:
    """Every rectangle of a grid: `[G, H, W, 1]`, in reading order, for images `[H, W, channels]`.

    Args:
        shape: `(H, W)`, or an image's `(H, W, channels)`.
        size: of a rectangle, one number or `(height, width)`; those at the lower and right edge
            hold what is left.

    >>> tiles((4, 6), 2).shape, int(tiles((4, 6), 2)[0].sum())
    ((6, 4, 6, 1), 4)
    """
    height, width = shape[:2]
    rows, columns = (size, size) if isinstance(size, int) else size
    across = -(-width // check_positive("size", columns))
    labels = (np.arange(height) // check_positive("size", rows))[:, None] * across + np.arange(
        width
    ) // columns
    return superpixels(labels)


def superpixels(labels: np.ndarray) -> np.ndarray:
    """One group for each label of a segmentation: `[G, H, W, 1]`, in the order of the labels.

    Args:
        labels: `[H, W]` whole numbers; pixels of a negative label are in no group.

    Raises:
        JaxplainError: labels are no `[H, W]` array of whole numbers, or none is 0 or more.

    >>> superpixels(np.array([[0, 0, 7]]))[:, 0, :, 0].tolist()
    [[True, True, False], [False, False, True]]
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise JaxplainError(
            f"labels must be an [H, W] array of whole numbers, not {labels.dtype}"
            f"{list(labels.shape)}"
        )
    return features(labels)[..., None]


def features(labels: np.ndarray) -> np.ndarray:
    """One group for each label: `[G, *shape of labels]`, in the order of the labels.

    Args:
        labels: whole numbers, one for each feature; features of a negative label are in no group.

    Raises:
        JaxplainError: labels are not whole numbers, or none is 0 or more.

    >>> features([0, 1, 0]).tolist()
    [[True, False, True], [False, True, False]]
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise JaxplainError(f"labels must be whole numbers, not {labels.dtype}")
    kinds = np.unique(labels[labels >= 0])
    if not kinds.size:
        raise JaxplainError("labels has no group: number the features of a group 0 or more")
    return labels == kinds.reshape(-1, *(1,) * labels.ndim)
