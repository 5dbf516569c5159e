"""The same components, variances and predictions as scikit-learn's own estimators, on real data."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn")

from scipy import sparse
from sklearn import datasets, decomposition
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lowrank.estimators import PCA, TruncatedSVD

# Images, measurements of different sizes (one has 98 % of the variance), and flowers.
DATA = pytest.mark.parametrize("name", ["digits", "breast_cancer", "iris"])
FORMS = pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])


def data(name):
    return getattr(datasets, f"load_{name}")().data


def agree(ours, theirs, X, names):
    """The first half of what was found, of which the rest is less exact than of a full SVD."""
    half = slice((theirs.components_.shape[0] + 1) // 2)
    for name in names:
        found, expected = getattr(ours, name)[half], getattr(theirs, name)[half]
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected))), name
    # signs too, which are fixed in the same way
    Z = theirs.transform(X)
    assert np.allclose(ours.transform(X)[:, half], Z[:, half], atol=1e-5 * np.abs(Z).max())
    Z[:, half.stop :] = 0.0
    back = theirs.inverse_transform(Z)
    assert np.allclose(ours.inverse_transform(Z), back, atol=1e-5 * np.abs(back).max())
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())


@DATA
@FORMS
@pytest.mark.parametrize("whiten", [False, True])
def test_components(name, form, whiten):
    X = data(name)
    k = min(20, X.shape[1] - 1)
    theirs = decomposition.PCA(k, svd_solver="full", whiten=whiten).fit(X)
    ours = PCA(k, whiten=whiten, random_state=0).fit(form(X))
    names = ["components_", "explained_variance_", "explained_variance_ratio_", "singular_values_"]
    agree(ours, theirs, X, names)
    assert np.allclose(ours.mean_, theirs.mean_)
    assert ours.noise_variance_ == pytest.approx(theirs.noise_variance_, rel=1e-2)
    for one, other in ((X, form(X)), (form(X), X)):
        assert np.allclose(ours.transform(one), ours.transform(other))


@DATA
@FORMS
def test_truncated_svd(name, form):
    X = data(name)
    k = min(20, X.shape[1] - 1)
    theirs = decomposition.TruncatedSVD(k, algorithm="arpack", random_state=0).fit(X)
    ours = TruncatedSVD(k, random_state=0).fit(form(X))
    names = ["components_", "explained_variance_", "explained_variance_ratio_", "singular_values_"]
    agree(ours, theirs, X, names)


@DATA
@FORMS
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_a_share_of_the_variance(name, form, share):
    """As many components as the full SVD says; scikit-learn has no share of a sparse matrix."""
    X = data(name)
    theirs = decomposition.PCA(share, svd_solver="full").fit(X)
    ours = PCA(share, random_state=0).fit(form(X))
    assert ours.n_components_ == theirs.n_components_
    assert share <= np.sum(ours.explained_variance_ratio_)
    captured = np.sum(theirs.explained_variance_ratio_)
    assert np.sum(ours.explained_variance_ratio_) == pytest.approx(captured, abs=1e-6)
    with pytest.raises((TypeError, ValueError)):
        decomposition.PCA(share).fit(sparse.csr_array(X))


@FORMS
@pytest.mark.parametrize("k", [5, 20])
def test_a_rank_captures_nearly_what_is_possible(form, k):
    """Of variances that fall slowly."""
    X = StandardScaler().fit_transform(data("digits"))
    best = np.sum(decomposition.PCA(k, svd_solver="full").fit(X).explained_variance_)
    for seed in range(10):
        captured = np.sum(PCA(k, random_state=seed).fit(form(X)).explained_variance_)
        assert best * (1 - 1e-4) <= captured <= best * (1 + 1e-12)


def test_predictions():
    """A classifier on the coordinates says the same of rows that it has not seen."""
    X, y = datasets.load_digits(return_X_y=True)
    said = []
    for module_kind in (PCA, decomposition.PCA):
        pca = module_kind(0.9) if module_kind is PCA else module_kind(0.9, svd_solver="full")
        steps = make_pipeline(StandardScaler(), pca, LogisticRegression(max_iter=1000))
        said.append(steps.fit(X[:1000], y[:1000]).predict(X[1000:]))
    assert np.mean(said[0] == said[1]) > 0.99
    assert np.mean(said[0] == y[1000:]) > 0.85


def test_words():
    """Term counts of texts, which stay sparse: the descriptions of scikit-learn's data sets."""
    loaded = (datasets.load_digits, datasets.load_wine, datasets.load_iris, datasets.load_diabetes)
    texts = [line for load in loaded for line in load().DESCR.splitlines() if len(line) > 30]
    X = TfidfVectorizer().fit_transform(texts)
    best = np.sum(decomposition.TruncatedSVD(5, algorithm="arpack").fit(X).singular_values_ ** 2)
    for seed in range(10):
        captured = np.sum(TruncatedSVD(5, random_state=seed).fit(X).singular_values_ ** 2)
        assert best * (1 - 5e-3) <= captured <= best * (1 + 1e-12)
