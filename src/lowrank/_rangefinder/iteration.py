"""Power iterations on a sketch: one loop for fixed ranks, for residuals and for certificates."""

from collections.abc import Callable

from lowrank._array import Array, array_namespace, leading
from lowrank._panel import Basis as Factors
from lowrank._panel import conditioned, orthonormal, orthonormalize

Product = Callable[[Array], Array]


def subspace_iteration(
    Y: Array,
    matmat: Product,
    rmatmat: Product,
    power_iterations: int,
    *,
    domain_qr: Callable[[Array], Factors] = orthonormalize,
) -> Array:
    """Orthonormal basis of the range of ``(A Aᴴ)^q Y``, for a sketch Y of the range of A.

    A function of arrays that asks nothing of a device: torch compiles it without a graph break,
    and a CUDA graph captures it. (Halko, Martinsson & Tropp, Finding structure with randomness,
    2011, doi:10.1137/090771806, Algorithm 4.4.)
    """
    return iterated(orthonormal(Y), matmat, rmatmat, power_iterations, domain_qr=domain_qr)


def iterated(
    Q: Array,
    matmat: Product,
    rmatmat: Product,
    power_iterations: int,
    *,
    domain_qr: Callable[[Array], Factors] = orthonormalize,
    krylov: bool = False,
    columns: int | None = None,
    factors: list[Array] | None = None,
) -> Array:
    """Orthonormal basis of the range of ``(A Aᴴ)^q Q``, for an orthonormal Q.

    With `krylov`, of ``[(A Aᴴ)^q Q, …, A Aᴴ Q, Q]``, the best first, of which so many `columns` are
    given. The blocks are orthonormal, but not to one another before the end. Where they are nearly
    dependent, the columns that the last QR takes for new are rounding errors; there power iteration
    alone has found what there is.

    The triangular `factors` that were divided out are appended to a list, where one is given:
    their product has the singular values of ``(A Aᴴ)^q Q``. (Musco & Musco, Randomized block Krylov
    methods for stronger and faster approximate singular value decomposition, 2015,
    arXiv:1504.05477, Algorithm 2.)
    """
    domain, last = without_factor(domain_qr, factors), without_factor(orthonormalize, factors)
    between = last
    if factors is None and not krylov:  # what is only multiplied need not be orthonormal
        between = conditioned
        domain = conditioned if domain_qr is orthonormalize else domain
    spaces: list[Array] = []
    for left in reversed(range(power_iterations)):
        if krylov:
            spaces.insert(0, Q)
        Q = domain(rmatmat(Q))
        Q = (between if left else last)(matmat(Q))
    if krylov:
        Q = orthonormal(array_namespace(Q).concat([Q, *spaces], axis=-1))
    return Q if columns is None else leading(Q, columns)


def without_factor(
    qr: Callable[[Array], Factors], factors: list[Array] | None
) -> Callable[[Array], Array]:
    """The orthonormal factor alone; the triangular one is kept where it is wanted."""
    if factors is None:
        return orthonormal if qr is orthonormalize else lambda X: qr(X).Q

    def Q_of(X: Array) -> Array:
        Q, R = qr(X)
        factors.append(R)
        return Q

    return Q_of
