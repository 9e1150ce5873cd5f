"""What memory integrated gradients takes: at 512 steps against 32.

Two figures: what the compiled program says that it needs beside its arguments, and the peak of a
fresh process that runs it.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jxp
from benchmarks.common import parse, report
from jaxplain import models

BOUND = 1.05


def measure(name: str, batch: int, length: int, steps: int) -> dict[str, int]:
    model = models.load(name)
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 1000, (batch, length)), jnp.int32)
    mask = jnp.ones((batch, length), bool)

    def explain(params, ids, mask):
        x = model.embed(params, ids)
        return jxp.integrated_gradients(lambda x: model.score(params, x, mask)[1], x, steps=steps)

    compiled = jax.jit(jax.vmap(explain, (None, 0, 0))).lower(model.params, ids, mask).compile()
    jax.block_until_ready(compiled(model.params, ids, mask))
    stats = compiled.memory_analysis()
    assert stats is not None
    return {
        "program": stats.temp_size_in_bytes + stats.output_size_in_bytes,
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def child(*values: object) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(values)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    options = parse(__doc__ or "", model="transformer", batch=256, length=32, child="")
    if options.child:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    few, many = (child(options.model, options.batch, options.length, s) for s in (32, 512))
    program, process = (many[k] / few[k] for k in ("program", "process"))
    report(
        "memory",
        f"both ratios <= {BOUND}",
        program <= BOUND and process <= BOUND,
        model=Path(options.model).name,
        batch=options.batch,
        length=options.length,
        program_mib_32=few["program"] / 2**20,
        program_mib_512=many["program"] / 2**20,
        process_mib_32=few["process"] / 2**20,
        process_mib_512=many["process"] / 2**20,
        program_ratio=program,
        process_ratio=process,
    )


if __name__ == "__main__":
    main()
