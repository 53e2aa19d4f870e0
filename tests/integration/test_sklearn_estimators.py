"""Estimators of scikit-learn: its own checks, and the functions behind them."""

import pickle

import numpy as np
import pytest
import torch

from distillrs import random, select
from distillrs.errors import ArgumentError
from distillrs.integrations import sklearn as estimators

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'distillrs[sklearn]'")
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

X = random.normal(60, 3, step=0, name="points", dtype=torch.float64).numpy()
Y = np.array(["one", "two", "three"])[np.arange(60) % 3]
ALL = [
    estimators.KMeans(),
    estimators.KMedoids(),
    estimators.KCenter(),
    estimators.FacilityLocation(),
    estimators.Herding(),
]


@pytest.mark.filterwarnings("ignore")  # the checks' own
@parametrize_with_checks(ALL)
def test_estimators_pass_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_clusterers_do_what_the_functions_do():
    means = estimators.KMeans(4, random_state=3, max_iter=50).fit(X)
    found = select.k_means(X, 4, seed=3, iterations=50)
    assert np.array_equal(means.cluster_centers_, found.centres.numpy())
    assert np.array_equal(means.labels_, found.labels.numpy())
    assert np.array_equal(means.medoid_indices_, found.medoids.numpy())
    assert means.inertia_ == found.inertia
    assert np.array_equal(means.predict(X), means.labels_)
    distances = np.linalg.norm(X[:, None] - means.cluster_centers_[None], axis=2)
    assert np.allclose(means.transform(X), distances)
    start = X[[5, 6, 7]]
    assert np.array_equal(
        estimators.KMeans(3, init=start).fit(X).labels_,
        select.k_means(X, 3, start=start, iterations=300).labels.numpy(),
    )
    assert means.n_iter_ == found.iterations > 1
    medoids = estimators.KMedoids(5, random_state=1).fit(X)
    assert np.array_equal(medoids.medoid_indices_, select.k_medoids(X, 5, seed=1).medoids.numpy())
    assert np.array_equal(medoids.cluster_centers_, X[medoids.medoid_indices_])
    assert np.array_equal(estimators.KMedoids(2, init=[3, 4], max_iter=0).fit(X).medoid_indices_, [3, 4])


def test_selectors_do_what_the_functions_do():
    groups = torch.from_numpy(np.unique(Y, return_inverse=True)[1])
    for estimator, expected in (
        (estimators.KCenter(7, random_state=2), select.k_center(X, 7, seed=2)),
        (estimators.KCenter(0.2, metric="cosine"), select.k_center(X, fraction=0.2, metric="cosine")),
        (estimators.KCenter(4, per_class=True), select.k_center(X, 4, groups=groups)),
        (estimators.FacilityLocation(6), select.facility_location(X, 6)),
        (
            estimators.FacilityLocation(6, method="stochastic", random_state=5),
            select.facility_location(X, 6, method="stochastic", seed=5),
        ),
        (estimators.Herding(0.1, per_class=True), select.herding(X, fraction=0.1, groups=groups)),
    ):
        rows, labels = clone(estimator).fit_resample(X, Y)
        estimator.fit(X, Y)
        assert np.array_equal(estimator.sample_indices_, expected.ids.numpy())
        assert np.array_equal(estimator.gains_, expected.gains.numpy())
        assert np.array_equal(rows, X[expected.ids])
        assert np.array_equal(labels, Y[expected.ids])
        assert np.array_equal(pickle.loads(pickle.dumps(estimator)).sample_indices_, estimator.sample_indices_)


def test_they_work_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), estimators.KMeans(3))
    assert set(pipeline.fit(X).predict(X)) == {0, 1, 2}
    assert list(pipeline[-1].get_feature_names_out()) == ["kmeans0", "kmeans1", "kmeans2"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimators.KMeans(0).fit(X), "n_clusters: got 0"),
        (lambda: estimators.KMeans(2, init="far").fit(X), "init: got 'far'"),
        (lambda: estimators.KMedoids(2, init="far").fit(X), "init: got 'far'"),
        (lambda: estimators.KMedoids(2, init=[0, 0]).fit(X), "init: got"),
        (lambda: estimators.KMedoids(2, init=[0.5, 1.7]).fit(X), "init: got 'float64 of shape (2,)'"),
        (lambda: estimators.KMeans(2, init=X[:3]).fit(X), "init: got 'the shape"),
        (lambda: estimators.KMeans(2, max_iter=-1).fit(X), "max_iter: got -1"),
        (lambda: estimators.KMeans(2, random_state=-1).fit(X), "random_state: got -1"),
        (lambda: estimators.KCenter(2, per_class=True).fit(X, Y[:5]), "y: got"),
        (lambda: estimators.KCenter(per_class=True).fit(X), "y: got None"),
        (lambda: estimators.KCenter(1.5).fit(X), "n_select: got 1.5"),
        (lambda: estimators.KCenter(metric="manhattan").fit(X), "metric: got"),
        (lambda: estimators.FacilityLocation(method="naive").fit(X), "method: got"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="has no attribute 'DBSCAN'"):
        _ = estimators.DBSCAN
