"""Finds in a program what a primitive alone does not show, and makes one step of it.

An activation written with several primitives (GELU, SiLU, ELU) is a function of one value that the
program splits and joins again; a softmax, a normalisation and an LSTM's output are such shapes too.
They are found by dominance: a value dominates another if every way to it leads through it.
"""

import fnmatch
from collections.abc import Collection, Iterable, Iterator

import jax.numpy as jnp

from jaxplain.interpret import dependence, rules, walk
from jaxplain.interpret.compat import Program, Step

MOVES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "convert_element_type", "copy"}
POINTWISE_CALLS = rules.POINTWISE | MOVES
# What a mean, a variance and a scale are made of.
STATISTICS = rules.POINTWISE | MOVES | {"reduce_sum", "transpose", "slice"}


def group(
    program: Program, touched: Collection[bool], keys: Collection[str], met: set[str]
) -> Program:
    """The program with one step in place of each pattern that a table has a rule for.

    Args:
        program: as traced.
        touched: for each input, whether it carries a signal.
        keys: names in the table. Its names of primitives keep those apart; its names with a "/"
            are patterns of module paths, and make one step of each call of such a module.
        met: gets the patterns of module paths that some module fits.
    """
    for key in (k for k in keys if "/" in k):
        program = _modules(program, key, met)
    for name, find in (
        ("softmax", _softmaxes),
        ("normalization", _normalizations),
        ("elementwise", _activations),
    ):
        if name in keys:
            program = _replace(program, name, find(program, touched, keys))
    return program


def _dominators(program: Program, touched: set[int], within: set[int] | None = None) -> dict:
    """The nearest dominator of each value: None at a source of the signal.

    With `within`, only through steps that make those values: what any other makes is a source.
    """
    above: dict[int, int | None] = {}
    depth: dict[int, int] = {}

    def nearest(a: int | None, b: int | None) -> int | None:
        while a is not None and b is not None and a != b:
            a, b = (above[a], b) if depth[a] >= depth[b] else (a, above[b])
        return a if a == b else None

    def add(number: int, over: int | None) -> None:
        above[number] = over
        depth[number] = 0 if over is None else depth[over] + 1

    for number in program.inputs:
        add(number, None)
    for step in program.steps:
        reads = [i for i in step.inputs if i in touched]
        over = None
        if reads and (within is None or not within.isdisjoint(step.outputs)):
            over = reads[0]
            for other in reads[1:]:
                over = nearest(over, other)
        for number in step.outputs:
            add(number, over)
    return above


def _replace(program: Program, name: str, found: Iterable[tuple[int, int]]) -> Program:
    """One step called `name` in place of all from `root` to `out`, for each pair, largest first."""
    for root, out in reversed(list(found)):
        makers = {i: step for step in program.steps for i in step.outputs}
        if out not in makers:
            continue  # inside a larger one
        inside, extras, todo = set(), [], [out]
        reach = dependence.signal(Program((root,), {}, program.steps, ()), [True])
        while todo:
            number = todo.pop()
            if number == root:
                continue
            if number not in reach:
                if number not in extras:
                    extras.append(number)
                continue
            inside.add(number)
            todo += [i for i in makers[number].inputs if i not in inside]
        steps = tuple(s for s in program.steps if not inside.isdisjoint(s.outputs))
        program = _swap(program, name, steps, (root, *sorted(extras)), (out,))
    return program


def _swap(
    program: Program,
    name: str,
    steps: tuple[Step, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> Program:
    """The program with one step for `steps`, which read `inputs` and make `outputs`."""
    constants = {i: c for i, c in program.constants.items() if i in inputs}
    inputs = tuple(i for i in inputs if i not in constants)
    inner = Program(inputs, constants, steps, outputs)
    shapes = {i: shape for s in steps for i, shape in zip(s.outputs, s.shapes, strict=True)}
    last = steps[-1]
    one = Step(
        name,
        last.path,
        {},
        inputs,
        outputs,
        tuple(shapes[i] for i in outputs),
        lambda values: walk.run(inner, values),
        inner,
    )
    place = [s.outputs for s in program.steps].index(last.outputs)  # numbers are unique
    steps_after = (*program.steps[:place], one, *program.steps[place:])
    return alive(
        program._replace(
            steps=tuple(s for s in steps_after if s is one or not set(s.outputs) & set(outputs))
        )
    )


def alive(program: Program) -> Program:
    """Without the steps that nothing needs; what is given as an input needs none."""
    given = set(program.inputs)
    needed, steps = set(program.outputs) - given, []
    for step in reversed(program.steps):
        if not needed.isdisjoint(step.outputs):
            needed |= set(step.inputs) - given
            steps.append(step)
    return program._replace(steps=tuple(reversed(steps)))


def _modules(program: Program, pattern: str, met: set[str]) -> Program:
    """One step for each run of steps inside a module whose path fits the pattern."""

    def module(step: Step) -> str | None:
        parts = step.path.split("/")
        for n in range(1, len(parts) + 1):
            if fnmatch.fnmatchcase("/".join(parts[:n]), pattern.lstrip("/")):
                return "/".join(parts[:n])
        return None

    runs, previous = [], None
    for step in program.steps:
        here = module(step)
        if here is not None:
            if here == previous:
                runs[-1].append(step)
            else:
                runs.append([step])
        previous = here
    if runs:
        met.add(pattern)
    for steps in runs:
        made = {i for s in steps for i in s.outputs}
        reads = tuple(dict.fromkeys(i for s in steps for i in s.inputs if i not in made))
        elsewhere = {i for s in program.steps if made.isdisjoint(s.outputs) for i in s.inputs}
        elsewhere |= set(program.outputs)
        makes = tuple(i for s in steps for i in s.outputs if i in elsewhere)
        program = _swap(program, pattern, tuple(steps), reads, makes)
    return program


def _activations(
    program: Program, touched: Collection[bool], keys: Collection[str]
) -> Iterator[tuple[int, int]]:
    """Elementwise functions of one value: those that split and join, as `x * sigmoid(x)`, and those
    through a root, logarithm or quotient that parts of a value have none of, as `1 / (1 + exp(x))`.
    """
    carries = dependence.signal(program, touched)
    own = {
        step.outputs[0]
        for step in program.steps
        if len(step.outputs) == 1 and step.name not in keys and is_pointwise(step)
    }
    above = _dominators(program, carries, own)
    makers = {i: step for step in program.steps for i in step.outputs}
    floats = set(program.inputs) | {
        out
        for step in program.steps
        for out, shape in zip(step.outputs, step.shapes, strict=True)
        if jnp.issubdtype(shape.dtype, jnp.floating)
    }

    def bends(step: Step) -> bool:
        """Whether it is a function of its operand that is not linear."""
        reads = [i for i in step.inputs if i in carries]
        linear = ("mul", "add", "sub", "neg", "div", "convert_element_type", "copy", "add_any")
        if step.name == "div" and step.inputs[1] in carries:
            return True
        return step.name not in linear or (len(reads) > 1 and step.name == "mul")

    def curve(number: int | None, stop: int | None = None) -> int | None:
        """What the nearest function on the way up is a function of; None if there is none."""
        while number != stop and number in own and not bends(makers[number]):
            number = above[number]
        return above[number] if number != stop and number in own else None

    for step in program.steps:
        reads = [i for i in step.inputs if i in carries]
        out = step.outputs[0] if step.outputs else None
        if out not in floats or out not in own or not reads:
            continue
        root = None
        joins = len(reads) > 1 and (
            step.name not in ("add", "sub", "add_any")
            or any(curve(i, above[out]) is not None for i in reads)
        )
        if joins or any(i not in floats for i in reads):
            root = above[out]
        elif _is_partial(step, carries):
            root = curve(above[out])
        while root is not None and root not in floats:
            root = above[root]
        if root is not None:
            yield root, out


def is_pointwise(step: Step) -> bool:
    """Whether it is a function of one element each, or a call of such."""
    if step.inner is None:
        return step.name in rules.POINTWISE
    inner = step.inner
    return len(inner.inputs) == 1 and all(s.name in POINTWISE_CALLS for s in inner.steps)


def _is_partial(step: Step, carries: Collection[int]) -> bool:
    """Whether it has a value only for some numbers, so that a part of a value may have none."""
    if step.name == "div":
        return step.inputs[1] in carries
    if step.name == "integer_pow":
        return step.params["y"] < 0
    return step.name in rules.PARTIAL


def _softmaxes(
    program: Program, touched: Collection[bool], keys: Collection[str]
) -> Iterator[tuple[int, int]]:
    """Exponentials over their sum, of scores with or without their maximum taken off."""
    carries = dependence.signal(program, touched)
    makers = {i: step for step in program.steps for i in step.outputs}

    def back(number: int, names: Collection[str]) -> Step | None:
        step = makers.get(number)
        while step is not None and step.name in names:
            step = makers.get(next((i for i in step.inputs if i in makers), -1))
        return step

    for step in program.steps:
        if step.name != "div" or not carries.issuperset(step.inputs):
            continue
        power, total = makers.get(step.inputs[0]), back(step.inputs[1], MOVES)
        if power is None or power.name != "exp" or total is None or total.name != "reduce_sum":
            continue
        if back(total.inputs[0], MOVES) is not power:
            continue
        scores = power.inputs[0]
        shifted = makers.get(scores)
        if shifted is not None and shifted.name == "sub":
            top = back(shifted.inputs[1], MOVES | {"stop_gradient", "max", "pmax"})
            if top is not None and top.name == "reduce_max" and top.inputs[0] == shifted.inputs[0]:
                scores = shifted.inputs[0]
        yield scores, step.outputs[0]


def _normalizations(
    program: Program, touched: Collection[bool], keys: Collection[str]
) -> Iterator[tuple[int, int]]:
    """Values times a scale made of their own mean square, with the constant added after."""
    carries = dependence.signal(program, touched)
    above = _dominators(program, carries)
    makers = {i: step for step in program.steps for i in step.outputs}
    readers: dict[int, list[Step]] = {}
    for step in program.steps:
        for i in step.inputs:
            readers.setdefault(i, []).append(step)

    def is_scale(number: int) -> bool:
        step = makers.get(number)
        while step is not None:
            if step.name in rules.NORMALIZER:
                return True
            reads = [i for i in step.inputs if i in carries]
            if len(reads) != 1 or step.name not in MOVES | {"mul", "div", "max", "add"}:
                return False
            step = makers.get(reads[0])
        return False

    def only_statistics(root: int, out: int) -> bool:
        seen, todo = set(), [out]
        while todo:
            number = todo.pop()
            if number == root or number in seen or number not in carries:
                continue
            seen.add(number)
            if number not in makers or makers[number].name not in STATISTICS:
                return False
            todo += makers[number].inputs
        return True

    for step in program.steps:
        reads = [i for i in step.inputs if i in carries]
        if step.name not in ("mul", "div") or len(reads) != 2 or not any(map(is_scale, reads)):
            continue
        out = step.outputs[0]
        root = above[out]
        if root is None or not only_statistics(root, out):
            continue
        while True:  # scale and offset that are learned
            after = readers.get(out, [])
            if len(after) != 1 or out in program.outputs:
                break
            fits = after[0].name in ("mul", "add", "convert_element_type")
            if not fits or len([i for i in after[0].inputs if i in carries]) != 1:
                break
            out = after[0].outputs[0]
            if after[0].name == "add":
                break
        yield root, out


def output_gates(program: Program, touched: Collection[bool]) -> dict[int, int]:
    """Products of a gate with the tanh of a cell: the step's output, and the gate's position.

    A cell is a sum of two products, each of a gate with what it lets through.
    """
    carries = dependence.signal(program, touched)
    makers = {i: step for step in program.steps for i in step.outputs}

    def made_by(number: int, name: str) -> Step | None:
        step = makers.get(number)
        return step if step is not None and step.name == name else None

    def is_product(number: int) -> bool:
        step = made_by(number, "mul")
        return step is not None and carries.issuperset(step.inputs)

    found = {}
    for step in program.steps:
        if step.name != "mul" or not carries.issuperset(step.inputs):
            continue
        for gate, shown in ((0, 1), (1, 0)):
            tanh = made_by(step.inputs[shown], "tanh")
            cell = tanh and made_by(tanh.inputs[0], "add")
            if cell and all(map(is_product, cell.inputs)):
                found[step.outputs[0]] = gate
    return found
