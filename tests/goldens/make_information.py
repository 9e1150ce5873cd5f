"""Write information.npz: numbers of the published word information (Guan et al. 2019).

    pip install torch==2.13.0 numpy tqdm matplotlib
    git clone https://github.com/icml2019paper2428/Towards-A-Deep-and-Unified-Understanding-of-Deep-Neural-Models-in-NLP published
    python tests/goldens/make_information.py published       # at 2e0e495, unmodified

Run by hand, never by the tests. Networks and draws are made here; what the published code draws
itself, `torch.randn`, is replaced by stored draws, except for the last part.

For each network: `_loss_*` and `_gradient_*` of `Interpreter.forward` by its parameter, with
`regularization` ("spread") and without ("none"); `_loop_*`: the losses of `Interpreter.optimize`
and the parameter that it keeps, by learning rate. These are float64 runs of float32 numbers.
`ragged_*`: `calculate_regularization`.

`tutorial_*`: the published tutorial, whose words are weighted and summed, in float32 and with
torch's draws: sigma after 5000 steps, at the default learning rate (0.01) and at the tutorial's
(0.5), of three seeds, and the optimum, which is known.
"""  # noqa: E501

import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

TOY = torch.tensor([10.0, 20.0, 5.0, -20.0, -10.0])
STEPS, RATES = 30, (0.01, 0.5)
NARROW = 48  # columns of the toy that the loop sees
LENGTHS = (3, 6, 2, 5, 4)


def toy(p, x):
    return p["words"] @ x


def lstm(p, x):
    hidden = memory = x.new_zeros(p["stay"].shape[1])
    states = []
    for word in x:
        i, f, g, o = (p["enter"] @ word + p["stay"] @ hidden + p["bias"]).chunk(4)
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(memory)
        states.append(hidden)
    return torch.stack(states)


def attention(p, x):
    logits = (x @ p["query"]) @ (x @ p["key"]).T
    mixed = x + torch.softmax(logits, -1) @ (x @ p["value"])
    return torch.tanh(mixed @ p["inner"]) @ p["outer"]


CASES = {  # network, shapes of its parameters, words and their width, scale, rate
    "toy": (toy, {}, (5, 256), 1.0, 0.1),
    "lstm": (lstm, {"enter": (32, 6), "stay": (32, 8), "bias": (32,)}, (6, 6), 0.5, 0.1),
    "attention": (
        attention,
        {"query": (6, 6), "key": (6, 6), "value": (6, 6), "inner": (6, 9), "outer": (9, 7)},
        (6, 6),
        2.0,
        0.03,
    ),
}


def f4(v):
    return np.asarray(v, np.float32)


def double(v):
    return torch.tensor(v, dtype=torch.float64)


def drawn(*draws):
    """`torch.randn` gives these, one a call."""
    left = iter([double(d) for d in draws])

    def randn(*shape):
        value = next(left)
        assert value.shape == shape, (value.shape, shape)
        return value

    return mock.patch.object(torch, "randn", randn)


def forward(published, h, x, ratio, noise, **options):
    with drawn(ratio[:, None], noise):
        one = published.Interpreter(double(x), h, **options)
        loss = one()
    loss.backward()
    return loss.item(), one.ratio.grad[:, 0].numpy()


def loop(published, h, x, ratio, noises, learning_rate, **options):
    losses = []
    with drawn(ratio[:, None], *noises):
        one = published.Interpreter(double(x), h, **options)
        plain = one.forward

        def recorded():
            loss = plain()
            losses.append(loss.item())
            return loss

        one.forward = recorded
        one.optimize(iteration=len(noises), lr=learning_rate)
    return one.ratio.detach()[:, 0].numpy(), one.get_sigma(), np.array(losses)


def networks(published, out):
    for seed, (name, (network, shapes, shape, scale, rate)) in enumerate(CASES.items()):
        draw = np.random.RandomState(seed)
        params = {k: f4(1.5 * draw.normal(size=s) / s[-1] ** 0.5) for k, s in shapes.items()}
        params = params or {"words": TOY.numpy()}
        x = f4(draw.normal(size=shape) * (0.01 if name == "toy" else 1.0))
        h = partial(network, {k: double(v) for k, v in params.items()})
        units = h(double(x)).shape[-1]
        spread = f4(draw.uniform(0.1, 0.6, units if name == "toy" else (1, units)))
        ratio = f4(np.stack([draw.normal(size=len(x)) + v for v in (0, 3, -4)]))
        noise = f4(draw.normal(size=(len(ratio), *shape)))
        options = {"scale": scale, "rate": rate}
        out |= {f"{name}_param_{k}": v for k, v in params.items()} | {f"{name}_x": x}
        out |= {f"{name}_{k}": v for k, v in options.items()}
        out |= {f"{name}_spread": spread, f"{name}_ratio": ratio, f"{name}_noise": noise}
        for kind, regularization in (("none", None), ("spread", spread)):
            found = [
                forward(published, h, x, r, e, regularization=regularization, **options)
                for r, e in zip(ratio, noise, strict=True)
            ]
            out[f"{name}_loss_{kind}"], out[f"{name}_gradient_{kind}"] = (
                np.stack(v) for v in zip(*found, strict=True)
            )
            print(name, kind, out[f"{name}_loss_{kind}"])
        columns = slice(NARROW)  # of the toy; the others are narrower
        if name == "toy":
            x, spread = x[:, columns], spread[columns]
        start, noises = f4(draw.normal(size=len(x))), f4(draw.normal(size=(STEPS, *x.shape)))
        out |= {f"{name}_loop_ratio": start, f"{name}_loop_noise": noises}
        for lr in RATES:
            kept, sigma, losses = loop(
                published, h, x, start, noises, lr, regularization=spread, **options
            )
            out |= {
                f"{name}_loop_{lr}_kept": kept,
                f"{name}_loop_{lr}_sigma": sigma,
                f"{name}_loop_{lr}_losses": losses,
            }
            print(name, lr, "lowest loss at step", losses.argmin() + 1, "of", len(losses), sigma)


def ragged(published, out):
    draw = np.random.RandomState(9)
    x = f4(draw.normal(size=(len(LENGTHS), max(LENGTHS), 6)))
    out |= {"ragged_x": x, "ragged_lengths": np.array(LENGTHS)}
    cut = [double(v[:n]) for v, n in zip(x, LENGTHS, strict=True)]
    for name in ("lstm", "attention"):
        p = {k: double(out[f"{name}_param_{k}"]) for k in CASES[name][1]}
        h = partial(CASES[name][0], p)
        spread = published.calculate_regularization
        out[f"ragged_{name}_reduced"] = spread(cut, h, reduced_axes=[0])
        out[f"ragged_{name}_number"] = spread(cut, h, reduced_axes=[0, 1])
        out[f"ragged_{name}_full"] = spread([double(v) for v in x], h)


def tutorial(published, out):
    """The published notebook; a sentence and a data set drawn anew for each seed."""
    found = {k: [] for k in ("x", "spread", "optimum", *map(str, RATES))}
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(5, 256) / 100
        h = partial(toy, {"words": TOY})
        data = [torch.randn(5, 256) / 100 for _ in range(100)]
        spread = published.calculate_regularization(data, h)
        optimum = np.sqrt(0.1 / (2 * 5 * np.mean(1 / spread**2))) / np.abs(TOY.numpy())
        for key, value in (("x", x.numpy()), ("spread", spread), ("optimum", optimum)):
            found[key].append(value)
        for lr in RATES:
            torch.manual_seed(100 + seed)
            one = published.Interpreter(x, h, scale=1.0, regularization=spread)
            one.optimize(iteration=5000, lr=lr)
            found[str(lr)].append(one.get_sigma())
            print("tutorial", seed, lr, "sigma / optimum", one.get_sigma() / optimum)
    out |= {f"tutorial_{k}": f4(v) for k, v in found.items()}


def main():
    if len(sys.argv) != 2:
        sys.exit("give the folder of the published code, which holds Interpreter.py")
    sys.path.insert(0, sys.argv[1])
    import Interpreter as published

    out = {}
    networks(published, out)
    ragged(published, out)
    tutorial(published, out)
    out["made_by"] = f"Interpreter.py at 2e0e495, torch {torch.__version__}, numpy {np.__version__}"
    np.savez_compressed(Path(__file__).parent / "information.npz", **out)


if __name__ == "__main__":
    main()
