"""Matrix products inside Numba kernels: SciPy's BLAS on views, adding to what is there, without a temporary array.

``np.dot`` in Numba wants contiguous arrays and cannot accumulate; blocks of rows and columns are neither.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

from lorsum._cache import kernel

# Where ?gemm is, by the size of its numbers; kernels get it as an argument, since cached code must not have it in it
GEMM = {
    4: get_cython_function_address("scipy.linalg.cython_blas", "sgemm"),
    8: get_cython_function_address("scipy.linalg.cython_blas", "dgemm"),
}

NORMAL, TRANSPOSED = types.uint8(ord("N")), types.uint8(ord("T"))


@intrinsic
def _fortran(typing, address, arguments):
    """Call a Fortran subroutine: all goes by pointer, letters as bytes, integers in 32 bits, addresses as they are."""

    def generate(context, builder, signature, values):
        address, arguments = values
        pointer = ir.IntType(8).as_pointer()
        operands = []
        for kind, value in zip(signature.args[1], cgutils.unpack_tuple(builder, arguments), strict=True):
            if kind == types.uintp:
                operands.append(builder.inttoptr(value, pointer))
                continue
            if kind == types.intp:
                value = builder.trunc(value, ir.IntType(32))
            slot = cgutils.alloca_once_value(builder, value)
            operands.append(builder.bitcast(slot, pointer))
        subroutine = ir.FunctionType(ir.VoidType(), [pointer] * len(operands)).as_pointer()
        builder.call(builder.inttoptr(address, subroutine), operands)
        return context.get_dummy_value()

    return types.void(address, arguments), generate


@kernel
def gemm(address, transpose_a, transpose_b, A, B, beta, C):
    """C ← op(A) op(B) + β C, for arrays whose rows are contiguous, of one dtype."""
    # Read by columns, as Fortran does, arrays are transposed: Cᵀ = op(B)ᵀ op(A)ᵀ
    number = C.dtype.type
    k = A.shape[0] if transpose_a else A.shape[1]
    letters = (TRANSPOSED if transpose_b else NORMAL, TRANSPOSED if transpose_a else NORMAL)
    first, second, result = (B.ctypes.data, _leading(B)), (A.ctypes.data, _leading(A)), (C.ctypes.data, _leading(C))
    arguments = (*letters, C.shape[1], C.shape[0], k, number(1), *first, *second, number(beta), *result)
    _fortran(address, arguments)  # type: ignore[call-arg]  # the typing context comes from Numba


@kernel
def _leading(A):
    """Numbers from one row to the next; NumPy may say anything where there is one row."""
    return max(A.strides[0] // A.itemsize, A.shape[1], 1)
