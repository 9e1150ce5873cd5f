"""The table of methods: names, options, and how text becomes a configured method."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxplain as jxp
from jaxplain import JaxplainError, baselines
from jaxplain.registry import BASELINES, METHODS, configure, options
from tests.helpers import close, quick_compile


@pytest.fixture(autouse=True, scope="module")
def unoptimized():
    with quick_compile():
        yield


def test_table_is_named_by_its_methods_and_cannot_be_changed():
    assert [m.name for m in METHODS.values()] == list(METHODS)
    assert all(m.summary and "\n" not in m.summary for m in METHODS.values())
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["saliency"]  # pyright: ignore


def test_options_follow_the_signature():
    assert METHODS["integrated_gradients"].options == ("baseline", "chunk", "steps")
    assert options("integrated_gradients")["steps"] == (32, int)
    assert METHODS["expected_gradients"].options == ("chunk", "samples")
    assert METHODS["input_x_gradient"].options == ()
    assert METHODS["vargrad"].options == ("chunk", "deviation", "level", "samples")
    assert METHODS["contextual_decomposition"].options == ("chunk", "rules")


@pytest.mark.parametrize(
    ("name", "given", "bound"),
    [
        ("integrated_gradients", {"steps": "8", "chunk": "none"}, {"steps": 8, "chunk": None}),
        ("integrated_gradients", {"chunk": "4"}, {"chunk": 4}),
        ("integrated_gradients", {"baseline": "0.5"}, {"baseline": 0.5}),
        ("integrated_gradients", {"steps": 8}, {"steps": 8}),
        ("saliency", {"absolute": "False"}, {"absolute": False}),
        ("contextual_decomposition", {"rules": "lstm"}, {"rules": jxp.CD_LSTM}),
        ("contextual_decomposition", {"rules": jxp.CD_ACD}, {"rules": jxp.CD_ACD}),
        ("smoothgrad", {"level": "0.2", "deviation": "None"}, {"level": 0.2, "deviation": None}),
        ("smoothgrad", {"level": 1, "deviation": "0.1"}, {"level": 1, "deviation": 0.1}),
    ],
)
def test_strings_are_read_as_their_options_type(name, given, bound):
    explain = configure(name, given)
    found = {k: explain.keywords[k] for k in bound}  # pyright: ignore
    assert found == bound and {k: type(v) for k, v in found.items()} == {
        k: type(v) for k, v in bound.items()
    }


def test_baselines_by_name_function_and_array(key):
    x = jnp.arange(12.0).reshape(4, 3)
    f = lambda x: jnp.sum(jnp.sin(x))
    for name, baseline in BASELINES.items():
        explain = configure("integrated_gradients", {"baseline": name})
        close(explain(f, x), jxp.integrated_gradients(f, x, baseline=baseline))
    for baseline in (jnp.ones(3), partial(baselines.mean, axes=0)):
        explain = configure("integrated_gradients", {"baseline": baseline})
        close(explain(f, x), jxp.integrated_gradients(f, x, baseline=baseline))
    starts = jnp.ones((2, 4, 3))
    early = configure("expected_gradients", {"samples": "8", "baselines": starts})
    late = configure("expected_gradients", {"samples": "8"})
    close(early(f, x, key=key), late(f, x, key=key, baselines=starts))  # pyright: ignore


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_configured_and_runs(name, key):
    given = {"baselines": jnp.zeros((2, 3))} if METHODS[name].needs_baselines else {}
    bend = jax.nn.relu if METHODS[name].needs_relu else lambda x: x
    explain = configure(name, given)
    got = jax.jit(lambda x: explain(lambda x: jnp.sum(bend(x) ** 2), x, key=key))(jnp.ones(3))
    assert got.scores.shape == (3,) and float(got.output) == 3
    if METHODS[name].needs_key:
        with pytest.raises(JaxplainError, match="pass key"):
            configure(name, given)(jnp.sum, jnp.ones(3))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "integrated_gradient",
            {},
            "there is no method 'integrated_gradient': did you mean integrated_gradients",
        ),
        ("zzz", {}, "there is no method 'zzz': there are contextual_decomposition, "),
        (
            "integrated_gradients",
            {"stepz": "3"},
            "integrated_gradients has no option 'stepz'; it takes baseline, chunk, steps",
        ),
        ("input_x_gradient", {"steps": "3"}, "has no option 'steps'; it takes none"),
        ("integrated_gradients", {"baselines": jnp.ones(3)}, "has no option 'baselines'"),
        (
            "integrated_gradients",
            {"steps": "many"},
            "integrated_gradients: steps must be a whole number, not 'many'",
        ),
        ("integrated_gradients", {"steps": 8.5}, "steps must be a whole number, not 8.5"),
        ("integrated_gradients", {"steps": "0"}, "integrated_gradients: steps must be .* not 0"),
        ("integrated_gradients", {"chunk": "-2"}, "chunk must be a whole number of at least 1"),
        (
            "integrated_gradients",
            {"baseline": "black"},
            "baseline must be a number or one of blur, mean, zeros, not 'black'",
        ),
        ("expected_gradients", {"samples": "1"}, "samples must be at least 2"),
        ("smoothgrad", {"level": "-0.1"}, "smoothgrad: level must be at least 0"),
        ("smoothgrad", {"deviation": "x"}, "deviation must be a number or none, not 'x'"),
        (
            "contextual_decomposition",
            {"rules": "lrp"},
            "contextual_decomposition: rules must be one of acd, lstm, shapley, transformer, tran",
        ),
        ("saliency", {"absolute": "maybe"}, "absolute must be true or false, not 'maybe'"),
        ("saliency", {"absolute": 1}, "absolute must be true or false, not 1"),
    ],
)
def test_what_cannot_be_configured_is_refused_in_one_line(name, given, message):
    with pytest.raises(JaxplainError, match=message) as caught:
        configure(name, given)
    assert "\n" not in str(caught.value)


def test_configure_evaluates_nothing():
    with jax.transfer_guard("disallow"):
        configure("integrated_gradients", {"steps": "3"})


def test_readme_has_the_table():
    """`python -m tests.test_registry` prints it."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert readme_table() in readme


def readme_table() -> str:
    rows = ["| method | | claims | needs |", "| --- | --- | --- | --- |"]
    for m in METHODS.values():
        claims = {"complete": m.complete, "conserving": m.conserving, "sampling": m.needs_key}
        needs = {"baselines": m.needs_baselines, "ReLUs": m.needs_relu}
        claimed, needed = (", ".join(n for n, y in d.items() if y) for d in (claims, needs))
        rows.append(f"| `{m.name}` | {m.summary} | {claimed} | {needed} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(readme_table())
