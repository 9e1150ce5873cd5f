"""Write contextual_{resnet,lstm,bert}.npz: scores of the published contextual decompositions.

    pip install torch==2.13.0 numpy scipy scikit-image tqdm transformers fancy_einsum
    pip install --no-deps acd==0.0.2
    git clone https://github.com/adelaidehsu/CD_Circuit    # at 079ecef
    CD_CIRCUIT=.../CD_Circuit python -m tests.goldens.make_contextual

Run by hand from the root of the repository, never by the tests; jaxplain is imported for the draws.

Convolutional networks. `resnet18` goes through the published entry point, `acd.scores.cd.cd(...,
model_type="resnet18")`, unmodified: torch's ResNet-18, narrow, with average pooling in the place of
max pooling (whose windows of zeros are ties). `residual` calls what that entry point calls, on a
smaller network: `cd_generic` on the modules before the blocks, `propagate_basic_block` on each
block, `cd_generic` on the modules after. In float64, `cd` would cast masks to float32, so there
its first lines are repeated here.

LSTM. `acd.scores.cd.cd_text`, inclusive, unmodified; its arrays are float64 even for float32
weights. For `exclusive` its source is run again with one comparison changed, in the term of the two
biases: `i <= stop` to `i < stop`, as in the original code of Murdoch et al. and in the package's
own `propagate_lstm`, which is called too and must agree. The classifier's bias is in no score.

BERT. transformers' BertForSequenceClassification; groups are tokens of the embeddings' output, so
after positions, token types and the embeddings' LayerNorm. `basic` is the published
`cdt_basic.prop_classifier_model_from_level(level=0)`. `query_key` is `cdt_source_to_target`:
`prop_encoder` of cdt_basic over its `prop_BERT_layer_hh`, then `prop_pooler` and `prop_linear`.
Two things keep the published code from running there, and only those are changed:
`prop_attention_probs_tmp` reads per-head matrices of transformer_lens, which are attached here to
BERT's modules as views of the same weights; `prop_BERT_attention_hh` passes too few arguments and
takes too few results, so its lines are repeated below, in their order, without the source nodes
inside the network. Files are imported as they are but for the statement `type AblationSet = ...`,
which needs Python 3.12, and transformer_lens is an empty stand-in (two isinstance checks).
`normalize_rel_irrel`, which gives a whole value to one side where the signs differ, is a no-op,
and as published in the scores named `_signs`.

Layers' outputs come from the float64 runs, stored as float32. Written on a CPU.
"""

import inspect
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import nn

np.int = int  # which numpy no longer has, and the package still uses

import acd.scores.cd as published  # noqa: E402
from acd.scores.cd_propagate import propagate_basic_block, propagate_lstm  # noqa: E402

from tests.contextual_networks import BERT, BERT_EPSILON, LSTMS, draw_bert, draw_lstm  # noqa: E402

HERE = Path(__file__).parent
DTYPES = {"f4": torch.float32, "f8": torch.float64}
MADE_BY = f"acd 0.0.2, CD_Circuit 079ecef, torch {torch.__version__}, numpy {np.__version__}"


class Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, before, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if before != width:
            shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x):
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.relu, self.avgpool = nn.ReLU(), nn.AvgPool2d(2)
        self.block1, self.block2 = Block(5, 5), Block(5, 7, 2)
        self.conv2, self.relu2 = nn.Conv2d(7, 8, 2), nn.ReLU()
        self.avgpool2, self.fc = nn.AvgPool2d(2), nn.Linear(8, 3)

    def forward(self, x):
        x = self.avgpool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu2(self.conv2(self.block2(self.block1(x))))
        return self.fc(self.avgpool2(x).flatten(1))

    def decompose(self, relevant, irrelevant):
        parts = published.cd_generic(
            [self.conv1, self.bn1, self.relu, self.avgpool], relevant, irrelevant
        )
        for block in (self.block1, self.block2):
            parts = propagate_basic_block(*parts, block)
        return published.cd_generic([self.conv2, self.relu2, self.avgpool2, self.fc], *parts)


class ResNet18(nn.Module):
    """Modules in torchvision's order: the published code finds the layers by their number."""

    def __init__(self, widths=(4, 5, 6, 7)):
        super().__init__()
        self.conv1 = nn.Conv2d(2, widths[0], 3, 1, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        before = widths[0]
        for i, (width, stride) in enumerate(zip(widths, (1, 2, 2, 1), strict=True)):
            setattr(
                self,
                f"layer{i + 1}",
                nn.Sequential(Block(before, width, stride), Block(width, width)),
            )
            before = width
        self.avgpool, self.fc = nn.AvgPool2d(2), nn.Linear(before, 3)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))

    def decompose(self, relevant, irrelevant):
        return published.cd_propagate_resnet(relevant, irrelevant, self)


def randomize(model):
    """Normalizations with statistics and an affine map of their own, and biases."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3)


def masks_of(size):
    half, tile, scattered = (np.zeros((size, size), bool) for _ in range(3))
    half[: size // 2] = True
    tile[2:6, 4:8] = True
    scattered[::3, 1::2] = True
    full = np.ones((size, size), bool)
    return np.stack([full, half, tile, scattered, ~full])


def convolutional(out):
    for name, build, size in (("residual", Residual, 12), ("resnet18", ResNet18, 16)):
        torch.manual_seed(5)
        model = build().eval()
        with torch.no_grad():
            randomize(model)
        x = np.random.RandomState(1).normal(size=(2, size, size)).astype("f4")
        masks = masks_of(size)
        out |= {f"{name}_x": x, f"{name}_masks": masks}
        for key, value in model.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                out[f"{name}_param_{key}"] = value.numpy()
        for key, dtype in DTYPES.items():
            model = model.to(dtype)
            image = torch.tensor(x[None], dtype=dtype)
            parts = []
            for mask in masks:
                if name == "resnet18" and key == "f4":
                    parts.append(
                        published.cd(image, model, mask * 1.0, model_type="resnet18", device="cpu")
                    )
                else:
                    m = torch.tensor(mask, dtype=dtype)
                    torch.set_default_dtype(dtype)  # `torch.zeros` of the published code
                    parts.append(model.decompose(m * image, (1 - m) * image))
                    torch.set_default_dtype(torch.float32)
            relevant, irrelevant = (np.concatenate([p[i].numpy() for p in parts]) for i in (0, 1))
            out[f"{name}_{key}_relevant"], out[f"{name}_{key}_irrelevant"] = relevant, irrelevant
            out[f"{name}_{key}_logits"] = logits = model(image)[0].numpy()
            gap = np.abs(relevant + irrelevant - logits).max()
            print(name, key, "completeness", gap, "logits", logits, "tile", relevant[2])


def exclusive():
    source = inspect.getsource(published.cd_text)
    before = "if i >= start and i <= stop:\n            relevant[i] +="
    assert source.count(before) == 1
    space = dict(vars(published))
    exec(source.replace(before, before.replace("<=", "<")), space)
    return space["cd_text"]


class Sentiment(nn.Module):
    """What `cd_text` reads of a model."""

    def __init__(self, p, dtype):
        super().__init__()
        words, embedding = p["words"].shape
        self.hidden_dim = p["weight_hh_l0"].shape[1]
        self.embed = nn.Embedding(words + 1, embedding)  # nothing is word 0
        self.lstm = nn.LSTM(embedding, self.hidden_dim)
        self.hidden_to_label = nn.Linear(self.hidden_dim, 2)
        self.to(dtype)
        self.embed.weight[1:] = torch.tensor(p["words"])
        self.lstm.load_state_dict({k: torch.tensor(v) for k, v in p.items() if k.endswith("_l0")})
        self.hidden_to_label.weight[:] = torch.tensor(p["out"])
        self.hidden_to_label.bias[:] = torch.tensor(p["out_bias"])

    def forward(self, batch):
        return self.hidden_to_label(self.lstm(self.embed(batch.text))[0][-1])


def recurrent(out):
    modes = {"inclusive": published.cd_text, "exclusive": exclusive()}
    for size, (_, _, words) in LSTMS.items():
        p = draw_lstm(size)
        spans = [(0, 0), (words - 1, words - 1), (2, 4), (3, words - 2), (0, words - 1)]
        batch = SimpleNamespace(text=torch.arange(1, words + 1)[:, None])
        out[f"{size}_spans"] = np.array(spans)
        for key, dtype in DTYPES.items():
            model = Sentiment(p, dtype)
            out[f"{size}_{key}_logits"] = model(batch)[0].numpy()
            for mode, score in modes.items():
                parts = [score(batch, model, *s, return_irrel_scores=True) for s in spans]
                relevant, irrelevant = (np.stack([q[i] for q in parts]) for i in (0, 1))
                out[f"{size}_{key}_{mode}_relevant"] = relevant
                out[f"{size}_{key}_{mode}_irrelevant"] = irrelevant
                whole = relevant + irrelevant + model.hidden_to_label.bias.numpy()
                gap = np.abs(whole - out[f"{size}_{key}_logits"]).max()
                print("lstm", size, key, mode, "completeness", gap, "tile", relevant[2])
            torch.set_default_dtype(dtype)
            for span, row in zip(spans, out[f"{size}_{key}_exclusive_relevant"], strict=True):
                x = model.embed(batch.text).permute(1, 0, 2)
                h = propagate_lstm(x, model.lstm, *span, my_device="cpu")[0]
                again = (h[0] @ model.hidden_to_label.weight.T)[0].numpy()
                np.testing.assert_allclose(again, row, atol=1e-6 if key == "f4" else 1e-14)
            torch.set_default_dtype(torch.float32)


def circuit(folder):
    """The published modules `cdt_basic` and `cdt_source_to_target`."""
    sys.modules["transformer_lens"] = lens = ModuleType("transformer_lens")
    lens.HookedTransformer = type("HookedTransformer", (), {})
    with tempfile.TemporaryDirectory() as copy:
        (Path(copy) / "pyfunctions").mkdir()
        for file in (Path(folder) / "pyfunctions").glob("*.py"):
            text = file.read_text().replace("type AblationSet =", "AblationSet =")
            (Path(copy) / "pyfunctions" / file.name).write_text(text)
        sys.path.insert(0, copy)
        from pyfunctions import cdt_basic, cdt_source_to_target

        sys.path.remove(copy)
    return cdt_basic, cdt_source_to_target


def attention_hh(target):
    """`prop_BERT_attention_hh` with the calls it makes repaired."""

    def prop(rel, irrel, mask, head_mask, nodes, targets, level, acts, module, device, *_, **__):
        sa = module.self
        heads = (sa.num_attention_heads, sa.attention_head_size)
        split = lambda w: w.T.unflatten(1, heads).transpose(0, 1)  # [heads, D, D / heads]
        sa.attn_module = SimpleNamespace(
            W_Q=split(sa.query.weight),
            W_K=split(sa.key.weight),
            b_Q=sa.query.bias.unflatten(0, heads),
            b_K=sa.key.bias.unflatten(0, heads),
        )
        rel_context, irrel_context, probs, _ = target.prop_attention_no_output_hh(
            rel, irrel, mask, head_mask, sa, nodes, targets, level, device
        )
        parts = target.prop_linear(rel_context, irrel_context, module.output.dense)
        parts = target.prop_layer_norm(parts[0] + rel, parts[1] + irrel, module.output.LayerNorm)
        return *parts, [], probs

    return prop


def transformer(out, folder):
    from transformers import BertConfig, BertForSequenceClassification

    basic, target = circuit(folder)
    target.prop_BERT_attention_hh = attention_hh(target)
    basic_layer, normalize = basic.prop_layer, basic.normalize_rel_irrel
    query_key_layer = lambda rel, irrel, mask, head_mask, module, _: target.prop_BERT_layer_hh(
        rel, irrel, mask, head_mask, {}, [], 0, None, module, "cpu"
    )[:2]
    tokens = BERT["tokens"]
    config = BertConfig(
        vocab_size=30,
        hidden_size=BERT["width"],
        num_hidden_layers=BERT["layers"],
        num_attention_heads=BERT["heads"],
        intermediate_size=BERT["inner"],
        max_position_embeddings=tokens,
        layer_norm_eps=BERT_EPSILON,
        initializer_range=0.7,  # the embeddings'
        num_labels=BERT["classes"],
    )
    config._attn_implementation = "eager"
    torch.manual_seed(2)
    model = BertForSequenceClassification(config).eval()
    missing, unexpected = model.load_state_dict(
        {k: torch.tensor(v) for k, v in draw_bert().items()}, strict=False
    )
    assert not unexpected and all("embeddings" in key for key in missing), (missing, unexpected)
    model.double().load_state_dict({k: torch.tensor(v) for k, v in draw_bert().items()}, False)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    ids = torch.tensor([[3, 17, 5, 29, 8, 11, 22, 4]])
    attend = torch.ones(1, tokens, dtype=torch.long)
    attend[0, 6:] = 0
    cases = {
        "whole": (torch.ones_like(attend), [[0], [2, 3], [1, 4, 6], list(range(tokens))]),
        "padded": (attend, [[2, 3]]),
    }
    for name, (attend, groups) in cases.items():
        masks = np.array([[t in group for t in range(tokens)] for group in groups])
        out |= {f"{name}_attend": attend[0].numpy().astype(bool), f"{name}_masks": masks}
        for key, dtype in DTYPES.items():
            model.to(dtype).load_state_dict(saved)
            encoding = {
                "input_ids": ids,
                "attention_mask": attend,
                "token_type_ids": torch.zeros_like(ids),
            }
            out[f"{name}_{key}_x"] = basic.get_embeddings_bert(encoding, model)[0].numpy()
            out[f"{name}_{key}_logits"] = logits = model(**encoding).logits[0].numpy()
            for variant, layer in (("basic", basic_layer), ("query_key", query_key_layer)):
                for signs in ("", "_signs"):
                    seen = []
                    switch = normalize if signs else lambda rel, irrel: None
                    basic.normalize_rel_irrel = target.normalize_rel_irrel = switch
                    basic.prop_layer = lambda *a, layer=layer, seen=seen: (
                        seen.append(layer(*a)) or seen[-1]
                    )
                    parts = basic.prop_classifier_model_from_level(
                        encoding, groups, model, "cpu", tokens
                    )
                    for side, part, i in zip(
                        ("relevant", "irrelevant"), parts, (0, 1), strict=True
                    ):
                        row = f"{name}_{key}_{variant}{signs}_{side}"
                        out[row] = part.numpy()
                        if key == "f8":  # [group, layer, token, D]
                            layers = torch.stack([s[i] for s in seen], 1).numpy()
                            out[f"{name}_{variant}{signs}_{side}_layers"] = layers.astype("f4")
                    gap = np.abs(parts[0].numpy() + parts[1].numpy() - logits).max()
                    print("bert", name, key, variant, signs, "completeness", gap, parts[0][0])


def save(name, fill, *arguments):
    out = {"made_by": MADE_BY}
    fill(out, *arguments)
    np.savez_compressed(HERE / f"contextual_{name}.npz", **out)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    save("resnet", convolutional)
    save("lstm", recurrent)
    if folder := os.environ.get("CD_CIRCUIT"):
        save("bert", transformer, folder)
