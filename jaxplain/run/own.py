"""The user's own model and data: functions that the command line names as `module:function`."""

import difflib
import hashlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.models.types import Model, TextModel, Tokens
from jaxplain.run.begin import ENDLESS
from jaxplain.run.sources import Texts, spell
from jaxplain.types import JaxplainError

REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
MODEL = "a jaxplain.models.Model, TextModel or Function, or a dict of one's fields"
DATA = (
    "a sequence of dicts with x or text (and label), or a pair of inputs and labels, of arrays or "
    "strings"
)


def is_reference(name: str | Path) -> bool:
    """Whether `name` is a function's, as in `package.module:function`, and no path."""
    return REFERENCE.fullmatch(str(name)) is not None and not Path(name).exists()


def short(name: str) -> str:
    """`name` as part of a directory's name: of a function, the last part of its module."""
    return name.partition(":")[0].rpartition(".")[2] if is_reference(name) else name


def call(reference: str, option: str, expected: str) -> Any:
    """Import what `package.module:function` names, from the current directory too, and call it.

    Raises:
        JaxplainError: one line, on whatever goes wrong; with `JAXPLAIN_TRACEBACK` set, what the
            function raised passes through.
    """
    where = f"{option} {reference}"
    module, _, name = reference.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        function = pkgutil.resolve_name(f"{module}:")  # a need of the user's, and none of ours
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{module}.".startswith(f"{missing}."):
            raise JaxplainError(
                f"{where}: there is no module {missing}: check its name, and start from the "
                "directory that it is in"
            ) from None
        raise raised(f"{where}: importing {module}", error) from error
    for part in name.split("."):
        if not hasattr(function, part):
            close = difflib.get_close_matches(part, dir(function), 1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise JaxplainError(f"{where}: {module} has no {name}{hint}")
        function = getattr(function, part)
    if not callable(function):
        raise JaxplainError(
            f"{where} is a {type(function).__name__}: name a function that returns {expected}"
        )
    try:
        needed = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # one that does not tell
        needed = []
    if needed:
        raise JaxplainError(
            f"{where} needs {', '.join(needed)}: name a function without arguments that returns "
            f"{expected}"
        )
    try:
        return function()
    except Exception as error:
        raise raised(where, error) from error


def raised(where: str, error: Exception) -> JaxplainError:
    """What the user's own code raised, in one line; or that error itself, if it was asked for."""
    if os.environ.get("JAXPLAIN_TRACEBACK"):
        raise error
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return JaxplainError(f"{where} raised {what} (JAXPLAIN_TRACEBACK=1 shows where)")


def load_model(reference: str) -> TextModel | Model:
    """The model that a function returns, checked by shape, under the function's name.

    Raises:
        JaxplainError: as `call`; or it returned something else, or a score that gives no logits.
    """
    where = f"--model {reference}"
    got = call(reference, "--model", MODEL)
    if isinstance(got, TextModel | Model):
        model = got
    elif isinstance(got, Mapping) or hasattr(got, "_asdict"):
        fields = dict(got) if isinstance(got, Mapping) else got._asdict()
        if "f" in fields and "score" not in fields:  # a Function, of models.from_linen or from_nnx
            fields = {"score": fields["f"], "params": fields.get("params")}
        model = assemble(where, fields)
    else:
        raise JaxplainError(f"{where} returned a {type(got).__name__}: it must return {MODEL}")
    model = model._replace(name=reference)
    if isinstance(model, Model) and not callable(model.score):
        raise JaxplainError(f"{where}: score is a {type(model.score).__name__}, not a function")
    if isinstance(model, TextModel):
        check_text(where, model)
    bad = [p for p, v in jax.tree_util.tree_leaves_with_path(model.params) if not is_array(v)]
    if bad:
        raise JaxplainError(
            f"{where}: params{jax.tree_util.keystr(bad[0])} is no array: params must be a tree of "
            "arrays; what else the score needs belongs into the function"
        )
    return model


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float)


def assemble(where: str, fields: Mapping[str, Any]) -> TextModel | Model:
    """A model of its fields by name, those left out that have a default."""
    text = "tokenize" in fields or "embed" in fields
    kind = TextModel if text else Model
    needed = ["params", "score", *(["embed", "tokenize", "labels", "max_length"] if text else [])]
    lacks = [name for name in needed if name not in fields]
    odd = [name for name in fields if name not in kind._fields]
    if lacks or odd:
        wrong = f"lacks {', '.join(lacks)}" if lacks else f"has {', '.join(map(str, odd))}"
        raise JaxplainError(
            f"{where} returned a {'text model' if text else 'model'} that {wrong}: its fields are "
            f"{', '.join(kind._fields)}, of which {', '.join(needed)} are needed"
        )
    if not text:
        return Model(**fields)

    def absent(params, x, mask):
        raise JaxplainError(f"{where} has no `states`, and this method looks at the layers")

    states = fields.get("states", absent)
    stacked = lambda params, x, mask: jnp.stack(states(params, x, mask))
    # A token that the model does not have is None: a baseline of it is then refused.
    defaults = {"name": "", "hidden": stacked, "states": states, "pad_id": None, "unk_id": None}
    return TextModel(**(defaults | dict(fields)))


def check_text(where: str, model: TextModel) -> None:
    """Refuse a text model whose functions do not fit together. Runs nothing but the tokenizer."""
    try:
        tokens = model.tokenize("a")
    except Exception as error:
        raise raised(f"{where}: tokenize('a')", error) from error
    if not isinstance(tokens, tuple) or len(tokens) != len(Tokens._fields):
        raise JaxplainError(
            f"{where}: tokenize must return jaxplain.models.Tokens(ids, pieces, truncated), and "
            f"returned a {type(tokens).__name__}"
        )
    ids, mask = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.bool_)
    try:
        x = jax.eval_shape(model.embed, model.params, ids)
    except Exception as error:
        raise raised(f"{where}: embed(params, ids [2])", error) from error
    if getattr(x, "ndim", 0) != 2 or x.shape[0] != 2:
        raise JaxplainError(
            f"{where}: embed must give [T, D] for ids [T], and gave {shape_of(x)} for [2]"
        )
    check_logits(where, model, f"x [2, {x.shape[1]}], mask [2]", x, mask)


def check_logits(where: str, model: TextModel | Model, given: str, *args: Any) -> int:
    """The number of classes that `score` gives for an example of such a shape.

    Raises:
        JaxplainError: it raises, or gives no logits `[C]`, or not one for each label.
    """
    try:
        logits = jax.eval_shape(model.score, model.params, *args)
    except Exception as error:
        raise raised(f"{where}: score(params, {given}) of one example", error) from error
    if getattr(logits, "ndim", None) != 1 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise JaxplainError(
            f"{where}: score must give float logits [C] of one example, and gave "
            f"{shape_of(logits)} for {given}: score one example, not a batch"
        )
    if model.labels is not None and len(model.labels) != logits.shape[0]:
        raise JaxplainError(
            f"{where}: {len(model.labels)} labels, and score gives {logits.shape[0]} logits: name "
            "each class"
        )
    return logits.shape[0]


def shape_of(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"


def load_data(reference: str) -> Any:
    """The source that a function returns, checked for what every source has.

    Raises:
        JaxplainError: as `call`; or it returned something else, an empty or an endless source.
    """
    return check_source(f"--data {reference}", call(reference, "--data", DATA))


def check_source(where: str, got: Any) -> Any:
    if isinstance(got, tuple) and len(got) == 2 and not hasattr(got, "_fields"):
        got = Pairs(*(check_source(where, half) for half in got))
        if len(got.inputs) != len(got.labels):
            raise JaxplainError(
                f"{where} returned {len(got.inputs)} inputs and {len(got.labels)} labels: give "
                "each input its label"
            )
    random_access = hasattr(got, "__len__") and hasattr(got, "__getitem__")
    if not random_access or isinstance(got, str | bytes | Mapping):
        raise JaxplainError(
            f"{where} returned a {type(got).__name__}: it must return {DATA}; put an iterator into "
            "a list"
        )
    try:
        count = len(got)
    except (OverflowError, TypeError) as error:
        raise JaxplainError(f"{where} returned a source without a length ({error})") from None
    if not count:
        raise JaxplainError(f"{where} returned an empty source: there is nothing to explain")
    if count > ENDLESS:
        raise JaxplainError(f"{where} returned an endless source: leave out its repeat()")
    return got


class Pairs(Sequence):
    """Inputs and their labels, as a source of dicts."""

    def __init__(self, inputs: Any, labels: Any):
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        value = self.inputs[index]
        return {"text" if isinstance(value, str) else "x": value, "label": self.labels[index]}


def label_of(example: Mapping[str, Any]) -> str | None:
    """An example's label as text: a name or a number."""
    label: Any = example.get("label")
    return spell(label.item() if getattr(label, "ndim", None) == 0 else label)


def as_texts(where: str, source: Any, limit: int | None) -> Texts:
    """The texts of a source, as if they had been read from a file.

    Raises:
        JaxplainError: an example is no text.
    """
    texts, labels = [], []
    for index in range(len(source) if limit is None else min(limit, len(source))):
        example = source[index]
        example = {"text": example} if isinstance(example, str) else example
        text = example.get("text") if isinstance(example, Mapping) else None
        if not isinstance(text, str):
            raise JaxplainError(
                f"{where}: example {index} has no text, and the model reads texts: give "
                "strings, or dicts with text"
            )
        texts.append(text)
        labels.append(label_of(example))
    told = any(label is not None for label in labels)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Texts(texts, labels if told else None, "text", "label" if told else None, digest)
