"""Arrays of the user's own as examples, and what one's explanation is."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.groups import tiles
from jaxplain.models.types import Model
from jaxplain.run.own import check_logits, label_of
from jaxplain.run.sources import PREDICTED, class_index
from jaxplain.types import JaxplainError, PyTree

PATCHES = 8  # along an image's longer side, where whole patches are taken away


class ArraySource:
    """Arrays as examples of the engine, each read from its source when it is asked for.

    An example holds `x` `[...]` float, `mask` `[T]` bool if the source's examples do, `target` `[]`
    int32 (-1: explain the predicted class), and notes: `label` (a class name, or the label as the
    source has it if the model knows no such class), and whatever strings the source's examples
    hold, such as `text`, or `names` and `pieces` of the entries. Whole numbers in `x` are taken as
    floats; other fields of numbers are not read.

    Attributes:
        classes: C.
        shape: of the first example's `x`.
        masked: whether examples have a mask, and then `T` may vary.
        max_length: None: an array model has no longest example.
    """

    max_length = None

    def __init__(
        self,
        source: Any,
        model: Model,
        *,
        target: str = "predicted",
        limit: int | None = None,
        where: str = "the data",
    ):
        """Look at a first example, and check that the model can score it.

        Args:
            source: has `__len__` and `__getitem__`, which gives dicts with `x`, or arrays.
            model: its score and classes are used.
            target: "predicted", "label", or the name or number of a class.
            limit: how many examples to take, from the first.
            where: what messages call the source.

        Raises:
            JaxplainError: if no example can be read, or the model cannot score one.
        """
        self.source, self.model, self.target, self.where = source, model, target, where
        self.count = len(source) if limit is None else min(limit, len(source))
        self._like: tuple[bool, tuple[int, ...]] | None = None
        first = self._first()
        x, mask = np.shape(first["x"]), np.shape(first["mask"]) if "mask" in first else None
        given = f"x {list(x)}" + ("" if mask is None else f", mask {list(mask)}")
        arrays = [jax.ShapeDtypeStruct(x, first["x"].dtype)]
        arrays += [] if mask is None else [jax.ShapeDtypeStruct(mask, jnp.bool_)]
        self.classes = check_logits(f"--model {model.name}", model, given, *arrays)
        self.labels = model.labels or tuple(map(str, range(self.classes)))
        self.masked, self.shape = self._like = mask is not None, x
        self.fixed = PREDICTED
        if target not in ("predicted", "label"):
            index = class_index(target, self.labels)
            if index is None:
                few = ", ".join(self.labels[:10]) + (", ..." if self.classes > 10 else "")
                raise JaxplainError(
                    f"--target {target!r} is no class of {model.name}: choose predicted, label, or "
                    f"one of {few}"
                )
            self.fixed = index

    def _first(self) -> dict[str, Any]:
        """An example that can be read."""
        reason = None
        self.target, target = "predicted", self.target  # its label is not asked for yet
        self.fixed, self.labels = PREDICTED, ()
        for index in range(min(self.count, 16)):
            try:
                first = self[index]
                self.target = target
                return first
            except Exception as error:
                reason = reason or error
        if isinstance(reason, JaxplainError):
            raise reason
        text = " ".join(str(reason).split())
        raise JaxplainError(
            f"{self.where}: no example could be read: {type(reason).__name__}: {text}"
        ) from reason

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        if not isinstance(example, Mapping):
            example = {"x": example}
        if example.get("x") is None:
            has = ", ".join(map(str, example)) or "nothing"
            raise JaxplainError(
                f"{self.where}: an example has {has}, and no x: give dicts with x, an array of "
                "one example"
            )
        x = np.asarray(example["x"])
        if not (jnp.issubdtype(x.dtype, np.number) or x.dtype == np.bool_):
            raise JaxplainError(f"{self.where}: x is {x.dtype}: give an array of numbers")
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype if floating else np.float32))
        mask = example.get("mask")
        if mask is not None:
            mask = np.asarray(mask, bool)
            if mask.shape != x.shape[:1]:
                raise JaxplainError(
                    f"{self.where}: mask is {list(mask.shape)} and x {list(x.shape)}: the mask "
                    "must say of each row of x whether it is real"
                )
        self._check_like_first(x, mask)
        label = label_of(example)
        known = None if label is None else class_index(label, self.labels)
        if self.target == "label" and known is None:
            raise JaxplainError(
                f"--target label: the label is {label}, which is no class of {self.model.name}"
            )
        target = known if self.target == "label" else self.fixed
        notes = {name: v for name, v in example.items() if name != "label" and is_text(v)}
        return {
            "x": x,
            **({} if mask is None else {"mask": mask}),
            "target": np.int32(PREDICTED if target is None else target),
            **notes,
            "label": label if known is None or self.model.labels is None else self.labels[known],
        }

    def _check_like_first(self, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Say what to do about examples of several shapes, before the engine says less."""
        if self._like is None:
            return
        masked, shape = self._like
        if (mask is not None) != masked:
            raise JaxplainError(f"{self.where}: some examples have a mask, and others have none")
        if x.shape == shape or (masked and x.shape[1:] == shape[1:]):
            return
        hint = "" if masked else "; where lengths vary, give each a mask [T] of True"
        raise JaxplainError(
            f"x has shape {list(x.shape)}, and the first example's is {list(shape)}{hint}"
        )


def is_text(value: Any) -> bool:
    """Whether a field is a note: a string, or strings."""
    listed = isinstance(value, list | tuple) and len(value) > 0
    return isinstance(value, str) or (listed and all(isinstance(v, str) for v in value))


def references(source: ArraySource, count: int) -> np.ndarray:
    """Evenly spaced examples `[N, ...]` that serve as reference inputs.

    Raises:
        JaxplainError: they have several lengths, or none can be read.
    """
    if source.masked:
        raise JaxplainError(
            "examples with a mask vary in length, and reference inputs must not: choose a method "
            "with --baseline"
        )
    rows = np.unique(np.linspace(0, len(source) - 1, num=min(count, len(source))).astype(int))
    found = []
    for row in rows:
        with contextlib.suppress(Exception):  # what cannot be read is no reference
            found.append(source[int(row)]["x"])
    if not found:
        raise JaxplainError("no reference input could be read: raise --background")
    return np.stack(found)


def picture_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Which axes of an array are an image's height and width; None if it is no image."""
    if len(shape) == 2:
        return (0, 1)
    if len(shape) != 3:
        return None
    if shape[-1] <= 4:
        return (0, 1)
    return (1, 2) if shape[0] <= 4 else None


def players(shape: tuple[int, ...], masked: bool, patch: int | None) -> np.ndarray | None:
    """Numbers of what is taken away together, broadcastable to x; None for every entry alone.

    Rows of an example with a mask, and patches of an image; without `patch`, as many pixels a side
    as make 8 patches along its longer side.

    Raises:
        JaxplainError: `patch` for what is no image.
    """
    if masked:
        if patch is not None:
            raise JaxplainError("--patch is for images: rows of x are taken away one by one")
        return np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    axes = picture_axes(shape)
    if axes is None:
        if patch is not None:
            raise JaxplainError(f"--patch is for images, and x has shape {list(shape)}")
        return None
    height, width = (shape[axis] for axis in axes)
    size = patch or -(-max(height, width) // PATCHES)
    labels = np.argmax(tiles((height, width), size)[..., 0], axis=0)
    if len(shape) == 2:
        return labels
    return labels[..., None] if axes == (0, 1) else labels[None]


def shared(attribution: Any, numbers: np.ndarray) -> Any:
    """Every pixel with its share of its patch's score, so that pixels sum to what patches do."""
    sizes = np.bincount(numbers.reshape(-1))[numbers].astype(np.float32)
    changed = {"scores": attribution.scores / sizes}
    if hasattr(attribution, "standard_error"):
        changed["standard_error"] = attribution.standard_error / sizes
    return attribution._replace(**changed)


def explain_array(
    model: Model,
    explainer: Callable[..., Any],
    *,
    where: bool = False,
    groups: bool = False,
    patch: int | None = None,
    baselines: bool = False,
    refined_by: str = "",
) -> Callable[..., PyTree]:
    """Make the function of one example that `run` maps over an `ArraySource`.

    The explained function is the logit of the target class, as a function of `x`.

    Args:
        model: its parameters are not closed over.
        explainer: a method with its options bound.
        where: tell the method which rows are no padding, as `where`, if examples have a mask.
        groups: tell it what is taken away together, as `groups`: see `players`.
        patch: as `players` takes it.
        baselines: the method takes reference inputs; `params` are then a dict of `model`, the
            model's own, and `references` `[N, ...]`.
        refined_by: the method's option that a round's effort stands for, with a tolerance.

    Returns:
        `(params, example, key, effort=None) -> dict` of `attribution`, `logits` `[C]`, `target`
        `[]` int32 and, where x is one, `image` `[H, W]` or `[H, W, C]`. Costs what the method
        costs, and one forward pass.
    """

    def explain(params, example, key, effort=None):
        x, mask, settings = example["x"], example.get("mask"), {}
        if baselines:
            settings["baselines"], params = params["references"], params["model"]
        masks = () if mask is None else (mask,)
        if (
            mask is not None
        ):  # padding repeats the first row: no range or mean over x then depends on it
            x = jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, x[:1])
        logits = model.score(params, x, *masks)
        target = jnp.where(example["target"] < 0, jnp.argmax(logits), example["target"])
        target = target.astype(jnp.int32)
        f = lambda x: model.score(params, x, *masks)[target]
        if where and masks:
            settings["where"] = mask
        if groups:
            numbers = players(x.shape, bool(masks), patch)
            settings |= {} if numbers is None else {"groups": numbers}
        settings |= {} if effort is None else {refined_by: effort}
        attribution = explainer(f, x, key=key, **settings)
        if "groups" in settings:
            attribution = shared(attribution, settings["groups"])
        result = {"attribution": attribution}
        axes = None if masks else picture_axes(x.shape)
        if axes is not None:
            result["image"] = jnp.moveaxis(x, 0, -1) if axes == (1, 2) else x
        return result | {"logits": logits, "target": target}

    return explain
