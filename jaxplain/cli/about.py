"""What there is, and what it costs here: `methods`, `models`, `bench`."""

from importlib import resources
from json import dumps
from typing import Any

import jax

from jaxplain import bench, models
from jaxplain.cli.app import app
from jaxplain.models import trained
from jaxplain.run.options import METHODS, defaults, flag
from jaxplain.run.own import short
from jaxplain.types import JaxplainError


@app.command(name="methods")
def list_methods() -> int:
    """List the methods, what they promise, and their options with defaults.

    A complete method's scores add up to f(x) - f(baseline), and its gap says how nearly.
    """
    for name, method in METHODS.items():
        claims = (("complete", method.complete), ("conserving", method.conserving))
        marks = [mark for mark, yes in claims if yes]
        marks += ["samples: see --seed"] * method.needs_key
        marks += ["needs references: see --background"] * method.needs_baselines
        marks += ["needs a model with ReLUs"] * method.needs_relu
        print(name + (f"  ({'; '.join(marks)})" if marks else ""))
        print(f"    {method.summary}")
        settings = defaults(name, arrays=True)
        if settings:
            print("    " + "  ".join(f"{flag(k)} {spelled(v)}" for k, v in settings.items()))
    return 0


@app.command(name="models")
def list_models() -> int:
    """List the bundled models; `--model` also takes a Hugging Face directory."""
    for name in models.BUNDLED:
        with resources.as_file(resources.files(models) / "bundled" / name) as folder:
            card = trained.read_card(folder)
        print(
            f"{name:<12} {card['parameters']:>9,} parameters, {card['accuracy']['dev']:.1f}% right "
            f"on the dev set of {card['data']['name']}"
        )
        print(f"    {card['task']}: {', '.join(card['labels'])}")
    print("A directory with config.json, model.safetensors and tokenizer.json of a BERT classifier")
    print("works too: jaxplain explain --model DIRECTORY (needs pip install 'jaxplain[hf]')")
    print("Your own: jaxplain explain --model module:function --data module:function")
    return 0


@app.command(name="bench")
def run_bench(
    *,
    model: str = "transformer",
    batch: int = 32,
    length: int = 24,
    steps: int = bench.STEPS,
    repeats: int = 5,
    json: bool = False,
) -> int:
    """Time the methods on this machine: examples a second, and what each costs in gradients.

    The unit is one value_and_grad of the model on the same batch, timed in turns with the method;
    compilation is apart. Run it on an idle machine: ratios change less than seconds, and both
    change under load.

    Args:
        model: transformer, lstm, cnn, or a Hugging Face directory of a BERT classifier.
        batch: sentences at once, all of the same words.
        length: tokens of each.
        steps: of integrated gradients and word information, and orders of Shapley sampling.
        repeats: turns, of which the median counts.
        json: print one JSON row a method instead of the table.
    """
    if steps < 2 or steps % 2:
        raise JaxplainError(f"--steps must be an even number of at least 2, not {steps}")
    task = bench.text_task(models.load(model), batch, length)
    found = bench.costs(task, bench.methods(steps), repeats=repeats)
    about = {"model": short(model), "batch": batch, "length": length}
    about |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    if not json:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(f"{'method':<34}{'examples/s':>12}{'gradients':>11}{'compile s':>11}{'MiB':>8}")
    for cost in found:
        if json:
            print(dumps(about | cost._asdict()), flush=True)
            continue
        row = f"{cost.method:<34}{cost.examples_per_second:>12,.0f}{cost.gradients:>11.2f}"
        print(f"{row}{cost.compile_seconds:>11.1f}{cost.mebibytes:>8.0f}", flush=True)
    return 0


def spelled(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
