"""Matrix products inside Numba kernels: SciPy's BLAS on views, adding to what is there, without a temporary array.

``np.dot`` in Numba wants contiguous arrays and cannot accumulate; blocks of rows and columns are neither.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

__all__ = ["GEMM_AND_SYRK", "gemm", "syrk"]

# Where ?gemm and ?syrk are, by the item size of their numbers; kernels get the addresses as arguments, since code that
# is cached must not have them in it
GEMM_AND_SYRK = {
    size: tuple(get_cython_function_address("scipy.linalg.cython_blas", f"{letter}{name}") for name in ("gemm", "syrk"))
    for size, letter in ((4, "s"), (8, "d"))
}

NORMAL, TRANSPOSED, LOWER = types.uint8(ord("N")), types.uint8(ord("T")), types.uint8(ord("L"))


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


# Read by columns, as Fortran does, arrays are transposed: it computes Cᵀ = op(B)ᵀ op(A)ᵀ, and A's upper triangle is C's
# lower one.


@njit(cache=True)
def gemm(blas, transpose_a, transpose_b, A, B, beta, C):
    """C ← op(A) op(B) + β C, for arrays whose rows are contiguous, of one dtype."""
    number = C.dtype.type
    k = A.shape[0] if transpose_a else A.shape[1]
    letters = (TRANSPOSED if transpose_b else NORMAL, TRANSPOSED if transpose_a else NORMAL)
    left, right = (B.ctypes.data, _leading(B)), (A.ctypes.data, _leading(A))
    arguments = (
        *letters,
        C.shape[1],
        C.shape[0],
        k,
        number(1),
        *left,
        *right,
        number(beta),
        C.ctypes.data,
        _leading(C),
    )
    _fortran(blas[0], arguments)


@njit(cache=True)
def syrk(blas, A, C):
    """C ← A Aᵀ + C on the diagonal and above it, for arrays whose rows are contiguous, of one dtype."""
    one = C.dtype.type(1)
    arguments = (
        LOWER,
        TRANSPOSED,
        len(A),
        A.shape[1],
        one,
        A.ctypes.data,
        _leading(A),
        one,
        C.ctypes.data,
        _leading(C),
    )
    _fortran(blas[1], arguments)


@njit(cache=True)
def _leading(A):
    """Numbers from one row to the next; NumPy may say anything where there is one row."""
    return max(A.strides[0] // A.itemsize, A.shape[1], 1)
