"""scikit-learn's `PCA` and `TruncatedSVD`: of a rank, a share of the variance or a tolerance.

Needs scikit-learn (the extra ``sklearn``), and is imported explicitly.
"""

import math
from numbers import Integral, Real
from typing import Any, Self

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._array_api import check_same_namespace, get_namespace
from sklearn.utils.sparsefuncs import mean_variance_axis
from sklearn.utils.validation import check_is_fitted, validate_data

from lowrank._array import Array, array_namespace, eps
from lowrank._centre import ENTRIES, centred
from lowrank._operator import as_operator, of_row_blocks
from lowrank.svd import svd

__all__ = ["PCA", "TruncatedSVD"]


class _Projection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both share: a fit by :func:`lowrank.svd`, and the coordinates in its components."""

    _centers, whiten = False, False

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Find the components.

        Parameters
        ----------
        X : array or sparse matrix, shape (n_samples, n_features)
            Training data.
        y : None
            Ignored.

        Returns
        -------
        object
            The estimator itself.
        """
        X = self._checked(X, reset=True, ensure_min_samples=1 + self._centers)
        m, (rank, rtol) = X.shape[0], self._stop_rule(min(X.shape))
        # components are read one by one: a Krylov space has each of them more exactly
        options = {"krylov": rtol is None, "rng": check_random_state(self.random_state).tomaxint()}
        found = svd(X, rank, rtol=rtol, center=self._centers, **options)
        # what `svd` knows of the norm of a sparse matrix less its mean is a bound
        is_known = self._centers and not hasattr(X, "tocsr")
        norm: Any = found.norm_A if is_known else _norm_of_centered(X)
        xp, variance = array_namespace(found.S), norm**2 / (m - self._centers)
        spread = found.S**2 / (m - 1) if self._centers else xp.var(found.U * found.S, axis=0)
        self.n_samples_, self.n_components_, self._n_features_out = m, found.rank, found.rank
        self.components_, self.singular_values_ = found.Vh, found.S
        self.explained_variance_, self.error_bound_ = spread, found.error_bound
        self.explained_variance_ratio_ = spread / (variance or 1.0)
        if self._centers:
            left = max(0.0, variance - float(xp.sum(spread)))
            self.mean_, self.noise_variance_ = found.mean, left / max(1, min(X.shape) - found.rank)
        return self

    def transform(self, X: Any) -> Array:
        """Coordinates of rows in the components.

        Parameters
        ----------
        X : array or sparse matrix, shape (n_samples, n_features)
            Rows, which need not be those of the fit.

        Returns
        -------
        array, shape (n_samples, n_components_)
            ``(X − mean_) components_ᵀ``, and over the standard deviations with `whiten`; without
            the mean in :class:`TruncatedSVD`. A dense array also of a sparse X.
        """
        check_is_fitted(self)
        check_same_namespace(X, self, attribute="components_", method="transform")
        X, V = self._checked(X, reset=False), self.components_.T
        if not self._centers:
            return X @ V
        if hasattr(X, "tocsr"):
            Z = X @ V - self.mean_ @ V
        else:  # AV − 1(μᵀV) would lose what μ is larger than the rest
            rows = max(1, X.shape[0] // 16, ENTRIES // X.shape[1])
            Z = of_row_blocks(lambda part: X[part, :] - self.mean_, X.shape, rows, like=X).matmat(V)
        return Z / self._scale()

    def inverse_transform(self, X: Any) -> Array:
        """Rows with these coordinates.

        Parameters
        ----------
        X : array, shape (n_samples, n_components_)
            Coordinates, as of :meth:`transform`.

        Returns
        -------
        array, shape (n_samples, n_features)
            The approximation of the rows.
        """
        check_is_fitted(self)
        check_same_namespace(X, self, attribute="components_", method="inverse_transform")
        X = (check_array(X) * self._scale()) @ self.components_
        return X + self.mean_ if self._centers else X

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.array_api_support = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _checked(self, X: Any, **options: Any) -> Array:
        (xp, _), formats = get_namespace(X), ("csr", "csc")
        options["dtype"] = [xp.float64, xp.float32]
        return validate_data(self, X, accept_sparse=formats, **options)

    def _stop_rule(self, most: int) -> tuple[Any, Any]:
        """Rank and relative tolerance for :func:`lowrank.svd`.

        The approximation is a projection, so ``‖A − A_r‖² = ‖A‖² − ‖A_r‖²`` in the Frobenius norm:
        a share v of the squares is captured exactly where the error is at most ``√(1 − v) ‖A‖``.
        """
        rank, rtol = self.n_components, self.tol
        if isinstance(rank, Real) and 0.0 < float(rank) < 1.0:
            rtol, rank = max(math.sqrt(1.0 - float(rank)), rtol or 0.0), None
        elif rank is None:
            rank = most if rtol is None else None
        elif not (isinstance(rank, Integral) and 1 <= int(rank) <= most):
            raise ValueError(
                f"`n_components` must be None, 1 to {most}, or a share below 1, got {rank!r}."
            )
        return rank, rtol

    def _scale(self) -> Any:
        """To whiten, standard deviations of the coordinates; one for those that are rounding."""
        S, m = self.singular_values_, self.n_samples_
        xp, rounding = array_namespace(S), max(m, self.n_features_in_) * eps(S) * S[:1]
        return xp.where(rounding < S, S / (m - 1) ** 0.5, xp.ones_like(S)) if self.whiten else 1.0


class PCA(_Projection):
    """Principal component analysis, of a rank, a share of the variance or a tolerance.

    To be continued.
    """

    _centers = True

    def __init__(
        self,
        n_components: Any = None,
        *,
        tol: float | None = None,
        whiten: bool = False,
        random_state: Any = None,
    ) -> None:
        self.n_components, self.tol = n_components, tol
        self.whiten, self.random_state = whiten, random_state


class TruncatedSVD(_Projection):
    """Truncated SVD of the rows as they are, which are not centered.

    To be continued.
    """

    def __init__(
        self, n_components: Any = 2, *, tol: float | None = None, random_state: Any = None
    ) -> None:
        self.n_components, self.tol, self.random_state = n_components, tol, random_state


def _norm_of_centered(X: Any) -> float:
    """``‖X − 1μᵀ‖_F`` with μ the mean of the rows."""
    if hasattr(X, "tocsr"):
        return math.sqrt(X.shape[0] * float(mean_variance_axis(X, axis=0)[1].sum()))
    norm: Any = centred(as_operator(X))[0].norm
    return float(norm())
