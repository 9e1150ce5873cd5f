"""Write unions.npz: shap's values of players in unions, for a game of 8 players whose coalitions'
worths are all different: its Partition explainer for a balanced tree of pairs, and its Coalition
explainer for unions of several sizes, in one level and in two.

Needs shap and numpy; run by hand, never by the tests.
"""

from pathlib import Path

import numpy as np
import shap  # pyright: ignore

PLAYERS = 8
# scipy's linkage: the two that are joined, their distance, how many then.
TREE = [[0, 1, 1, 2], [2, 3, 1, 2], [4, 5, 1, 2], [6, 7, 1, 2], [8, 9, 2, 4], [10, 11, 2, 4]]
TREE = np.array([*TREE, [12, 13, 3, 8]], float)
PAIRS = np.stack([np.arange(8) // 4, np.arange(8) // 2])
ONE = np.array([0, 1, 0, 0, 2, 1, 2, 3])
TWO = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0, 1]])


def named(levels):
    """The nested dictionary of names that the Coalition explainer takes."""

    def inside(members, depth, path):
        if depth == len(levels):
            return [f"p{i}" for i in members]
        names = sorted({levels[depth][i] for i in members})
        parts = {n: [i for i in members if levels[depth][i] == n] for n in names}
        return {f"{path}.{n}": inside(p, depth + 1, f"{path}.{n}") for n, p in parts.items()}

    return inside(range(PLAYERS), 0, "u")


def main():
    table = np.random.default_rng(0).normal(size=2**PLAYERS)
    powers = 2 ** np.arange(PLAYERS)
    f = lambda rows: table[(np.asarray(rows) > 0.5) @ powers]
    x, nothing = np.ones((1, PLAYERS)), np.zeros((1, PLAYERS))
    masker = shap.maskers.Partition(nothing, clustering=TREE)
    partition = shap.PartitionExplainer(f, masker)
    found = {"pairs": partition(x, max_evals=10_000, silent=True).values[0]}
    masker.feature_names = [f"p{i}" for i in range(PLAYERS)]
    for name, levels in (("one", ONE[None]), ("two", TWO)):
        # Of two outputs: with one, shap 0.51 fails on numpy 2.4.
        twice = lambda rows: np.stack([f(rows)] * 2, axis=1)
        explainer = shap.CoalitionExplainer(twice, masker, partition_tree=named(levels))
        found[name] = explainer(x, silent=True).values[0, :, 0]
    np.savez_compressed(
        Path(__file__).parent / "unions.npz",
        table=table,
        unions_pairs=PAIRS,
        unions_one=ONE,
        unions_two=TWO,
        made_by=f"shap {shap.__version__}, numpy {np.__version__}",
        **found,
    )


if __name__ == "__main__":
    main()
