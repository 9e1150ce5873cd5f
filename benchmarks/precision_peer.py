"""Captum's side of `precision`: integrated gradients of the same BERT in PyTorch."""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORWARD = 1e-4  # by how much the float32 logits of both sides may differ
SIZES = 16, 64, 256  # internal batch sizes that are tried


class Network(NamedTuple):
    """`score(x [B, T, D], mask [B, T]) -> logits [B, C]`, and the table of word embeddings."""

    score: Any
    embeddings: Any


class Explained(NamedTuple):
    """Sentences per second, and the relative gap of each."""

    rate: float
    gaps: dict[int, float]


def need() -> tuple[Any, Any, Any]:
    try:
        import captum.attr  # pyright: ignore
        import torch  # pyright: ignore
        import transformers  # pyright: ignore
    except ImportError as error:
        sys.exit(f"{error}: pip install torch==2.13.0 captum==0.9.0 transformers==5.23.0")
    return torch, captum.attr, transformers


def bert(folder: str | Path, threads: int, device: str = "cpu", dtype: str = "float32") -> Network:
    """A classifier that averages the last states of the real tokens; its logits are float32."""
    torch, _, transformers = need()
    torch.set_num_threads(threads)
    from safetensors.torch import load_file  # pyright: ignore

    weights = {k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()}
    config = transformers.BertConfig.from_pretrained(folder)
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    named = {k.removeprefix("bert."): v for k, v in weights.items() if not k.startswith("class")}
    missing, _ = encoder.load_state_dict(named, strict=False)
    if missing:
        sys.exit(f"the weights lack {', '.join(missing)}")
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    encoder = encoder.eval().to(**kind)
    head = torch.nn.Linear(config.hidden_size, config.num_labels)
    head.load_state_dict({n: weights[f"classifier.{n}"] for n in ("weight", "bias")})
    head = head.to(**kind)

    def score(x: Any, mask: Any) -> Any:
        x, mask = x.to(**kind), mask.to(**kind)
        states = encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
        mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return head(mean).float()

    return Network(score, encoder.get_input_embeddings())


def tensors(network: Network, batch: tuple, rows: int) -> tuple[Any, Any, Any]:
    torch, _, _ = need()
    ids, mask, target = (torch.tensor(np.asarray(v))[:rows] for v in batch)
    x = network.embeddings(ids.long()).detach()
    return x, mask.float(), target.long()


def difference(network: Network, batches: list, records: list) -> float:
    """How far its logits are from the run's."""
    torch, _, _ = need()
    apart = 0.0
    for rows, batch in batches:
        x, mask, _ = tensors(network, batch, len(rows))
        with torch.no_grad():
            logits = network.score(x, mask).numpy()
        mine = np.stack([records[i].result["logits"] for i in rows])
        apart = max(apart, float(np.abs(logits - mine).max()))
    if not apart <= FORWARD:
        sys.exit(f"the two sides' logits differ by {apart:.1e}: nothing to compare")
    return apart


def call(network: Network, rows: list[int], batch: tuple, steps: int, size: int) -> Any:
    """Token scores, and what they miss."""
    torch, attr, _ = need()
    x, mask, target = tensors(network, batch, len(rows))
    found = attr.IntegratedGradients(network.score).attribute(
        x, torch.zeros_like(x), target=target, additional_forward_args=mask, n_steps=steps,
        method="gausslegendre", internal_batch_size=size,
    )  # fmt: skip
    with torch.no_grad():
        change = network.score(x, mask) - network.score(torch.zeros_like(x), mask)
    change = change.gather(1, target[:, None])[:, 0].numpy()
    scores = found.sum(-1).detach().numpy()
    return scores, np.abs(scores.sum(1) - change) / np.abs(change)


def best(network: Network, rows: list[int], batch: tuple, steps: int) -> int:
    """The quickest internal batch size."""
    seconds = {}
    for size in SIZES:
        call(network, rows, batch, 4, size)
        began = time.perf_counter()
        call(network, rows, batch, steps, size)
        seconds[size] = time.perf_counter() - began
    return min(seconds, key=lambda size: seconds[size])


def explain(network: Network, batches: list, steps: int, size: int) -> Explained:
    gaps: dict[int, float] = {}
    first, batch = batches[0]
    call(network, first, batch, 4, size)
    began = time.perf_counter()
    for rows, batch in batches:
        _, missed = call(network, rows, batch, steps, size)
        gaps |= {index: float(gap) for index, gap in zip(rows, missed, strict=True)}
    return Explained(len(gaps) / (time.perf_counter() - began), gaps)
