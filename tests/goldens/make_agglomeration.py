"""Write the golden numbers of test_hierarchy.py with the published package's agglomeration.

    pip install torch==2.13.0 acd==0.0.2 scipy scikit-image tqdm
    python tests/goldens/make_agglomeration.py

Random LSTMs score random sentences with `cd_text`; `agg_1d.agglomerate` and `collapse_tree` make
the trees. Stored are the scores of every span, which is all that agglomeration sees of a model,
and of each iteration the components and their scores. Only the number type that numpy has dropped
is put back; the package's code is as released. Token 0 is left out: the package takes it for a gap.
"""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

np.int = int
from acd.agglomeration import agg_1d  # noqa: E402
from acd.scores.cd import cd_text  # noqa: E402

HERE = Path(__file__).parent
HIDDEN, EMBEDDING, WORDS = 16, 8, 200
# words, percentile, absolute, subtract, iterations
CASES = (
    (6, 99.5, True, True, 25),
    (9, 99.5, True, True, 25),
    (13, 99.5, True, False, 25),
    (16, 99.5, False, True, 25),
    (20, 99.5, True, True, 25),
    (20, 90.0, True, True, 25),
    (18, 80.0, False, True, 25),
    (20, 75.0, True, True, 5),
)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_dim = HIDDEN
        self.embed = torch.nn.Embedding(WORDS, EMBEDDING)
        self.lstm = torch.nn.LSTM(EMBEDDING, HIDDEN)
        self.hidden_to_label = torch.nn.Linear(HIDDEN, 2)


def make(seed: int, words: int, percentile: float, absolute: bool, subtract: bool, iterations: int):
    torch.manual_seed(seed)
    model = Model()
    for parameter in model.parameters():
        parameter.data *= 2.0  # gates that saturate here and there
    text = torch.randint(1, WORDS, (words, 1))
    batch = SimpleNamespace(text=text.clone())
    label = seed % 2

    def score(start, stop):
        values = np.asarray(cd_text(batch, model, start, stop))
        return float(values[label] - values[1 - label] * subtract)

    spans = [[score(i, j) if i <= j else 0.0 for j in range(words)] for i in range(words)]
    lists = agg_1d.agglomerate(
        model, batch, percentile, "cd", 1, label, iterations, subtract, absolute, device="cpu"
    )
    components = [np.asarray(c).tolist() for c in lists["comps_list"][1:]]
    scores = [{int(k): float(v) for k, v in d.items()} for d in lists["comp_scores_list"][1:]]
    return {
        "percentile": percentile,
        "absolute": absolute,
        "iterations": iterations,
        "spans": spans,
        "components": components,
        "scores": scores,
    }


def main() -> None:
    warnings.simplefilter("ignore")
    cases = [make(seed, *case) for seed, case in enumerate(CASES)]
    (HERE / "agglomeration.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
