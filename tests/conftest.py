import os

# Before anything loads a BLAS, and for the kernels of the notebooks: threads that outnumber the cores cost up to 100x.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  (loaded here, to be limited below)
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_info, threadpool_limits

threadpool_limits(1)  # what was loaded before this file has not read the variables

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # the first example may compile kernels
settings.register_profile("quick", max_examples=30, **COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, print_blob=True, **COMMON)
settings.register_profile("long", max_examples=2000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_report_header():
    """Which kernels the BLAS libraries run: rounding differs from processor to processor."""
    return "BLAS kernels: " + ", ".join(f"{pool.get('architecture')} ({pool['prefix']})" for pool in threadpool_info())


@pytest.fixture(params=["numpy", "torch", "jax", "array_api_strict"])
def library(request):
    """An array library, as the function that makes its arrays of NumPy's, in double precision where they are."""
    if request.param == "numpy":
        yield np.asarray
    elif request.param == "torch":
        yield pytest.importorskip("torch").as_tensor
    elif request.param == "jax":
        jax = pytest.importorskip("jax")
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        yield jax.numpy.asarray
        jax.config.update("jax_enable_x64", before)
    else:
        yield pytest.importorskip("array_api_strict").asarray
