"""Matrix products inside Numba kernels: SciPy's BLAS on views, adding to what is there, without a temporary array.

``np.dot`` in Numba wants contiguous arrays and cannot accumulate; blocks of rows and columns are neither.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

__all__ = ["GEMM", "gemm"]

# Where ?gemm is, by the item size of its numbers; kernels get the address as an argument, so that they can be cached
GEMM = {
    4: get_cython_function_address("scipy.linalg.cython_blas", "sgemm"),
    8: get_cython_function_address("scipy.linalg.cython_blas", "dgemm"),
}

NORMAL, TRANSPOSED = ord("N"), ord("T")


@intrinsic
def _call(typing, address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """Fortran's ?gemm at an address: every argument goes by pointer, the matrices as the integers that theirs are."""

    def generate(context, builder, signature, args):
        byte, word = ir.IntType(8), ir.IntType(32)
        pointer = byte.as_pointer()

        def stored(value, kind=None):
            if kind is not None:
                value = builder.trunc(value, kind)
            slot = cgutils.alloca_once(builder, value.type)
            builder.store(value, slot)
            return builder.bitcast(slot, pointer)

        address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = args
        operands = [
            *(stored(x, byte) for x in (trans_a, trans_b)),
            *(stored(x, word) for x in (m, n, k)),
            stored(alpha),
            *(builder.inttoptr(a, pointer), stored(lda, word)),
            *(builder.inttoptr(b, pointer), stored(ldb, word)),
            stored(beta),
            *(builder.inttoptr(c, pointer), stored(ldc, word)),
        ]
        kind = ir.FunctionType(ir.VoidType(), [pointer] * len(operands))
        builder.call(builder.inttoptr(address, kind.as_pointer()), operands)
        return context.get_dummy_value()

    return types.void(address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), generate


@njit(cache=True)
def gemm(address, transpose_a, transpose_b, A, B, beta, C):
    """C ← op(A) op(B) + β C, for arrays whose rows are contiguous, of one dtype."""
    m, n = C.shape
    k = A.shape[0] if transpose_a else A.shape[1]
    # Read by columns, as Fortran does, the arrays are transposed: Cᵀ = op(B)ᵀ op(A)ᵀ
    _call(
        address,
        TRANSPOSED if transpose_b else NORMAL,
        TRANSPOSED if transpose_a else NORMAL,
        n,
        m,
        k,
        C.dtype.type(1),
        B.ctypes.data,
        _leading(B),
        A.ctypes.data,
        _leading(A),
        C.dtype.type(beta),
        C.ctypes.data,
        _leading(C),
    )


@njit(cache=True)
def _leading(A):
    """Numbers from one row to the next; NumPy may say anything where there is one row."""
    return max(A.strides[0] // A.itemsize, A.shape[1], 1)
