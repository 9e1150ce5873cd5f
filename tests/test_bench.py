"""`jaxplain bench`: what methods cost here. Times are not tested, what is timed is."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxplain import bench, cli
from jaxplain.types import JaxplainError


def linear() -> bench.Task:
    score = lambda params, x, mask: jnp.sum(x @ params * mask)
    x = jnp.arange(12.0).reshape(2, 3, 2)
    return bench.Task(score, None, jnp.array([1.0, -1.0]), x, jnp.ones((2, 3), bool))


def test_each_method_is_timed_beside_the_gradient():
    task, steps = linear(), 4
    found = list(bench.costs(task, bench.methods(steps), repeats=1))
    names = [cost.method for cost in found]
    assert names[0] == bench.GRADIENT and found[0].gradients == 1
    # A model without a hidden state has no word information.
    assert names[1:] == [n for n in bench.methods(steps) if not n.startswith("word_information")]
    for cost in found:
        assert cost.examples_per_second == pytest.approx(len(task.x) / cost.seconds)
        assert cost.gradients > 0 and cost.compile_seconds > 0


def test_what_is_timed_explains_the_task():
    task, key = linear(), jax.random.key(0)
    explain = bench.methods(4)["integrated_gradients, 4 steps"]
    found = explain(task, task.params, task.x[1], task.mask[1], key)
    assert found.scores.tolist() == (task.x[1] * task.params[None]).tolist()  # f is linear


def test_operations_are_those_of_a_product():
    score = lambda params, x, mask: jnp.sum(jnp.tanh(x @ params))
    task = linear()._replace(params=jnp.ones((2, 64)), score=score)
    operations = bench.operations(task)
    forward = 2 * 2 * 3 * 2 * 64  # two examples of three rows, each times [2, 64]
    assert operations is not None and operations >= forward


def test_on_the_command_line(capsys, monkeypatch):
    few = {"saliency": bench.methods()["saliency"]}
    monkeypatch.setattr(bench, "methods", lambda steps: few)
    asked = ["bench", "--model", "cnn", "--batch", "2", "--length", "8", "--repeats", "1"]
    assert cli.call([*asked, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in rows] == [bench.GRADIENT, "saliency"]
    assert {row["model"] for row in rows} == {"cnn"}
    assert cli.call(asked) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["method", "examples/s"]
    for wrong in (["--steps", "3"], ["--length", "0"], ["--batch", "0"], ["--repeats", "0"]):
        assert cli.call([*asked, *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(JaxplainError, match="repeats must be at least 1"):
        next(bench.costs(linear(), few, repeats=0))
