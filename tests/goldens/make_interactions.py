"""Write interactions.npz: shapiq's exact k-SII and STII of order 2, for a game of 6 players whose
coalitions' worths are all different.

Needs shapiq and numpy; run by hand, never by the tests.
"""

from pathlib import Path

import numpy as np
import shapiq  # pyright: ignore

PLAYERS = 6


def main():
    table = np.random.default_rng(1).normal(size=2**PLAYERS)
    powers = 2 ** np.arange(PLAYERS)
    exact = shapiq.ExactComputer(
        n_players=PLAYERS, game=lambda held: table[np.atleast_2d(held) @ powers]
    )
    found = {}
    for index in ("k-SII", "STII"):
        values = exact(index=index, order=2)
        matrix = np.zeros((PLAYERS, PLAYERS))
        for players, at in values.interaction_lookup.items():
            if players:
                matrix[players[0], players[-1]] = matrix[players[-1], players[0]] = values.values[
                    at
                ]
        found[index] = matrix
    np.savez_compressed(
        Path(__file__).parent / "interactions.npz",
        table=table,
        made_by=f"shapiq {shapiq.__version__}, numpy {np.__version__}",
        **found,
    )


if __name__ == "__main__":
    main()
