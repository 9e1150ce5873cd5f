"""A run of texts from names and settings, as the command line has them."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxplain import hierarchy, models, registry
from jaxplain.registry import Method
from jaxplain.run.fingerprint import versions
from jaxplain.run.sources import Texts, TextSource
from jaxplain.run.text import NORMS, background, explain_text
from jaxplain.types import JaxplainError

# The methods that explain a text: those of any input, and those that group its words.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        **registry.METHODS,
        "acd": Method(
            "acd",
            hierarchy.acd,
            "a tree of the sentence's phrases, grown from what counts most, each with its score",
            dummy=False,
            linearity=False,
            implementation_invariance=False,
            takes_where=True,
            takes_units=True,
        ),
    }
)
SCORES = ("difference", "logit")  # what the trees score: of two classes, or of the target alone

# The table of rules that was published for a kind of model; others get "shapley".
RULES: Mapping[str, str] = MappingProxyType(
    {"bert": "transformer", "cnn": "acd", "lstm": "lstm", "transformer": "transformer"}
)


class Job(NamedTuple):
    """What a run of texts is made of.

    Attributes:
        model: its `params` go to `run`.
        source: the examples.
        explain: the function of one example that `run` maps.
        options: the method's options, defaults filled in, for the run's configuration.
    """

    model: models.TextModel
    source: TextSource
    explain: Any
    options: dict[str, Any]


def prepare(
    name: str,
    texts: Texts,
    *,
    method: str = "integrated_gradients",
    options: Mapping[str, Any] = MappingProxyType({}),
    target: str = "predicted",
    max_length: int | None = None,
    references: int = 32,
) -> Job:
    """Bind model, data and method, and refuse what does not fit before anything is computed.

    Args:
        name: a bundled model, or the path of one.
        texts: what to explain.
        method: a name of `METHODS`.
        options: the method's, as text or as values; `baseline` as `explain_text` takes it; `rules`
            may be "auto", the published table for this kind of model; `score` one of `SCORES`.
        target: as `TextSource` takes it.
        max_length: as `TextSource` takes it.
        references: how many texts serve as reference inputs, for methods that need a set.

    Raises:
        JaxplainError: on an unknown name, an option that does not fit, a target that is no class.
    """
    kind, settings, known = registry.find(method, METHODS), dict(options), defaults(method)
    own = {k: settings.pop(k, v) for k, v in known.items() if k in ("baseline", "score")}
    if "score" in own and own["score"] not in SCORES:
        raise JaxplainError(f"{method}: score must be {' or '.join(SCORES)}, not {own['score']!r}")
    automatic = "rules" in known and settings.get("rules", "auto") == "auto"
    if automatic:
        settings.pop("rules", None)
    explainer = registry.configure(kind, settings)  # before a model is read: it may be refused
    model = models.load(name)
    if automatic:
        settings["rules"] = RULES.get(model.kind, "shapley")
        explainer = registry.configure(kind, settings)
    shown = known | explainer.keywords | own  # type: ignore[attr-defined]
    shown |= {"rules": settings["rules"]} if "rules" in known else {}
    source = TextSource(texts.texts, texts.labels, model, target=target, max_length=max_length)
    sentences = None
    if kind.needs_baselines:
        if references < 1:
            raise JaxplainError(f"--background must be at least 1, not {references}")
        sentences = background(texts.texts, model, references)
        shown["background"] = references
    function = explain_text(
        model,
        explainer,
        baseline=own.get("baseline"),
        references=sentences,
        magnitude=method in NORMS and shown.get("absolute", True) is not False,
        where=kind.takes_where,
        units=kind.takes_units,
        contrast=own.get("score") == "difference",
    )
    return Job(model, source, function, shown)


def bundled(limit: int | None) -> Texts:
    """The bundled sentences, as if they had been read from a file."""
    rows = models.bundled_examples()[:limit]
    if limit is not None and limit < 1:
        raise JaxplainError(f"--limit must be at least 1, not {limit}")
    return Texts([r["text"] for r in rows], [str(r["label"]) for r in rows], "text", "label", "")


def defaults(method: str) -> dict[str, Any]:
    """A method's options with their defaults, as the command line spells them."""
    kind = registry.find(method, METHODS)
    known = {name: value for name, (value, _) in registry.options(kind).items()}
    known |= {k: v for k, v in (("baseline", "zeros"), ("rules", "auto")) if k in known}
    if kind.takes_units:
        known["score"] = SCORES[0]
    return known


def choose_devices(count: int | None) -> Mesh | None:
    """A mesh over the first `count` local devices; None means all of them."""
    if count is None:
        return None
    there = jax.local_devices()
    if count < 1:
        raise JaxplainError(f"--devices must be at least 1, not {count}")
    if count > len(there):
        hint = ""
        if there[0].platform == "cpu":
            hint = f"; for virtual CPU devices, set JAX_NUM_CPU_DEVICES={count} in the environment"
        raise JaxplainError(
            f"--devices {count}: there {'is' if len(there) == 1 else 'are'} only {len(there)} "
            f"({there[0].device_kind}){hint}"
        )
    return Mesh(np.asarray(there[:count]), ("data",), axis_types=(AxisType.Auto,))


def free_directory(
    base: Path, configuration: Mapping[str, Any], batch_size: int | str, overwrite: bool
) -> Path:
    """The first of `base`, `base-2`, ... that is free or holds this very run."""
    if overwrite:
        return base
    number, path = 1, base
    while path.exists():
        try:
            info = json.loads((path / "run.json").read_text(encoding="utf-8"))
            same = (info["configuration"], info["plan"]["batch_size"], info["versions"])
        except (OSError, ValueError, KeyError, TypeError):
            same = None
        if same == (configuration, batch_size, versions()):
            break
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
