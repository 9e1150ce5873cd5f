"""Write the golden numbers of test_bert.py with torch, transformers and Captum.

    python tests/goldens/make_bert.py                                    # the tiny BERT
    JAXPLAIN_DATA=... python tests/goldens/make_bert.py                  # and MiniLM

`tiny_bert/` is a BERT of random weights, saved by transformers. MiniLM is read from
`$JAXPLAIN_DATA/minilm-sst2`, and none of its weights is stored.

Hidden states and logits are transformers' own, eager attention, in evaluation mode: float64 for
the tiny BERT, float32 for MiniLM. Transformers has no mean pooling and no CLS pooling without a
pooler; those two are the classifier applied to the mean of the last hidden state over the text's
tokens, and to its first row.

Integrated gradients are Captum's `IntegratedGradients` with respect to the word embeddings (passed
as `inputs_embeds`, so positions and token types are added inside), from zeros, 32 Gauss-Legendre
nodes, of the raw logit of the predicted class. The model runs in float64 there, so that the numbers
carry no rounding of torch's; Captum itself rounds the nodes' weights to float32, about 6e-8.

Written with torch 2.13.0, transformers 5.23.0, captum 0.9.0, numpy 2.4, on a CPU.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast
from transformers.activations import ACT2FN

HERE = Path(__file__).parent
TINY = HERE / "tiny_bert"

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the film plot cast story music ending was is not and but of "
    "good bad dull great slow warm loud never always very too quite un ##s ##ed ##ing ##ly ##er "
    "##watch ##able love hate like bore charm fail . , ! ' it this"
).split()
TINY_TEXTS = (
    "The film was very good, and never dull!",
    "unwatchable",
    "A plot of loud failing music; this bored cast is not charming.",
)
MINILM_TEXTS = (
    "A warm and quietly funny little film.",
    "The plot never adds up.",
    "Nothing here is as clever as it thinks it is, but the cast tries hard.",
    "",
)
ACTIVATIONS = (
    "gelu gelu_python gelu_new gelu_fast gelu_pytorch_tanh quick_gelu relu relu6 silu swish mish "
    "tanh sigmoid"
).split()
STEPS = 32


def make_tiny() -> None:
    """Save a small random BERT whose every tensor matters to the result."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=24,
        layer_norm_eps=1e-3,  # nor can 1e-12 be told from none
        initializer_range=0.3,  # the usual 0.02 makes attention uniform and hides mistakes
        id2label={0: "negative", 1: "neutral", 2: "positive"},
        label2id={"negative": 0, "neutral": 1, "positive": 2},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name or name.endswith("bias"):  # ones and zeros at first
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(TINY)
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.enable_padding(length=24)  # as exported tokenizers often have
    tokenizer.enable_truncation(6)
    tokenizer.save(str(TINY / "tokenizer.json"))


class Classifier(torch.nn.Module):
    """`inputs_embeds [B, T, D] -> logits [B, C]`."""

    def __init__(self, bert: BertModel, classifier: torch.nn.Linear, pooling: str):
        super().__init__()
        self.bert, self.classifier, self.pooling = bert, classifier, pooling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bert(inputs_embeds=x)
        if self.pooling == "mean":
            return self.classifier(out.last_hidden_state.mean(1))
        if self.pooling == "cls":
            return self.classifier(out.last_hidden_state[:, 0])
        return self.classifier(out.pooler_output)


def states(bert: BertModel, ids: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        out = bert(input_ids=ids, output_hidden_states=True)
    return torch.cat(out.hidden_states).numpy()


def integrated_gradients(model: Classifier, ids: torch.Tensor, target: int) -> np.ndarray:
    x = model.bert.get_input_embeddings()(ids).detach()
    return (
        IntegratedGradients(model, multiply_by_inputs=True)
        .attribute(x, torch.zeros_like(x), target=target, n_steps=STEPS, method="gausslegendre")[0]
        .detach()
        .numpy()
    )


def logits(model: Classifier, ids: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(model.bert.get_input_embeddings()(ids))[0].numpy()


def encode(directory: Path, text: str, length: int) -> torch.Tensor:
    tokenizer = BertTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    ids = tokenizer(text, padding=False, truncation=True, max_length=length)["input_ids"]
    return torch.tensor([ids])


def tiny() -> None:
    make_tiny()
    whole = BertForSequenceClassification.from_pretrained(TINY, attn_implementation="eager")
    whole = whole.double().eval()
    out = {"texts": np.array(TINY_TEXTS)}
    for i, text in enumerate(TINY_TEXTS):
        ids = encode(TINY, text, 24)
        out[f"ids{i}"] = ids[0].numpy().astype(np.int32)
        out[f"hidden{i}"] = states(whole.bert, ids)
        for pooling in ("pooler", "cls", "mean"):
            model = Classifier(whole.bert, whole.classifier, pooling)
            out[f"{pooling}_logits{i}"] = values = logits(model, ids)
            target = int(values.argmax())
            out[f"{pooling}_scores{i}"] = integrated_gradients(model, ids, target)
        with torch.no_grad():  # our pooler classifier is transformers' own
            np.testing.assert_array_equal(
                out[f"pooler_logits{i}"], whole(input_ids=ids).logits[0].numpy()
            )
    x = torch.linspace(-4, 4, 17, dtype=torch.float64)
    for name in ACTIVATIONS:
        out[f"activation_{name}"] = ACT2FN[name](x).numpy()
    np.savez_compressed(HERE / "bert_tiny.npz", **out)


def minilm(directory: Path) -> None:
    config = BertConfig(**json.loads((directory / "config.json").read_text()))
    config._attn_implementation = "eager"
    tensors = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
    bert = BertModel(config, add_pooling_layer=False)
    bert.load_state_dict(
        {k.removeprefix("bert."): v for k, v in tensors.items() if k.startswith("bert.")}
    )
    classifier = torch.nn.Linear(config.hidden_size, 2)
    classifier.load_state_dict({k: tensors[f"classifier.{k}"] for k in ("weight", "bias")})
    model = Classifier(bert, classifier, "mean").eval()
    out = {"texts": np.array(MINILM_TEXTS)}
    for i, text in enumerate(MINILM_TEXTS):
        model.float()
        ids = encode(directory, text, 512)
        out[f"ids{i}"] = ids[0].numpy().astype(np.int32)
        out[f"logits{i}"] = logits(model, ids)
        single = states(bert, ids)
        if i < 2:  # two texts of a few tokens keep the file small
            out[f"hidden{i}"] = single
        model.double()
        scores = integrated_gradients(model, ids, int(out[f"logits{i}"].argmax()))
        if i < 2:
            out[f"scores{i}"] = scores.astype(np.float32)
        out[f"token_scores{i}"] = scores.sum(1)
        print(
            f"{text!r}: {ids.shape[1]} tokens; torch float32 against float64, largest difference "
            f"in a hidden state {np.abs(single - states(bert, ids)).max():.1e}, largest state "
            f"{np.abs(single).max():.1f}"
        )
    np.savez_compressed(HERE / "bert_minilm.npz", **out)


if __name__ == "__main__":
    tiny()
    if data := os.environ.get("JAXPLAIN_DATA"):
        minilm(Path(data) / "minilm-sst2")
