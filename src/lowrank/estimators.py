"""scikit-learn's `PCA` and `TruncatedSVD`: for a rank, a share of the variance or a tolerance.

Needs scikit-learn (the extra ``sklearn``). Import it explicitly: ``import lowrank.estimators``.
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
from lowrank._factorizations.svd import centered, svd
from lowrank._operators import as_operator, centered_product

__all__ = ["PCA", "TruncatedSVD"]


class _Projection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The common base: a fit with :func:`lowrank.svd`, and coordinates in its components."""

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
        is_sparse, seed = hasattr(X, "tocsr"), check_random_state(self.random_state).tomaxint()
        # users interpret single components, so they are more accurate than by default; for sparse
        # matrices power iterations cost less than the wide basis of a Krylov space
        exact: dict[str, Any] = {"power_iterations": 7} if is_sparse else {"krylov": True}
        options = exact if rtol is None else {"rtol": rtol}
        found = svd(X, rank, center=self._centers, rng=seed, **options)
        # for a centered sparse matrix `svd` knows only a lower bound on the norm
        norm: Any = found.norm_A if self._centers and not is_sparse else _norm_of_centered(X)
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
        """Coordinates of the rows of X in the components.

        Parameters
        ----------
        X : array or sparse matrix, shape (n_samples, n_features)
            Rows, not necessarily those of the fit.

        Returns
        -------
        array, shape (n_samples, k)
            ``(X − mean_) components_ᵀ``, divided by the standard deviations with `whiten`; without
            the mean in :class:`TruncatedSVD`. The result is dense, also for a sparse X.
        """
        check_is_fitted(self)
        check_same_namespace(X, self, attribute="components_", method="transform")
        X, V = self._checked(X, reset=False), self.components_.T
        return (centered_product(X, self.mean_, V) if self._centers else X @ V) / self._scale()

    def inverse_transform(self, X: Any) -> Array:
        """Rows from their coordinates.

        Parameters
        ----------
        X : array, shape (n_samples, k)
            Coordinates in the k components, as returned by :meth:`transform`.

        Returns
        -------
        array, shape (n_samples, n_features)
            The rows with these coordinates.
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
        """With `whiten`, standard deviations of the coordinates; one where these are rounding."""
        S, m = self.singular_values_, self.n_samples_
        xp, rounding = array_namespace(S), max(m, self.n_features_in_) * eps(S) * S[:1]
        return xp.where(rounding < S, S / (m - 1) ** 0.5, xp.ones_like(S)) if self.whiten else 1.0


class PCA(_Projection):
    """Principal component analysis for a rank, a share of the variance or a tolerance.

    Replaces :class:`sklearn.decomposition.PCA`. It computes a randomized SVD of the centered rows.
    A sparse matrix never becomes dense.

    Parameters
    ----------
    n_components : int, float or None
        Number of components, from 1 to min(n_samples, n_features). Or a share of the variance,
        between 0 and 1: then the fewest components that are certified to capture it. None means
        all, or with `tol` as many as it needs.
    tol : float, optional
        Keep ``‖X − mean_ − its approximation‖_F`` below `tol` times ``‖X − mean_‖_F``: a share of
        ``1 − tol**2``. If a number of components is given too, it is the largest number allowed. If
        a share is given too, the looser of the two applies.
    whiten : bool
        Divide the coordinates by their standard deviations in the training data. Coordinates
        without variance, up to rounding, are not divided.
    random_state : int, RandomState or None
        Seed of the test matrix, as everywhere in scikit-learn.

    Attributes
    ----------
    n_components_ : int
        Number k of components found; 0 for a share of data without variance.
    components_ : array, shape (k, n_features)
        Orthonormal rows, in descending order of variance. The entry of largest absolute value in
        each row is positive, as in scikit-learn.
    explained_variance_ : array, shape (k,)
        Variance of the training data along each component,
        ``singular_values_**2 / (n_samples − 1)``.
    explained_variance_ratio_ : array, shape (k,)
        `explained_variance_` divided by the sum of the variances of all features; 0 if that is 0.
    singular_values_ : array, shape (k,)
        Singular values of ``X − mean_``. They never exceed the true ones, up to rounding.
    mean_ : array, shape (n_features,)
        Mean of the rows.
    noise_variance_ : float
        Mean variance along the other directions. It is a difference, so its rounding error is
        relative to the whole variance.
    error_bound_ : float or None
        At least ``‖X − mean_ − its approximation‖_F``; None for a sparse X of a given rank.
    n_features_in_, n_samples_ : int
        Shape of the training data.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, if X has names.

    Warns
    -----
    ConvergenceWarning
        If a share or `tol` could not be certified.

    See Also
    --------
    lowrank.svd : With ``center=True`` the same as a function, with all options.

    Notes
    -----
    The approximation A_r of ``A = X − mean_`` is a projection of A, so ``‖A − A_r‖² = ‖A‖² −
    ‖A_r‖²``: a share v is captured if the error is at most ``√(1 − v) ‖A‖``. :func:`lowrank.svd`
    certifies this tolerance, exactly up to rounding for dense arrays, and except with probability
    1e-9 for sparse ones. The number of components is near the smallest possible one; if variances
    decay slowly, there may be about one more.

    For k components of a dense X with m samples and n features, the fit uses a Krylov space of two
    power iterations: 16mn(k + 10) flops in six passes, and the memory of :func:`lowrank.svd` for a
    basis of 3(k + 10) columns. For a sparse X it uses seven power iterations with k + 10 columns,
    in sixteen passes. For a share or a tolerance, cost and memory are those of :func:`lowrank.svd`:
    a copy of a dense X, and the full SVD if that is faster. `fit_transform` is a fit and then a
    product with the components, so that it agrees with `transform`.

    float32 stays float32, and other dtypes become float64. With scikit-learn's
    ``array_api_dispatch``, PyTorch, CuPy and other arrays stay on their device, and so do
    results. SciPy's sparse matrices are not centered explicitly, so their rounding error is
    relative to X itself. Does not support complex data, missing values, ``n_components="mle"``,
    `partial_fit`, `score`, `get_covariance`, or a choice of solvers.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from lowrank.estimators import PCA
    >>> pca = PCA(0.9, random_state=0).fit(load_digits().data)
    >>> pca.n_components_, round(float(pca.explained_variance_ratio_.sum()), 3)
    (21, 0.903)
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
    """Truncated SVD, without centering, for a rank, a share of the squares or a tolerance.

    Replaces :class:`sklearn.decomposition.TruncatedSVD`. The rows are not centered. For word counts
    it is known as latent semantic analysis.

    Parameters
    ----------
    n_components : int, float or None
        Number of components, from 1 to min(n_samples, n_features). Or a share of the sum of all
        squared entries, between 0 and 1: then the fewest components that are certified to capture
        it. None means all, or with `tol` as many as it needs.
    tol : float, optional
        Keep ``‖X − its approximation‖_F`` below `tol` times ``‖X‖_F``: a share of ``1 − tol**2``.
        A number of components is then the largest number allowed: the default is 2, so give None
        for no limit. If a share is given too, the looser of the two applies.
    random_state : int, RandomState or None
        Seed of the test matrix, as everywhere in scikit-learn.

    Attributes
    ----------
    n_components_ : int
        Number k of components found.
    components_ : array, shape (k, n_features)
        Right singular vectors. The entry of largest absolute value in each row is positive.
    explained_variance_ : array, shape (k,)
        Variances of the coordinates of the training data, with the divisor n_samples.
    explained_variance_ratio_ : array, shape (k,)
        `explained_variance_` divided by the sum of the variances of all features; 0 if that is 0.
    singular_values_ : array, shape (k,)
        Singular values of X. They never exceed the true ones, up to rounding.
    error_bound_ : float or None
        At least ``‖X − its approximation‖_F``.
    n_features_in_, n_samples_ : int
        Shape of the training data.
    feature_names_in_ : array of str, shape (n_features,)
        Names of the features, if X has names.

    Warns
    -----
    ConvergenceWarning
        If a share or `tol` could not be certified.

    See Also
    --------
    lowrank.svd : The same as a function with all options.

    Notes
    -----
    For certificates, cost, array libraries and what is not supported, see :class:`PCA`. The norm of
    a sparse X is known here, so its error follows from energies.

    Examples
    --------
    >>> from scipy.sparse import random_array
    >>> from lowrank.estimators import TruncatedSVD
    >>> X = random_array((500, 80), density=0.02, rng=0, format="csr")
    >>> TruncatedSVD(5, random_state=0).fit_transform(X).shape
    (500, 5)
    """

    def __init__(
        self, n_components: Any = 2, *, tol: float | None = None, random_state: Any = None
    ) -> None:
        self.n_components, self.tol, self.random_state = n_components, tol, random_state


def _norm_of_centered(X: Any) -> float:
    """``‖X − 1μᵀ‖_F`` with μ the mean of the rows."""
    if hasattr(X, "tocsr"):
        return math.sqrt(X.shape[0] * float(mean_variance_axis(X, axis=0)[1].sum()))
    norm: Any = centered(as_operator(X))[0].norm
    return float(norm())
