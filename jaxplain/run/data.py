"""What `--data` names: a file of texts, a folder of images, or a function that gives any source."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxplain import models
from jaxplain.models.types import Model
from jaxplain.run import own
from jaxplain.run.sources import Texts, read_texts
from jaxplain.types import JaxplainError


class Data(NamedTuple):
    """Examples, before it is known which model reads them.

    Attributes:
        examples: texts, a source of the user's, or the folder of images.
        about: what the run's configuration says of them.
        where: what messages call them.
    """

    examples: Any
    about: dict[str, Any]
    where: str


def read(
    data: Path | None,
    *,
    format: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Data:
    """Read a file, or find what else `data` names; None stands for the bundled sentences.

    Raises:
        JaxplainError: as `read_texts` and `own.load_data`; or options of files for what is none.
    """
    if limit is not None and limit < 1:
        raise JaxplainError(f"--limit must be at least 1, not {limit}")
    if data is None:
        return of_texts(bundled(limit), "bundled", limit)
    reference = own.is_reference(data)
    if reference or data.is_dir():
        columns = {"format": format, "text-column": text_column, "label-column": label_column}
        given = [f"--{name}" for name, value in columns.items() if value is not None]
        if given:
            raise JaxplainError(f"{', '.join(given)}: {data} is no file of texts: leave it out")
        about = {"name": str(data) if reference else data.resolve().name, "limit": limit}
        where = f"--data {data}"
        return Data(own.load_data(str(data)) if reference else data, about, where)
    texts = read_texts(
        data, format=format, text_column=text_column, label_column=label_column, limit=limit
    )
    return of_texts(texts, data.name, limit)


def of_texts(texts: Texts, name: str, limit: int | None) -> Data:
    """Texts that were read already."""
    about = {
        "name": name,
        "sha256": texts.sha256,
        "text_column": texts.text_column,
        "label_column": texts.label_column,
        "limit": limit,
    }
    return Data(texts, about, name)


def bundled(limit: int | None) -> Texts:
    """The bundled sentences, as if they had been read from a file."""
    rows = models.bundled_examples()[:limit]
    return Texts([r["text"] for r in rows], [str(r["label"]) for r in rows], "text", "label", "")


def for_texts(data: Data) -> Data:
    """The same examples as `Texts`.

    Raises:
        JaxplainError: they are images, or something else that is no text.
    """
    if isinstance(data.examples, Texts):
        return data
    if isinstance(data.examples, Path):
        raise JaxplainError(f"{data.examples} is a directory: give --data a file in it")
    texts = own.as_texts(data.where, data.examples, data.about["limit"])
    return Data(texts, data.about | {"sha256": texts.sha256}, data.where)


def for_arrays(data: Data, model: Model) -> Data:
    """The same examples as a source of arrays.

    Raises:
        JaxplainError: they are texts, or images and the model does not say how it reads them.
    """
    if isinstance(data.examples, Texts):
        what = "the bundled sentences are" if data.where == "bundled" else f"{data.where} has"
        raise JaxplainError(
            f"{what} texts, and --model {model.name} reads arrays: give --data module:function, or "
            "a folder of images"
        )
    if not isinstance(data.examples, Path):
        return data
    if model.images is None:
        raise JaxplainError(
            f"--model {model.name} does not say how it reads a folder of images: give the Model "
            "images=functools.partial(jaxplain.ImageFolder, size=224)"
        )
    try:
        source = model.images(data.examples)
    except JaxplainError:
        raise
    except Exception as error:
        raise own.raised(f"--model {model.name}: images({data.examples})", error) from error
    return data._replace(examples=own.check_source(f"--model {model.name}: images", source))
