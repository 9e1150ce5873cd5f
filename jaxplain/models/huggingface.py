"""The files of a Hugging Face directory: JSON, safetensors and tokenizers, without torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.models.types import Tokens
from jaxplain.types import JaxplainError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"


def need(path: Path, instead: str) -> Path:
    """Give `path` back if it is a file, or raise saying what to do `instead`."""
    if not path.is_file():
        raise JaxplainError(f"{path} is missing: {instead}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JaxplainError(f"{path} cannot be read as JSON ({error}): fetch it again") from error
    if not isinstance(value, dict):
        raise JaxplainError(f"{path} holds no JSON object: fetch it again")
    return value


def libraries() -> tuple[Any, Any]:
    """Give the modules safetensors and tokenizers, or raise with the line that installs them."""
    try:
        import safetensors
        import tokenizers
    except ImportError as error:
        raise JaxplainError(
            f"reading a Hugging Face directory needs {error.name}: pip install 'jaxplain[hf]'"
        ) from error
    return safetensors, tokenizers


def read_tensors(
    directory: Path, *, rename: Callable[[str], str], ignored: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Read the directory's tensors as float32, from one file or from its shards.

    Args:
        directory: holds model.safetensors, or model.safetensors.index.json and what that names.
        rename: gives the name under which a tensor is returned.
        ignored: beginnings of returned names that are left out.
    """
    safetensors, _ = libraries()
    if (directory / INDEX).is_file():
        files = sorted(set(read_json(directory / INDEX).get("weight_map", {}).values()))
    else:
        files = [WEIGHTS]
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        path = need(
            directory / file,
            "only safetensors files are read; transformers writes them by "
            "model.save_pretrained(directory)",
        )
        try:
            with safetensors.safe_open(path, framework="numpy") as opened:
                for name in opened.keys():
                    new = rename(name)
                    if new.startswith(ignored):
                        continue
                    if new in tensors:
                        raise JaxplainError(
                            f"{path} has {name}, which the directory has already under another "
                            "spelling of the same name: remove one of the two"
                        )
                    kind = opened.get_slice(name).get_dtype()
                    if kind not in ("F16", "BF16", "F32", "F64"):
                        raise JaxplainError(
                            f"{name} in {path} is {kind}, a quantised or integer weight: use the "
                            "float16, bfloat16 or float32 weights of this model"
                        )
                    tensors[new] = opened.get_tensor(name).astype(np.float32)
        except safetensors.SafetensorError as error:
            raise JaxplainError(
                f"{path} is no whole safetensors file ({error}): fetch it again"
            ) from error
    return tensors


def read_tokenizer(directory: Path, *, rows: int, max_length: int) -> Any:
    """Read tokenizer.json, whose ids must be below `rows`; texts are cut at `max_length` tokens."""
    _, tokenizers = libraries()
    path = need(
        directory / TOKENIZER,
        "transformers writes it by AutoTokenizer.from_pretrained(model).save_pretrained(directory)",
    )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise JaxplainError(f"{path} is no tokenizer ({error}): fetch it again") from error
    if tokenizer.get_vocab_size() > rows:
        raise JaxplainError(
            f"{path} has {tokenizer.get_vocab_size()} entries and the model has embeddings for "
            f"{rows}: take the tokenizer.json that belongs to these weights"
        )
    tokenizer.no_padding()  # whatever batching its author stored with it
    tokenizer.enable_truncation(max_length)
    return tokenizer


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """Read one text, special tokens added."""
    encoding = tokenizer.encode(text)
    return Tokens(
        ids=np.asarray(encoding.ids, np.int32),
        pieces=list(encoding.tokens),
        truncated=bool(encoding.overflowing),
    )
