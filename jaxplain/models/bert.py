"""Hugging Face BERT directories, read and written without torch or transformers.

A directory holds config.json, model.safetensors (or its shards and model.safetensors.index.json)
and tokenizer.json. Nothing is guessed: each tensor of the file is used, or is of a kind listed
here as having no part in classification, or the directory is refused.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.models import bert_encoder
from jaxplain.models.bert_encoder import ACTIVATIONS, POOLINGS, BertConfig
from jaxplain.models.huggingface import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    libraries,
    need,
    read_json,
    read_tensors,
    read_tokenizer,
    tokenize,
)
from jaxplain.models.types import TextModel
from jaxplain.types import JaxplainError, PyTree

# Heads that share the names of a sentence classifier's tensors and mean something else by them.
_OTHER_TASKS = ("ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")

# Tensors that classification never reads: a buffer that counts 0, 1, 2..., and pretraining's heads.
_IGNORED = ("embeddings.position_ids", "cls.predictions.", "cls.seq_relationship.")


class _Tensor(NamedTuple):
    """Where a tensor of the file goes in the parameters; dense kernels are transposed there."""

    path: tuple[str, ...]
    shape: tuple[int, ...]  # as the file has it
    transposed: bool = False


def _tensors(c: BertConfig) -> dict[str, _Tensor]:
    """Give each tensor that `c` needs, by its name in the file without the `bert.` prefix."""

    def dense(name: str, inputs: int, outputs: int, *path: str) -> Iterator[tuple[str, _Tensor]]:
        yield f"{name}.weight", _Tensor((*path, "kernel"), (outputs, inputs), True)
        yield f"{name}.bias", _Tensor((*path, "bias"), (outputs,))

    def norm(name: str, *path: str) -> Iterator[tuple[str, _Tensor]]:
        yield f"{name}.weight", _Tensor((*path, "scale"), (c.width,))
        yield f"{name}.bias", _Tensor((*path, "bias"), (c.width,))

    def everything() -> Iterator[tuple[str, _Tensor]]:
        tables = (("word", c.vocabulary), ("position", c.positions), ("token_type", c.token_types))
        for kind, rows in tables:
            tensor = _Tensor((f"{kind}_embeddings", "embedding"), (rows, c.width))
            yield f"embeddings.{kind}_embeddings.weight", tensor
        yield from norm("embeddings.LayerNorm", "embeddings_norm")
        for i in range(c.layers):
            theirs, ours = f"encoder.layer.{i}", f"layer_{i}"
            for part in ("query", "key", "value"):
                yield from dense(f"{theirs}.attention.self.{part}", c.width, c.width, ours, part)
            attention = f"{theirs}.attention.output"
            yield from dense(f"{attention}.dense", c.width, c.width, ours, "attention_output")
            yield from norm(f"{attention}.LayerNorm", ours, "attention_norm")
            yield from dense(f"{theirs}.intermediate.dense", c.width, c.inner, ours, "intermediate")
            yield from dense(f"{theirs}.output.dense", c.inner, c.width, ours, "output")
            yield from norm(f"{theirs}.output.LayerNorm", ours, "output_norm")
        if c.pooling == "pooler":
            yield from dense("pooler.dense", c.width, c.width, "pooler")
        yield from dense("classifier", c.width, c.classes, "classifier")

    return dict(everything())


def _config(directory: Path, tensors: dict[str, np.ndarray], pooling: str | None) -> BertConfig:
    """Read config.json, and refuse what the encoder would compute otherwise than its author."""
    where = directory / CONFIG
    read = read_json(where)

    def refuse(what: str) -> JaxplainError:
        return JaxplainError(f"{where} has {what}")

    if read.get("model_type", "bert") != "bert":
        raise refuse(f'model_type {read["model_type"]!r}: only "bert" can be loaded')
    for name in read.get("architectures") or ():
        if name.endswith(_OTHER_TASKS):
            raise refuse(f"architecture {name}: only sentence classifiers can be loaded")
    if read.get("is_decoder") or read.get("add_cross_attention"):
        raise refuse("is_decoder or add_cross_attention set: only encoders can be loaded")
    position = read.get("position_embedding_type") or "absolute"
    if position != "absolute":
        raise refuse(f'position_embedding_type {position!r}: only "absolute" can be loaded')
    pooling = pooling or read.get("pooling") or ("pooler" if _pooled(tensors) else "cls")
    if pooling not in POOLINGS:
        raise refuse(f"pooling {pooling!r}: use one of {', '.join(POOLINGS)}")
    sizes = {
        "vocab_size": "vocabulary",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "inner",
        "max_position_embeddings": "positions",
        "type_vocab_size": "token_types",
    }
    for key in (*sizes, "hidden_act", "layer_norm_eps"):
        if key not in read:
            raise refuse(f"no {key}: take the config.json that belongs to these weights")
    if read["hidden_act"] not in ACTIVATIONS:
        raise refuse(f"hidden_act {read['hidden_act']!r}: use one of {', '.join(ACTIVATIONS)}")
    if read["hidden_size"] % read["num_attention_heads"]:
        raise refuse(
            f"hidden_size {read['hidden_size']}, which is no multiple of its "
            f"num_attention_heads {read['num_attention_heads']}: correct one of the two"
        )
    return BertConfig(
        activation=read["hidden_act"],
        epsilon=float(read["layer_norm_eps"]),
        pooling=pooling,
        classes=tensors["classifier.bias"].size,
        **{ours: int(read[theirs]) for theirs, ours in sizes.items()},
    )


def _pooled(tensors: dict[str, np.ndarray]) -> bool:
    return any(name.startswith("pooler.") for name in tensors)


def _canonical(name: str) -> str:
    """Name a tensor as `_tensors` does: no `bert.`, and LayerNorm's older names made new."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _labels(directory: Path, classes: int) -> tuple[str, ...]:
    named = read_json(directory / CONFIG).get("id2label")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(classes))
    if set(named) != {str(i) for i in range(classes)}:
        raise JaxplainError(
            f"{directory / CONFIG} names labels {', '.join(named)} and the classifier has "
            f"{classes} outputs: id2label must name 0 to {classes - 1}"
        )
    return tuple(str(named[str(i)]) for i in range(classes))


def _parameters(
    directory: Path, config: BertConfig, tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Sort the tensors into the encoder's tree; each must be there, and none left over."""
    wanted = _tensors(config)
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise JaxplainError(
            f"{directory} lacks {len(missing)} tensors of a BERT with {config.layers} layers and "
            f"{config.pooling} pooling: {_few(missing)}; its config.json belongs to other weights"
        )
    left = sorted(tensors.keys() - wanted.keys())
    if config.pooling != "pooler":  # a pretrained pooler lies idle beside another pooling
        left = [name for name in left if not name.startswith("pooler.dense.")]
    if left:
        raise JaxplainError(
            f"{directory} has {len(left)} tensors that this BERT has no use for: {_few(left)}; "
            "ignoring them could change what the model computes"
        )
    params: dict[str, Any] = {}
    for name, (path, shape, transposed) in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise JaxplainError(
                f"{name} in {directory} has shape {list(tensor.shape)}, and config.json says "
                f"{list(shape)}: its config.json belongs to other weights"
            )
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = tensor.T if transposed else tensor
    return params


def load_bert(
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    pooling: str | None = None,
    place: Callable[[PyTree], PyTree] | None = None,
) -> TextModel:
    """Load a sentence classifier from a Hugging Face BERT directory.

    float16, bfloat16 and float32 files all become float32 parameters. On accelerators that
    multiply float32 in fewer bits by default, set `jax.default_matmul_precision("highest")` where
    the last digits count.

    Args:
        path: directory with config.json, model.safetensors (or shards and their index) and
            tokenizer.json.
        labels: names of the classes of a new head of zeros, to fine-tune, put in place of the
            checkpoint's; None keeps the checkpoint's, with the names in `id2label`.
        pooling: "pooler" (first token through the pooler, as BertForSequenceClassification),
            "cls" (first token) or "mean" (over the text's tokens). None takes "pooling" from
            config.json, and without it "pooler" where the file has one, else "cls".
        place: as in `models.load`.

    Returns:
        A `TextModel`; `embed` gives word embeddings alone, before positions and LayerNorm, and
        `hidden` the `L + 1` states that transformers calls hidden_states.

    Raises:
        JaxplainError: the directory or a file is missing or damaged, the architecture is another,
            there is no head and `labels` is None, or a tensor is missing, left over or misshapen.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise JaxplainError(f"{directory} is no directory: give one that holds {CONFIG}")
    need(directory / CONFIG, "give a Hugging Face model directory")
    tensors = read_tensors(directory, rename=_canonical, ignored=_IGNORED)
    if labels is not None:
        names = tuple(labels)
        if not names:
            raise JaxplainError("labels is empty: name at least one class")
        width = tensors.get("embeddings.LayerNorm.weight", np.zeros(0)).size
        tensors["classifier.weight"] = np.zeros((len(names), width), np.float32)
        tensors["classifier.bias"] = np.zeros(len(names), np.float32)
    elif not {"classifier.weight", "classifier.bias"} <= tensors.keys():
        raise JaxplainError(
            f"{directory} has no classifier: fine-tune it with examples/finetune_bert.py, or give "
            "load_bert labels=('negative', 'positive') for a new head of zeros to train"
        )
    else:
        names = _labels(directory, tensors["classifier.bias"].size)
    config = _config(directory, tensors, pooling)
    put = place or (lambda tree: jax.tree.map(jnp.asarray, tree))
    params = put(_parameters(directory, config, tensors))
    tokenizer = read_tokenizer(directory, rows=config.vocabulary, max_length=config.positions)
    unk_id = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "[UNK]")
    if unk_id is None:
        raise JaxplainError(f"{directory / TOKENIZER} has no unknown word: use BERT's tokenizer")
    pad_id = int(read_json(directory / CONFIG).get("pad_token_id") or 0)
    return TextModel(
        name=directory.resolve().name,
        params=params,
        embed=partial(bert_encoder.embed, config),
        score=partial(bert_encoder.score, config),
        hidden=partial(bert_encoder.hidden, config),
        states=partial(bert_encoder.states, config),
        tokenize=partial(tokenize, tokenizer),
        labels=names,
        max_length=config.positions,
        pad_id=pad_id,
        unk_id=unk_id,
        mask_id=tokenizer.token_to_id("[MASK]"),
        special_ids=tuple(sorted({pad_id, *tokenizer.encode("").ids})),
        kind="bert",
    )


def save_bert(
    path: str | Path, params: PyTree, *, base: str | Path, labels: Sequence[str], pooling: str
) -> None:
    """Write a Hugging Face directory of float32 weights that `load_bert` loads.

    With pooling "pooler" it is a BertForSequenceClassification to transformers too, which knows
    no other pooling.

    Args:
        path: directory to make.
        params: parameters of a model that `load_bert(base, ...)` gave, trained further or not.
        base: the directory that model came from; its config.json and tokenizer files are taken
            over.
        labels: names of the classes.
        pooling: as in `load_bert`.

    Raises:
        JaxplainError: `path` exists, or `params` is not a tree of base's shape.
    """
    libraries()
    from safetensors.numpy import save_file

    directory, base = Path(path), Path(base)
    if directory.exists():
        raise JaxplainError(f"{directory} exists: choose another name, or remove it")
    tensors = {"classifier.bias": np.asarray(params["classifier"]["bias"])}
    config = _config(base, tensors, pooling)
    if len(labels) != config.classes:
        raise JaxplainError(f"{len(labels)} labels for {config.classes} classes: name each once")
    out = {}
    for name, (keys, shape, transposed) in _tensors(config).items():
        leaf = params
        for key in keys:
            leaf = leaf.get(key) if isinstance(leaf, Mapping) else None
        if leaf is None:
            raise JaxplainError(f"params has no {'/'.join(keys)}: save what {base} gave")
        tensor = np.asarray(leaf, np.float32)
        tensor = tensor.T if transposed else tensor
        if tensor.shape != shape:
            raise JaxplainError(
                f"{'/'.join(keys)} has shape {list(tensor.shape)}, and {base / CONFIG} says "
                f"{list(shape)}: save what {base} gave"
            )
        out[name if name.startswith("classifier.") else f"bert.{name}"] = np.ascontiguousarray(
            tensor
        )
    written = read_json(base / CONFIG) | {
        "architectures": ["BertForSequenceClassification"],
        "pooling": pooling,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    for key in ("torch_dtype", "dtype", "num_labels"):
        written.pop(key, None)
    directory.mkdir(parents=True)
    save_file(out, directory / WEIGHTS, metadata={"format": "pt"})
    for name in (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    (directory / CONFIG).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
