"""Every test runs on 8 virtual CPU devices, with implicit rank promotion an error.

Programs are compiled without most of XLA's optimizations: compiling is much of what tests do.
`.ci/run` runs them with all of these on the newest JAX, by JAXPLAIN_TEST_OPTIMIZED=1.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

OPTIMIZED = bool(os.environ.get("JAXPLAIN_TEST_OPTIMIZED"))
jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
if not OPTIMIZED and jax.__version__.startswith("0.10."):
    # Takes half of the time to compile; later releases lack it, and XLA aborts on unknown flags.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Run one test in double precision."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def optimized():
    """Compile one test's programs with all optimizations: where running them takes the time."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
