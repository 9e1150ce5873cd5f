"""A run from names and settings, as the command line has them."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxplain import models, registry
from jaxplain.models.types import Model
from jaxplain.registry import Method
from jaxplain.run import arrays, fingerprint, information, precision
from jaxplain.run import data as datasets
from jaxplain.run import own as users
from jaxplain.run.arrays import ArraySource
from jaxplain.run.data import Data
from jaxplain.run.options import INFORMATION, METHODS, SCORES, defaults
from jaxplain.run.precision import Effort
from jaxplain.run.records import load
from jaxplain.run.sources import Texts, TextSource
from jaxplain.run.text import NORMS, background, explain_text
from jaxplain.types import JaxplainError, PyTree

NODES = 1024  # intervals of a path, at most, with a tolerance
SAMPLES = 2048  # of the first round, where a method's own number depends on the example
FACTOR = 64  # samples at most, in those of the first round
REFERENCES = 32  # sentences that serve as reference inputs
DTYPES = ("float32", "bfloat16")  # the first is the model as it is

# Tables of rules that were published for a kind of model; others get a method's first one.
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bert": ("transformer", "attention"),
        "cnn": ("acd",),
        "lstm": ("lstm", "gates_held"),
        "transformer": ("transformer", "attention"),
    }
)


class Job(NamedTuple):
    """What a run is made of.

    Attributes:
        model: the model that was loaded; its parameters are what `explain` takes.
        source: the examples.
        explain: the function of one example that `run` maps.
        options: the method's options, defaults filled in, for the run's configuration.
        measure: what is measured on the data before the run, for methods that need it: the spread
            of each layer's units.
        data: what the configuration says of the examples.
        ragged: names of the examples' fields whose leading axis varies.
        efforts: the rounds of a run with a tolerance; None without.
    """

    model: models.TextModel | Model
    source: TextSource | ArraySource
    explain: Any
    options: dict[str, Any]
    measure: Callable[[], PyTree] | None = None
    data: Mapping[str, Any] = MappingProxyType({})
    ragged: tuple[str, ...] = ("ids", "mask")
    efforts: tuple[Effort, ...] | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """What the configuration holds besides, for reports."""
        names = self.model.names if isinstance(self.model, Model) else None
        return {"names": list(names)} if names else {}

    def params(
        self, out: Path, configuration: Mapping[str, Any]
    ) -> tuple[PyTree, dict[str, PyTree] | None]:
        """The arguments `params` and `keep` of `run`.

        What was measured is read back where `out` holds this very run: with it, parameters have
        the fingerprint that the run recorded. So a run goes on where measuring anew would differ
        in the last digits, as on another kind of device.
        """
        if self.measure is None:
            return self.model.params, None
        with contextlib.suppress(JaxplainError, KeyError):  # no run there, or a damaged one
            records = load(out)
            params = {"model": self.model.params, "spread": records.kept["spread"]}
            recorded = records.info["fingerprints"]["params"]
            same = records.info["configuration"] == configuration
            if same and fingerprint.of_params(params) == recorded:
                return params, {"spread": params["spread"]}
        spread = self.measure()
        return {"model": self.model.params, "spread": spread}, {"spread": spread}


def prepare(
    name: str,
    data: Data | Texts,
    *,
    method: str = "integrated_gradients",
    options: Mapping[str, Any] = MappingProxyType({}),
    target: str = "predicted",
    max_length: int | None = None,
    references: int | None = None,
    tolerance: float | None = None,
    dtype: str = DTYPES[0],
    place: Callable[[PyTree], PyTree] | None = None,
) -> Job:
    """Bind model, data and method, and refuse what does not fit before anything is computed.

    Args:
        name: a bundled model, the path of one, or `module:function` of the user's own.
        data: what to explain.
        method: a name of `METHODS`.
        options: the method's, as text or as values; `baseline` as `explain_text` takes it; `rules`
            may be "auto", the published table for this kind of model; `score` one of `SCORES`.
        target: as `TextSource` takes it.
        max_length: as `TextSource` takes it.
        references: how many texts serve as reference inputs, for methods that need a set (32), or
            as the sample that layers are measured on (512).
        tolerance: as `run` takes it; the method's steps or samples are then the most that an
            example gets. `word_information` has an option of that name.
        dtype: one of `DTYPES`, what the model computes in; see `models.in_dtype`.
        place: puts the model's parameters on devices; see `models.load`.

    Raises:
        JaxplainError: on an unknown name, an option that does not fit, a target that is no class.
    """
    kind, settings, known = registry.find(method, METHODS), dict(options), defaults(method)
    data = datasets.of_texts(data, "texts", None) if isinstance(data, Texts) else data
    if references is not None and references < 1:
        raise JaxplainError(f"--background must be at least 1, not {references}")
    loaded = users.load_model(name) if users.is_reference(name) else None
    if loaded is not None and place is not None:
        loaded = loaded._replace(params=place(loaded.params))
    if dtype not in DTYPES:
        raise JaxplainError(f"--dtype must be {' or '.join(DTYPES)}, not {dtype!r}")
    computed = lambda model: model if dtype == DTYPES[0] else models.in_dtype(model, dtype)
    if isinstance(loaded, Model):
        if max_length is not None:
            raise JaxplainError(f"--max-length is for texts, and {name} reads arrays: leave it out")
        return of_arrays(computed(loaded), data, method, settings, target, references, tolerance)
    if tolerance is not None and method == INFORMATION:
        settings["tolerance"] = tolerance
    if "patch" in settings:
        raise JaxplainError("--patch is for images: a text is taken away token by token")
    names = ("baseline", "score", *information.OWN)
    own = {k: settings.pop(k, v) for k, v in known.items() if k in names}
    if "score" in own and own["score"] not in SCORES:
        raise JaxplainError(f"{method}: score must be {' or '.join(SCORES)}, not {own['score']!r}")
    automatic = "rules" in known and settings.get("rules", "auto") == "auto"
    if automatic:
        settings.pop("rules", None)
    explainer = registry.configure(kind, settings)  # before a model is read: it may be refused
    if method == INFORMATION and target != "predicted":
        raise JaxplainError(f"{method} explains no class: leave --target {target} out")
    model = computed(models.load(name, place=place) if loaded is None else loaded)
    data = datasets.for_texts(data)
    texts = data.examples
    if automatic:
        names = (*RULES.get(model.kind, ()), *kind.rules)
        settings["rules"] = next(name for name in names if name in kind.rules)
        explainer = registry.configure(kind, settings)
    shown = known | explainer.keywords | own  # type: ignore[attr-defined]
    shown |= {"rules": settings["rules"]} if "rules" in known else {}
    source = TextSource(texts.texts, texts.labels, model, target=target, max_length=max_length)
    if method == INFORMATION:
        job = informed(model, source, shown, references or information.SENTENCES)
        return job._replace(data=data.about)
    sentences = None
    if kind.needs_baselines:
        shown["background"] = references or REFERENCES
        sentences = background(texts.texts, model, shown["background"])
    function = explain_text(
        model,
        explainer,
        baseline=own.get("baseline"),
        references=sentences,
        magnitude=method in NORMS and shown.get("absolute", True) is not False,
        where=kind.takes_where,
        units=kind.takes_units,
        groups=kind.takes_groups,
        contrast=own.get("score") == "difference",
        refined_by=kind.refined_by,
    )
    efforts = rounds(kind, explainer, tolerance)
    shown |= limit_of(kind, efforts)
    return Job(model, source, function, shown, data=data.about, efforts=efforts)


def rounds(
    kind: Method, explainer: Any, tolerance: float | None, first: int = 16
) -> tuple[Effort, ...] | None:
    """The rounds of a method, up to the steps or samples that it was given.

    Raises:
        JaxplainError: a method that has nothing to raise.
    """
    if tolerance is None:
        return None
    if not kind.refined_by:
        able = ", ".join(name for name, one in registry.METHODS.items() if one.refined_by)
        raise JaxplainError(
            f"{kind.name} has no steps or samples to raise: --tolerance is for {able}"
        )
    most = explainer.keywords.get(kind.refined_by)
    if kind.refined_by == "steps":
        most = NODES if most is None else most
        return precision.nodes(min(first, most), most)
    usual = registry.options(kind)[kind.refined_by][0] or SAMPLES
    most = FACTOR * usual if most is None else most
    return precision.draws(min(usual, most), most)


def limit_of(kind: Method, efforts: tuple[Effort, ...] | None) -> dict[str, int]:
    """The method's option as a run with a tolerance has it: the most that an example gets."""
    return {kind.refined_by: sum(e.count for e in efforts)} if efforts else {}


def of_arrays(
    model: Model,
    data: Data,
    method: str,
    options: dict[str, Any],
    target: str,
    count: int | None,
    tolerance: float | None,
) -> Job:
    """The job of a model of arrays: any method that asks for nothing but numbers."""
    if method not in registry.METHODS:
        raise JaxplainError(
            f"{method} explains texts, and --model {model.name} reads arrays: `jaxplain methods` "
            "lists the others"
        )
    kind, known = registry.METHODS[method], defaults(method, arrays=True)
    patch = read_patch(options.pop("patch", known.get("patch")))
    if options.get("rules") == "auto":
        options.pop("rules")
    if "rules" in known:
        options.setdefault("rules", next(iter(kind.rules)))
    explainer = registry.configure(kind, options)
    shown = known | explainer.keywords  # type: ignore[attr-defined]
    shown |= {name: options[name] for name in ("baseline", "rules") if name in options}
    shown |= {"patch": "auto" if patch is None else patch} if "patch" in known else {}
    data = datasets.for_arrays(data, model)
    source = ArraySource(
        data.examples, model, target=target, limit=data.about["limit"], where=data.where
    )
    function = arrays.explain_array(
        model,
        explainer,
        where=kind.takes_where,
        groups=kind.takes_groups,
        patch=patch,
        baselines=kind.needs_baselines,
        refined_by=kind.refined_by,
    )
    efforts = rounds(kind, explainer, tolerance)
    shown |= limit_of(kind, efforts)
    if kind.takes_groups:
        arrays.players(source.shape, source.masked, patch)  # a patch of no image is refused here
    if kind.needs_baselines:
        shown["background"] = count or REFERENCES
        params = {
            "model": model.params,
            "references": arrays.references(source, shown["background"]),
        }
        model = model._replace(params=params)
    ragged = ("x", "mask") if source.masked else ()
    about = data.about
    return Job(model, source, function, shown, data=about, ragged=ragged, efforts=efforts)


def read_patch(patch: Any) -> int | None:
    """Pixels a side; None for "auto"."""
    if patch in (None, "auto"):
        return None
    if not str(patch).isdecimal() or int(patch) < 1:
        raise JaxplainError(f"--patch must be auto or pixels a side, not {patch!r}")
    return int(patch)


def informed(
    model: models.TextModel, source: TextSource, options: dict[str, Any], count: int
) -> Job:
    """The job of word information: layers by number, the scale as a number, a spread to measure."""
    own = {
        "layers": information.read_layers(options["layers"], model),
        "scale": information.read_scale(options["scale"], model),
        "state": options["state"],
    }
    explain = information.explain_information(model, **options | own)

    def measure():
        return information.layer_spreads(
            model, source.texts, own["layers"], count=count, state=own["state"],
            max_length=source.max_length,
        )  # fmt: skip

    return Job(model, source, explain, options | own | {"background": count}, measure)
