"""scikit-learn's interface: its own checks, and what is promised beyond them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matrices import gaussian, quietly, with_spectrum

import lowrank
from lowrank import gallery

pytest.importorskip("sklearn", reason="needs scikit-learn")

from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lowrank.estimators import PCA, TruncatedSVD

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "pca.md"
DIGITS = load_digits().data
BOTH = pytest.mark.parametrize("kind", [PCA, TruncatedSVD])
FORMS = pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_matrix])


ESTIMATORS = ["PCA()", "PCA(0.9)", "PCA(2, whiten=True)", "TruncatedSVD()", "TruncatedSVD(0.9)"]
CHECKS = f"""
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator
from lowrank.estimators import PCA, TruncatedSVD
for estimator in ({", ".join(ESTIMATORS)}):
    print("of", get_tags(estimator).array_api_support and get_tags(estimator).input_tags.sparse)
    for done in check_estimator(estimator, on_skip=None, on_fail=None):
        print(done["status"], done["check_name"], repr(done["exception"]))
"""
TENSORS = """
import sklearn, torch
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from lowrank.estimators import PCA, TruncatedSVD

X = torch.asarray(load_digits().data, dtype=torch.float32)
with sklearn.config_context(array_api_dispatch=True):
    for model in (PCA(0.9, whiten=True), PCA(5), TruncatedSVD(0.9), TruncatedSVD(5)):
        Z = model.fit_transform(X)
        back = model.inverse_transform(Z)
        for array in (Z, back, model.components_, model.explained_variance_ratio_):
            assert type(array) is torch.Tensor and array.dtype == torch.float32
        # what is left is what was not captured
        mean = X.mean(0) if hasattr(model, "mean_") else 0
        left = torch.linalg.norm(X - back) / torch.linalg.norm(X - mean)
        assert left <= ((1 - 0.9) ** 0.5 if model.n_components == 0.9 else 0.7)
    assert type(make_pipeline(StandardScaler(), PCA(3)).fit_transform(X)) is torch.Tensor
"""
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
(DISPATCHED,) = (block for block in BLOCKS if "array_api_dispatch" in block)
# Runs what it reads, and tells of each script what it prints and how it fails.
RUNNER = """
import contextlib, io, json, sys, traceback
told = []
for script in json.load(sys.stdin):
    printed, failure = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(script, {"__name__": "__main__"})
    except BaseException:
        failure = traceback.format_exc()
    told.append([printed.getvalue(), failure])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def run():
    """What scripts print in one process of their own: SciPy reads the variable on being imported.

    Those of tensors come first, and not at all without torch.
    """
    scripts = [*([TENSORS, DISPATCHED] if importlib.util.find_spec("torch") else []), CHECKS]
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", RUNNER],
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        input=json.dumps(scripts),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = dict(zip(scripts, json.loads(done.stdout), strict=True))

    def printed(script):
        text, failure = told[script]
        assert failure is None, failure
        return text

    return printed


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_checks_of_scikit_learn(run, estimator):
    """All of them, also those of array libraries; only what is not on this machine is skipped."""
    _, *parts = re.split(r"^of ", run(CHECKS), flags=re.MULTILINE)
    assert len(parts) == len(ESTIMATORS)
    takes_both, *lines = parts[ESTIMATORS.index(estimator)].splitlines()
    assert takes_both == "True"
    passed = [line for line in lines if line.startswith("passed ")]
    assert len(passed) >= 40
    absent = r"skipped .*(not installed|not available|is available|MPS)"
    assert all(re.match(absent, line) for line in lines if line not in passed)
    for library in ("torch", "array_api_strict"):
        if importlib.util.find_spec(library):
            assert not any(f"{library} is not installed" in line for line in lines)


def test_tensors_in_tensors_out(run):
    pytest.importorskip("torch")
    run(TENSORS)


def left_of(model, X):
    """Share of the squares of X, less its mean for PCA, that the approximation lacks."""
    A = X - X.mean(0) if isinstance(model, PCA) else X
    back = model.inverse_transform(model.transform(X))
    return float(np.sum((X - back) ** 2) / np.sum(A**2))


@BOTH
@FORMS
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spectrum", ["slow", "slower", "fast"])
def test_a_share_is_captured_by_few_components(kind, form, share, spectrum):
    X = with_spectrum(getattr(gallery, spectrum)(80), (300, 80), "float64") + gaussian(
        (1, 80), "float64", 1
    )
    model = kind(share, random_state=0).fit(form(X))
    assert left_of(model, X) <= 1 - share
    S = np.linalg.svd(X - X.mean(0) if kind is PCA else X, compute_uv=False)
    best = int(np.sum(np.cumsum(S**2) < share * np.sum(S**2))) + 1
    assert best <= model.n_components_ <= best + 1 + best // 20
    A = X - model.mean_ if kind is PCA else X
    V = model.components_
    assert np.linalg.norm(A - A @ V.T @ V) <= model.error_bound_
    assert model.error_bound_ <= (1 - share) ** 0.5 * np.linalg.norm(A)


@BOTH
def test_tolerances_caps_and_their_sum(kind):
    def components(**rules):
        return quietly(kind(random_state=0, **rules).fit, DIGITS).n_components_

    tight = components(n_components=None, tol=0.1)
    assert tight == components(n_components=1 - 0.1**2)
    loose = components(n_components=None, tol=0.3)
    assert components(n_components=0.99, tol=0.3) == loose < tight
    assert components(n_components=3, tol=0.1) == 3
    assert components(n_components=DIGITS.shape[1], tol=0.1) == tight
    assert components(n_components=None) == 64
    with pytest.warns(lowrank.ConvergenceWarning, match="RANK_REACHED"):
        kind(3, tol=0.1).fit(DIGITS)


@pytest.mark.parametrize("wrong", [0, -1, 65, 1.0, 1.5, 0.0, "mle"])
def test_what_n_components_may_be(wrong):
    with pytest.raises(ValueError, match=r"`n_components` must be None, 1 to 64, or a share"):
        PCA(wrong).fit(DIGITS)


def test_a_sparse_matrix_is_never_made_dense(monkeypatch):
    X = sparse.random_array((20_000, 3000), density=1e-3, rng=0, format="csr")

    def refuse(*_, **__):
        raise AssertionError

    for name in ("toarray", "todense", "__array__"):
        monkeypatch.setattr(sparse.csr_array, name, refuse, raising=False)
        monkeypatch.setattr(sparse.csc_array, name, refuse, raising=False)
    for model in (PCA(3), TruncatedSVD(3), PCA(3, whiten=True)):
        assert model.fit_transform(X).shape == (20_000, 3)


@BOTH
@FORMS
def test_dense_and_sparse_find_the_same(kind, form):
    """And so for a matrix in single precision, which stays so."""
    expected = kind(54, random_state=0).fit(DIGITS)  # with 10 more columns that is everything
    for dtype, rtol in (("float64", 1e-10), ("float32", 1e-4)):
        model = kind(54, random_state=0)
        Z = model.fit_transform(form(DIGITS.astype(dtype)))
        assert Z.dtype == model.components_.dtype == dtype
        for name in ("components_", "explained_variance_", "explained_variance_ratio_"):
            found, true = getattr(model, name)[:12], getattr(expected, name)[:12]
            assert found.dtype == dtype
            assert np.allclose(found, true, rtol=rtol, atol=rtol)
    assert kind(12).fit(DIGITS.astype(int)).components_.dtype == "float64"


def test_whitening_and_back():
    X = DIGITS[:40]  # of rank 39 at most, less its mean
    model = PCA(whiten=True, random_state=0)
    Z = model.fit_transform(X)
    assert np.allclose(Z[:, :20].std(0, ddof=1), 1.0)
    # rounding is not blown up to a variance of one
    assert np.all(np.abs(Z[:, 39:]) < 1e-10)
    assert np.allclose(model.inverse_transform(Z), X)
    scaled = PCA(whiten=True, random_state=0).fit(X * 1e-30)
    assert np.allclose(scaled.transform(X[:5] * 1e-30)[:, :10], Z[:5, :10])


def test_rows_keep_their_digits_below_a_large_mean():
    X = with_spectrum(gallery.fast(20), (200, 20), "float64")
    far = (X + 2.0**12).astype("float32")
    exact = far.astype("float64")
    model = PCA(3, random_state=0).fit(far)
    expected = (exact - exact.mean(0)) @ model.components_.T.astype("float64")
    assert np.allclose(model.transform(far), expected, rtol=0, atol=2e-3 * np.abs(expected).max())


@BOTH
def test_no_variance(kind):
    for X in (np.full((20, 5), 3.0), np.zeros((20, 5))):
        model = kind(2, random_state=0)
        Z = model.fit_transform(X)
        assert np.allclose(model.inverse_transform(Z), X)
        assert np.allclose(model.explained_variance_ratio_, 0.0)
    assert kind(0.9).fit(np.zeros((20, 5))).n_components_ == 0


@BOTH
def test_seeds(kind):
    """Integers and generators as everywhere in scikit-learn; None asks NumPy's global one."""

    def S(seed):
        return kind(5, random_state=seed).fit(DIGITS).components_

    assert np.array_equal(S(7), S(7))
    assert not np.array_equal(S(7), S(8))
    generator = np.random.RandomState(7)
    assert np.array_equal(S(generator), S(7))
    assert not np.array_equal(S(generator), S(7))
    np.random.seed(3)  # noqa: NPY002
    first = S(None)
    np.random.seed(3)  # noqa: NPY002
    assert np.array_equal(S(None), first)


@BOTH
def test_clones_pipelines_and_searches(kind):
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    model = kind(0.9, tol=0.2, random_state=1)
    assert clone(model).get_params() == model.get_params()
    steps = make_pipeline(StandardScaler(), kind(random_state=0), KNeighborsClassifier(3))
    name = kind.__name__.lower()
    search = GridSearchCV(steps, {f"{name}__n_components": [2, 0.5, 0.95]}, cv=3).fit(X, y)
    assert search.best_params_ == {f"{name}__n_components": 0.95}


def test_latent_semantic_analysis():
    """A pipeline on text: rows about one thing come together."""
    texts = ["rank of a matrix", "a matrix of low rank", "a cat and a dog", "the dog, the cat"] * 3
    Z = make_pipeline(TfidfVectorizer(), TruncatedSVD(2, random_state=0)).fit_transform(texts)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    assert Z[0] @ Z[1] > 0.9
    assert abs(Z[0] @ Z[2]) < 0.5


@BOTH
def test_names_of_features(kind):
    model = kind(3, random_state=0).fit(DIGITS)
    assert list(model.get_feature_names_out()) == [f"{kind.__name__.lower()}{i}" for i in range(3)]
    assert not hasattr(model, "feature_names_in_")


@BOTH
def test_frames_of_pandas(kind):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = pandas.DataFrame(DIGITS, columns=[f"pixel{i}" for i in range(64)])
    model = kind(3, random_state=0).set_output(transform="pandas")
    out = model.fit_transform(frame)
    assert list(model.feature_names_in_) == list(frame.columns)
    assert list(out.columns) == list(model.get_feature_names_out())
    assert out.index.equals(frame.index)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame.rename(columns={"pixel0": "other"}))


def test_the_page_about_components(run, tmp_path, monkeypatch):
    """Its blocks build on one another, but for tensors; they hold assertions of their own."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 6
    space = {}
    for block in BLOCKS:
        if block == DISPATCHED:
            run(block)
        else:
            exec(compile(block, str(PAGE), "exec"), space)
