"""The methods that the command line has, and their options as it spells them."""

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jaxplain import hierarchy, registry
from jaxplain.registry import Method
from jaxplain.run import information
from jaxplain.types import JaxplainError

INFORMATION = "word_information"

# The methods that explain a text: those of any input, one that groups its words, and one that
# looks at its layers. The last two are for texts alone.
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
            rules=registry.DECOMPOSITIONS,
        ),
        INFORMATION: Method(
            INFORMATION,
            information.toy,
            "how much of each word every layer keeps: the largest noise that leaves it as it is",
            linearity=False,
            needs_key=True,
        ),
    }
)
SCORES = ("difference", "logit")  # what the trees score: of two classes, or of the target alone


def defaults(method: str, *, arrays: bool = False) -> dict[str, Any]:
    """A method's options with their defaults, as the command line spells them."""
    kind = registry.find(method, METHODS)
    known = {name: value for name, (value, _) in registry.options(kind).items()}
    known |= {"patch": "auto"} if arrays and kind.takes_groups else {}
    known |= {k: v for k, v in (("baseline", "zeros"), ("rules", "auto")) if k in known}
    if kind.takes_units:
        known["score"] = SCORES[0]
    return known | information.OWN if method == INFORMATION else known


def check_options(method: str, options: Iterable[str], own: Iterable[str]) -> None:
    """Refuse an option that neither the method has nor the command, of whose options are `own`."""
    known = defaults(method, arrays=True)
    for name in options:
        if name.replace("-", "_") not in known:
            owners = [m for m in METHODS if name.replace("-", "_") in defaults(m, arrays=True)]
            close = difflib.get_close_matches(flag(name), [flag(n) for n in (*own, *known)], 1)
            if owners:
                hint = f"it is an option of {', '.join(owners)}; "
            else:
                hint = f"did you mean {close[0]}? " if close else ""
            takes = ", ".join(map(flag, known)) or "no options"
            raise JaxplainError(f"there is no option {flag(name)}: {hint}{method} takes {takes}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
