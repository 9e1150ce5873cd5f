"""The house keeps its floors: what each file of jaxplain may import and do, read from its syntax.

`violations` takes a whole tree as text, so the tests below also hand it made-up trees that break
one rule each: a checker that finds nothing anywhere would fail them.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

FLOORS = {
    "types": 0,
    "interpret": 1,
    "methods": 2,
    "baselines": 2,
    "hierarchy": 3,
    "transformed": 3,
    "models": 3,
    "registry": 3,
    "hidden": 3,
    "checks": 3,
    "diagnosis": 3,
    "training": 3,
    "run": 4,
    "report": 5,
    "bench": 5,
    "export": 5,
    "plot": 6,
    "cli": 6,
}
ENGINE = 4  # from this floor up: files, logs, progress, jit
COMPAT = "jaxplain/interpret/compat.py"

JAX_INTERNALS = ("jax.core", "jax.extend.core", "jax.extend.linear_util", "jax.interpreters")
JAXPR_FIELDS = {"eqns", "invars", "outvars", "constvars"}
NEVER = ("jax._src", "torch", "tensorflow")
LIGHT = {"jax", "numpy", "optax", "jaxplain"}  # all that floors 0 to 2 need besides Python
FILES = {"os", "shutil", "tempfile", "pathlib", "io", "glob", "filelock", "msgpack", "orbax"}
FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink"}
FILE_CALLS |= {"savez", "savetxt", "loadtxt", "tofile", "fromfile", "memmap"}
NOISE = {"logging", "rich", "tqdm"}


def room_of(path: str) -> str:
    """`jaxplain/run/store.py` is in the room `run`; `__main__` is the door of `cli`."""
    parts = PurePosixPath(path).with_suffix("").parts
    return "cli" if parts[1] == "__main__" else parts[1]


def imports(path: str, module: ast.Module) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) that the file imports, inside functions too."""
    package = PurePosixPath(path).parts[:-1]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for name in node.names:  # under another name, its use could not be followed
                renamed = name.name == "jaxplain" and name.asname
                yield node.lineno, f"jaxplain.{name.asname}" if renamed else name.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{source}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Call) and node.args:
            if dotted(node.func).split(".")[-1] in {"import_module", "__import__"}:
                match node.args[0]:
                    case ast.Constant(value=str(name)):
                        yield node.lineno, name
                    case _:
                        yield node.lineno, "<computed>"


def dotted(node: ast.AST) -> str:
    """`a.b.c` of nested attributes; an expression at its root is left out."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def violations(tree: Mapping[str, str]) -> list[str]:
    """Every broken rule of `{path: source}`, one line each, starting with `path:line`."""
    found = []
    for path, source in sorted(tree.items()):
        module = ast.parse(source, path)
        if path == "jaxplain/__init__.py":
            rules = front_door(module)
        elif room_of(path) not in FLOORS:
            rules = iter([(1, f"the room {room_of(path)!r} has no floor: give it one in FLOORS")])
        else:
            rules = inside(path, module)
        found += [f"{path}:{line} {what}" for line, what in rules]
    return found


def front_door(module: ast.Module) -> Iterator[tuple[int, str]]:
    """`jaxplain/__init__.py` re-exports, one name at a time, and does nothing else."""
    for n, node in enumerate(module.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for _, name in imports("jaxplain/__init__.py", ast.Module([node], [])):
                if not within(name, "jaxplain"):
                    yield node.lineno, f"imports {name}: only jaxplain's own names belong here"
                if name.endswith(".*"):
                    yield node.lineno, f"imports {name}: re-export names one by one"
        elif isinstance(node, ast.Assign):
            names = [dotted(target) for target in node.targets]
            if not set(names) <= {"__version__", "__all__"} or has_call(node):
                yield node.lineno, f"assigns {', '.join(names)}: no logic in the front door"
        elif not (n == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield node.lineno, f"holds a {type(node).__name__}: no logic in the front door"


def has_call(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Call) for inner in ast.walk(node))


def inside(path: str, module: ast.Module) -> Iterator[tuple[int, str]]:
    """What a file in a room may import, and what it may do."""
    room = room_of(path)
    floor = FLOORS[room]
    files_allowed = floor >= ENGINE or room == "models"
    for line, name in imports(path, module):
        top = name.split(".")[0]
        if name == "<computed>":
            yield line, "imports a module by a computed name, which hides what it needs"
        if name.endswith(".*"):
            yield line, f"imports {name}: name what is needed"
        if within(name, *NEVER):
            yield line, f"imports {name}, which no file does"
        if within(name, "flax") and room != "models":
            yield line, f"imports {name}: flax stays in models/"
        if within(name, *JAX_INTERNALS) and path != COMPAT:
            yield line, f"imports {name}: jaxpr internals stay in {COMPAT}"
        if floor <= 2 and top not in LIGHT | sys.stdlib_module_names and name != "<computed>":
            yield line, f"imports {name}: floors 0 to 2 need nothing but jax, numpy and optax"
        if top in FILES and not files_allowed:
            yield line, f"imports {name}: files are read and written on floors 4 to 6"
        if top in NOISE and floor < ENGINE:
            yield line, f"imports {name}: logging and progress belong on floors 4 to 6"
        if top == "jaxplain":
            yield from ((line, what) for what in climbs(room, name))
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in NEVER:
                yield node.lineno, f"uses {name}, which no file does"
            if name in JAX_INTERNALS and path != COMPAT:
                yield node.lineno, f"uses {name}: jaxpr internals stay in {COMPAT}"
            if name == f"jaxplain.{node.attr}":
                yield from ((node.lineno, what) for what in climbs(room, name))
            if node.attr in JAXPR_FIELDS and room != "interpret":
                yield node.lineno, f"reads .{node.attr} of a jaxpr: that is interpret/'s work"
            if node.attr == "jit" and floor < ENGINE and path != COMPAT:  # there it names a call
                yield node.lineno, f"uses {name}: the engine compiles, nothing below floor 4"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            last = name.split(".")[-1]
            files = last in FILE_CALLS or name in {"np.save", "np.load", "jnp.save", "jnp.load"}
            if files and not files_allowed:
                yield node.lineno, f"calls {name}: files are read and written on floors 4 to 6"
            if name == "print" and floor < ENGINE:
                yield node.lineno, "prints: only floors 4 to 6 talk to a person"


def climbs(room: str, name: str) -> Iterator[str]:
    """What is wrong with `room` importing `name`, a module or name of jaxplain.

    Every room may read the version; `import jaxplain` alone is judged by what is read from it.
    """
    target = [*name.split("."), ""][1].replace("__main__", "cli")
    if target == room or name in ("jaxplain", "jaxplain.__version__"):
        return
    if target not in FLOORS:
        yield f"imports {name}: import from the room itself, not through the front door"
    elif FLOORS[target] > FLOORS[room]:
        yield f"imports {name} from a higher floor ({FLOORS[room]} up to {FLOORS[target]})"
    elif FLOORS[target] == FLOORS[room]:
        yield f"imports {name} from a neighbour on its own floor ({FLOORS[room]})"


def test_the_house_keeps_its_floors():
    root = Path(__file__).parents[1]
    tree = {
        file.relative_to(root).as_posix(): file.read_text(encoding="utf-8")
        for file in (root / "jaxplain").rglob("*.py")
    }
    assert {"jaxplain/__init__.py", "jaxplain/types.py"} <= set(tree)
    assert violations(tree) == []


def test_what_is_allowed_passes():
    assert (
        violations(
            {
                "jaxplain/__init__.py": '"""Doc."""\n'
                "import jaxplain.baselines as baselines\n"
                "from jaxplain.types import Attribution as Attribution\n"
                '__version__ = "0.1"\n',
                "jaxplain/types.py": "import jax\nfrom typing import Any\n",
                "jaxplain/interpret/compat.py": "from jax.extend import core\nimport jax.core\n",
                "jaxplain/interpret/walk.py": "from .compat import close\nclose.eqns\n",
                "jaxplain/methods/path.py": "from jaxplain.types import Attribution\n"
                "import numpy as np\nfrom .gradient import saliency\n",
                "jaxplain/models/bert.py": "from flax import nnx\nfrom pathlib import Path\n"
                "Path('x').read_text()\n",
                "jaxplain/registry.py": "from jaxplain import methods\n",
                "jaxplain/run/engine.py": "import os, logging, jax\nfrom .store import write\n"
                "from jaxplain import __version__\njax.jit(print)\n",
                "jaxplain/cli.py": "import jaxplain\nfrom jaxplain.report import page\n"
                "print(jaxplain.__version__, open('x'))\n",
                "jaxplain/__main__.py": "from jaxplain.cli import main\n",
            }
        )
        == []
    )


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("methods/a.py", "from jaxplain.run import run", "higher floor (2 up to 4)"),
        ("methods/a.py", "def f():\n    import jaxplain.report.page", "higher floor (2 up to 5)"),
        ("methods/a.py", "from ..registry import METHODS", "higher floor (2 up to 3)"),
        ("methods/a.py", "from .. import cli", "higher floor (2 up to 6)"),
        ("types.py", "from .interpret import walk", "higher floor (0 up to 1)"),
        ("run/a.py", "from jaxplain.__main__ import x", "higher floor (4 up to 6)"),
        ("methods/a.py", "from jaxplain import baselines", "neighbour on its own floor (2)"),
        ("models/a.py", "import jaxplain.registry", "neighbour on its own floor (3)"),
        ("run/a.py", "import jaxplain\njaxplain.saliency", "front door"),
        ("run/a.py", "import jaxplain\njaxplain.report.page", "higher floor"),
        ("run/a.py", "import jaxplain as jxp", "front door"),
        ("run/a.py", "from jaxplain import saliency", "front door"),
        ("run/a.py", "import importlib\nimportlib.import_module('jaxplain.cli')", "higher floor"),
        ("run/a.py", "import importlib\nimportlib.import_module(x)", "computed name"),
        ("attic/a.py", "", "has no floor"),
        ("run/a.py", "from flax import linen", "flax stays in models/"),
        ("run/a.py", "from jaxplain.types import *", "name what is needed"),
        ("run/a.py", "from jax._src import core", "which no file does"),
        ("run/a.py", "from jax import _src", "which no file does"),
        ("run/a.py", "import jax\njax._src.core", "which no file does"),
        ("models/a.py", "def f():\n    import torch.nn", "which no file does"),
        ("run/a.py", "from jax import core", "jaxpr internals"),
        ("interpret/walk.py", "import jax.extend.core", "jaxpr internals"),
        ("methods/a.py", "import jax\njax.core.Jaxpr", "jaxpr internals"),
        ("methods/a.py", "jaxpr.eqns", "interpret/'s work"),
        ("methods/a.py", "import sklearn", "nothing but jax"),
        ("registry.py", "from pathlib import Path", "files are read and written"),
        ("registry.py", "open('x')", "files are read and written"),
        ("baselines.py", "where.write_text('x')", "files are read and written"),
        ("baselines.py", "np.load('x')", "files are read and written"),
        ("models/a.py", "import logging", "logging and progress"),
        ("registry.py", "from rich import progress", "logging and progress"),
        ("models/a.py", "print('x')", "talk to a person"),
        ("methods/a.py", "import jax\njax.jit(f)", "the engine compiles"),
        ("__init__.py", "import numpy", "only jaxplain's own names"),
        ("__init__.py", "from .types import *", "one by one"),
        ("__init__.py", "run = 1", "no logic"),
        ("__init__.py", "__version__ = version('jaxplain')", "no logic"),
        ("__init__.py", "def f(): pass", "no logic"),
        ("__init__.py", "if True:\n    import jaxplain.types", "no logic"),
    ],
)
def test_each_rule_is_enforced(path, source, what):
    found = violations({f"jaxplain/{path}": source})
    assert found and all(line.startswith(f"jaxplain/{path}:") for line in found)
    assert any(what in line for line in found), found
