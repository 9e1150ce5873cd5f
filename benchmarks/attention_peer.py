"""Integrated gradients of a transformer whose time is matrix products, beside Captum's.

    pip install torch==2.13.0 captum==0.9.0 transformers==5.23.0
    JAXPLAIN_DATA=... python -m benchmarks.attention_peer

BERT-mini (4 layers, width 256) with random weights, 16 sentences of 64 tokens, 32 Gauss-Legendre
nodes; the tokenizer, which takes no part, is that of minilm-sst2 below `JAXPLAIN_DATA`. Captum
explains the same weights in transformers' BERT, eager and under torch.compile, each at its best of
several internal batch sizes; ours takes the best of several `chunk`s. The row has the throughput of
all, how far their scores are apart, what a bare gradient of the batch takes on both sides, and what
both reach in one product of the model's size.
"""

import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks import precision_peer as peer
from benchmarks.common import median_ratio, paired, parse, report, sst2
from jaxplain import models
from jaxplain.models.bert import save_bert
from jaxplain.models.bert_encoder import Bert, BertConfig

APART = {  # of the largest score, by the digits of the products' factors, in bits
    ("float32", "highest"): 1e-4,  # sums in another order
    ("float32", "default"): 1e-2,  # 11 on a GPU
    ("bfloat16", "default"): 0.1,  # 8, and each side rounds states elsewhere
}


def folder(into: Path, options: Any) -> Path:
    """A BERT of the asked sizes with random weights, as a Hugging Face directory."""
    tokenizer = sst2().parent.parent / "minilm-sst2"
    config = json.loads((tokenizer / "config.json").read_text())
    inner = 4 * options.width
    config |= {"hidden_size": options.width, "num_hidden_layers": options.layers}
    config |= {"num_attention_heads": options.heads, "intermediate_size": inner}
    base = into / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    shutil.copyfile(tokenizer / "tokenizer.json", base / "tokenizer.json")
    sizes = BertConfig(
        config["vocab_size"], options.width, options.layers, options.heads, inner,
        config["hidden_act"], config["layer_norm_eps"], config["max_position_embeddings"],
        config["type_vocab_size"], "mean", 2,
    )  # fmt: skip
    x, mask = jnp.zeros((4, options.width)), jnp.ones(4, bool)
    params = dict(jax.jit(Bert(sizes).init)(jax.random.key(0), x, mask)["params"])
    shape = (config["vocab_size"], options.width)  # the table of words is asked for apart
    params["word_embeddings"] = {"embedding": jax.random.normal(jax.random.key(1), shape)}
    made = into / "random"
    save_bert(made, params, base=base, labels=("no", "yes"), pooling="mean")
    return made


def main() -> None:
    options = parse(
        __doc__ or "", layers=4, width=256, heads=4, batch=16, length=64, steps=32, repeats=7,
        threads=2, compile="yes", sizes="64,256", chunks="1,2", device="cpu", dtype="float32",
        precision="highest",
    )  # fmt: skip
    numbers = options.dtype, options.precision
    if numbers not in APART:
        sys.exit(f"--dtype and --precision take: {', '.join(map(' '.join, APART))}")
    jax.config.update("jax_default_matmul_precision", options.precision)
    with tempfile.TemporaryDirectory() as name:
        place = folder(Path(name), options)
        model = models.load(place)
        theirs = peer.bert(place, options.threads, options.device, options.dtype)
    torch, attr, _ = peer.need()
    torch.set_float32_matmul_precision("highest" if options.precision == "highest" else "high")
    draw = np.random.default_rng(0)
    ids = draw.integers(1000, 20000, (options.batch, options.length)).astype(np.int32)
    mask = np.ones(ids.shape, bool)
    x = jax.vmap(model.embed, (None, 0))(model.params, ids)
    dtype = jnp.dtype(options.dtype)
    params = jax.tree.map(lambda v: v.astype(dtype), model.params)
    last = lambda params, x, mask: model.score(params, x.astype(dtype), mask)[1]
    score = lambda params, x, mask: last(params, x, mask).astype(jnp.float32)

    def explain(chunk, params, x, mask):
        f = partial(score, params, mask=mask)
        return jxp.integrated_gradients(lambda x: f(x=x), x, steps=options.steps, chunk=chunk)

    ours = {}
    for chunk in map(int, options.chunks.split(",")):
        program = jax.jit(jax.vmap(partial(explain, chunk), (None, 0, 0)))
        ours[f"chunk {chunk}"] = partial(program, params, x, mask)
    gradient = jax.jit(jax.vmap(jax.value_and_grad(score, argnums=1), (None, 0, 0)))

    inputs = torch.tensor(np.array(x), device=options.device)
    real = torch.tensor(mask, device=options.device).float()
    networks = {"eager": theirs.score}
    if options.compile == "yes":
        networks["compiled"] = torch.compile(theirs.score)

    def done(found):
        if found.is_cuda:
            torch.cuda.synchronize()
        return found

    def attribute(network, size):
        found = attr.IntegratedGradients(network).attribute(
            inputs, torch.zeros_like(inputs), target=1, additional_forward_args=real,
            n_steps=options.steps, method="gausslegendre", internal_batch_size=size,
        )  # fmt: skip
        return done(found.detach())

    def bare():
        given = inputs.clone().requires_grad_()
        theirs.score(given, real)[:, 1].sum().backward()
        return done(given.grad)

    others = {
        f"{kind}, {size} at once": partial(attribute, network, size)
        for kind, network in networks.items()
        for size in map(int, options.sizes.split(","))
        if size <= options.batch * options.steps
    }
    mine = np.asarray(next(iter(ours.values()))().scores)
    apart = max(float(np.abs(mine - call().cpu().numpy()).max()) for call in others.values())
    apart /= float(np.abs(mine).max())
    if not apart <= APART[numbers]:
        sys.exit(f"the two sides' scores differ by {apart:.1e}: nothing to compare")
    best = lambda calls: min(
        calls,
        key=lambda n: np.median(paired([calls[n]], 1)[0]),
    )
    chosen = best(ours)
    at = {kind: best({n: c for n, c in others.items() if n.startswith(kind)}) for kind in networks}
    sides = [ours[chosen], *(others[n] for n in at.values())]
    seconds = paired(sides, options.repeats, sustained=True)
    units = paired([lambda: gradient(params, x, mask), bare], options.repeats, sustained=True)
    shape = (options.batch * options.length, options.width), (options.width, 4 * options.width)
    a, b = (np.ones(s, np.float32) for s in shape)
    product, left, right = jax.jit(jnp.matmul), jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    one, other = torch.tensor(a).to(**kind), torch.tensor(b).to(**kind)
    both = [lambda: product(left, right), lambda: done(one @ other)]
    rates = paired(both, 9, sustained=True)
    jax_rate, torch_rate = (2e-9 * a.size * b.shape[1] / np.median(s) for s in rates)
    ratios = {kind: median_ratio(s, seconds[0]) for kind, s in zip(at, seconds[1:], strict=True)}
    theirs_ms = [1000 * float(np.median(s)) for s in seconds[1:]]
    report(
        "attention_peer",
        "at least Captum's throughput, eager and compiled",
        min(ratios.values()) >= 1,
        ours_ms=1000 * float(np.median(seconds[0])),
        chunk=chosen,
        **dict(zip((f"captum_{kind}_ms" for kind in at), theirs_ms, strict=True)),
        **{f"captum_{kind}_at": n.split(", ")[1] for kind, n in at.items()},
        **{f"times_captum_{kind}": r for kind, r in ratios.items()},
        scores_apart=f"{apart:.1e}",
        gradient_ms=1000 * float(np.median(units[0])),
        torch_gradient_ms=1000 * float(np.median(units[1])),
        product_gflop_per_s=float(jax_rate),
        torch_product_gflop_per_s=float(torch_rate),
        threads=options.threads,
        **{n: getattr(options, n) for n in ("layers", "width", "batch", "length", "steps")},
        **{n: getattr(options, n) for n in ("dtype", "precision")},
    )


if __name__ == "__main__":
    main()
