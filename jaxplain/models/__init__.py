"""Flax models behind one small interface, bundled or loaded from a directory."""

import csv
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxplain.models.types import Model as Model
from jaxplain.models.types import TextModel as TextModel
from jaxplain.models.types import Tokens as Tokens
from jaxplain.types import JaxplainError, PyTree

if TYPE_CHECKING:
    from jaxplain.models.adapters import Function as Function
    from jaxplain.models.adapters import from_linen as from_linen
    from jaxplain.models.adapters import from_nnx as from_nnx
    from jaxplain.models.adapters import per_example as per_example
    from jaxplain.models.checkpoint import restore as restore
    from jaxplain.models.checkpoint import save as save
    from jaxplain.models.dtype import in_dtype as in_dtype
    from jaxplain.models.sharding import abstract as abstract
    from jaxplain.models.sharding import annotated as annotated
    from jaxplain.models.sharding import largest_axis as largest_axis
    from jaxplain.models.sharding import shard as shard
    from jaxplain.models.sharding import shardings as shardings

BUNDLED = ("transformer", "lstm", "cnn")


def __getattr__(name: str) -> Any:
    if name in ("save", "restore"):  # Orbax takes longer to import than a bundled model to load
        from jaxplain.models import checkpoint

        return getattr(checkpoint, name)
    if name in ("Function", "from_linen", "from_nnx", "per_example"):  # flax takes a second
        from jaxplain.models import adapters

        return getattr(adapters, name)
    if name == "in_dtype":
        from jaxplain.models import dtype

        return dtype.in_dtype
    if name in ("abstract", "annotated", "largest_axis", "shard", "shardings"):
        from jaxplain.models import sharding

        return getattr(sharding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name_or_path: str | Path, *, place: Callable[[PyTree], PyTree] | None = None) -> TextModel:
    """A text model, by its bundled name or from a directory.

    Args:
        name_or_path: "transformer", "lstm" or "cnn"; or a Hugging Face directory (config.json,
            model.safetensors, tokenizer.json); or a folder that `models.trained.write` wrote.
        place: puts the parameters, a tree of numpy arrays, where they belong, as
            `lambda params: shard(params, mesh, largest_axis(mesh))` does; no device then holds more
            than its part at any time. Default: whole, on the first device or in host memory.

    Raises:
        JaxplainError: for another name, a missing path, or a directory of neither kind.
    """
    from jaxplain.models import trained  # flax takes a second to import, and names cost nothing

    if name_or_path in BUNDLED:
        with resources.as_file(resources.files(__name__) / "bundled" / str(name_or_path)) as folder:
            return placed(trained.read(folder), place)
    path = Path(name_or_path)
    if not path.exists():
        raise JaxplainError(
            f"no model {str(name_or_path)!r}: take one of {', '.join(BUNDLED)}, or the path of a "
            "directory with a model"
        )
    if (path / trained.CARD).is_file():
        return placed(trained.read(path), place)
    if (path / "config.json").is_file():
        from jaxplain.models.bert import load_bert  # needs the extra `hf`

        return load_bert(path, place=place)
    there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise JaxplainError(
        f"{path} is no model ({there or 'empty'}): a Hugging Face directory holds config.json, "
        "model.safetensors and tokenizer.json"
    )


def placed(model: TextModel, place: Callable[[PyTree], PyTree] | None) -> TextModel:
    return model if place is None else model._replace(params=place(model.params))


def bundled_examples() -> list[dict[str, Any]]:
    """Some sixty sentences of opinion, as `dict(text=..., label=...)`, label 0 or 1.

    Written for jaxplain: reviews of films, food, software and things, 3 to 41 words, with negation,
    contrast and irony; as many negative (0) as positive (1).
    """
    table = (resources.files(__name__) / "bundled" / "sentences.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [dict(text=row["sentence"], label=int(row["label"])) for row in rows]
