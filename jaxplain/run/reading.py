"""Files of the user's, and what to say where they cannot be read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from jaxplain.types import JaxplainError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a file that cannot be read into one line that says what to do."""
    try:
        yield
    except FileNotFoundError:
        raise JaxplainError(f"{path} does not exist: check the path given to --data") from None
    except IsADirectoryError:
        raise JaxplainError(f"{path} is a directory: give --data a file in it") from None
    except OSError as error:
        raise JaxplainError(f"{path} cannot be read: {error.strerror or error}") from None
