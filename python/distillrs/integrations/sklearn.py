"""scikit-learn: selection and clustering as estimators.

``KMeans`` and ``KMedoids`` are clusterers; ``KCenter``, ``FacilityLocation`` and ``Herding`` pick samples, whose rows
are in ``sample_indices_``, and thin data out by ``fit_resample``. They work in pipelines and searches, and do what the
functions of :mod:`distillrs.select` do. scikit-learn is imported when one of them is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distillrs import select
from distillrs.errors import argument_error, renamed

if TYPE_CHECKING:
    KMeans: Any
    KMedoids: Any
    KCenter: Any
    FacilityLocation: Any
    Herding: Any

__all__ = ["FacilityLocation", "Herding", "KCenter", "KMeans", "KMedoids"]

# What scikit-learn calls the arguments of the functions.
_OF_CLUSTERERS = {"k": "n_clusters", "start": "init", "iterations": "max_iter", "seed": "random_state"}


def _matrix(estimator: Any, x: Any, *, is_new: bool = False) -> Any:
    from sklearn.utils.validation import check_is_fitted, validate_data

    if is_new:
        check_is_fitted(estimator)
    return validate_data(estimator, x, dtype=[np.float64, np.float32], reset=not is_new)


def _seed(random_state: Any) -> int:
    from sklearn.utils import check_random_state

    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


class _Clusterer:
    """What clusterers share."""

    cluster_centers_: Any
    labels_: Any

    def _take(self, found: select.Clusters) -> Any:
        self.cluster_centers_ = found.centres.numpy()
        self.labels_ = found.labels.numpy()
        self.inertia_ = found.inertia
        self.medoid_indices_ = found.medoids.numpy()
        # The first assignment counts: no estimator runs for no rounds.
        self.n_iter_ = max(1, found.iterations)
        self._n_features_out = len(self.cluster_centers_)
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
        """The nearest centre of each sample.

        Args:
            X: ``[n, d]``.

        Returns:
            int64 ``[n]``; of centres equally far the lowest.
        """
        x = _matrix(self, X, is_new=True)
        return select.nearest(x, self.cluster_centers_, 1).ids[:, 0].numpy()

    def transform(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
        """Distances to all centres.

        Args:
            X: ``[n, d]``.

        Returns:
            ``[n, n_clusters]`` in the samples' dtype, not squared.
        """
        x = _matrix(self, X, is_new=True)
        near = select.nearest(x, self.cluster_centers_, len(self.cluster_centers_))
        return torch.empty_like(near.distances).scatter_(1, near.ids, near.distances).numpy().astype(x.dtype)


class _KMeans(_Clusterer):
    """k-means by Lloyd's rounds from a k-means++ start; see :func:`distillrs.select.k_means`.

    Args:
        n_clusters: Number of clusters.
        init: "k-means++", or centres to start from, ``[n_clusters, d]``.
        max_iter: Most rounds.
        random_state: Seed of the start; a generator or ``None`` draws one.

    Attributes:
        cluster_centers_: ``[n_clusters, d]``.
        labels_: int64 ``[n]``.
        inertia_: Sum of squared distances to the nearest centres.
        medoid_indices_: int64 ``[n_clusters]``: the sample nearest to each centre, none twice.
        n_iter_: Rounds.
    """

    def __init__(
        self, n_clusters: int = 8, *, init: Any = "k-means++", max_iter: int = 300, random_state: Any = 0
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:  # noqa: N803  # scikit-learn's name
        """Clusters the samples.

        Args:
            X: ``[n, d]``.
            y: Not used.
        """
        x = _matrix(self, X)
        if isinstance(self.init, str) and self.init != "k-means++":
            raise argument_error("init", self.init, "'k-means++' or centres to start from")
        start = None if isinstance(self.init, str) else np.asarray(self.init, np.float64)
        seed = _seed(self.random_state)
        with renamed(**_OF_CLUSTERERS):
            return self._take(select.k_means(x, self.n_clusters, start=start, iterations=self.max_iter, seed=seed))


class _KMedoids(_Clusterer):
    """k-medoids by FasterPAM's eager swaps; see :func:`distillrs.select.k_medoids`.

    Args:
        n_clusters: Number of clusters.
        init: "random", or rows to start from, ``[n_clusters]``.
        max_iter: Most passes over the candidates.
        random_state: Seed of the start; a generator or ``None`` draws one.

    Attributes:
        cluster_centers_: ``[n_clusters, d]``: samples.
        labels_: int64 ``[n]``.
        inertia_: Sum of distances, not squared, to the nearest medoids.
        medoid_indices_: int64 ``[n_clusters]``: their rows.
        n_iter_: Swaps.
    """

    def __init__(
        self, n_clusters: int = 8, *, init: Any = "random", max_iter: int = 300, random_state: Any = 0
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:  # noqa: N803  # scikit-learn's name
        """Clusters the samples.

        Args:
            X: ``[n, d]``.
            y: Not used.
        """
        x = _matrix(self, X)
        if isinstance(self.init, str) and self.init != "random":
            raise argument_error("init", self.init, "'random' or rows to start from")
        start = None if isinstance(self.init, str) else np.asarray(self.init)
        seed = _seed(self.random_state)
        with renamed(**_OF_CLUSTERERS):
            return self._take(select.k_medoids(x, self.n_clusters, start=start, iterations=self.max_iter, seed=seed))


class _Selector:
    """What selectors share."""

    n_select: Any
    per_class: bool
    sample_indices_: Any

    def _pick(self, x: Any, **how: Any) -> select.Picks:
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None) -> Any:  # noqa: N803  # scikit-learn's name
        """Picks samples.

        Args:
            X: ``[n, d]``.
            y: ``[n]``: classes, with ``per_class``.
        """
        x = _matrix(self, X)
        how: dict[str, Any] = {}
        if self.per_class:
            if y is None:
                raise argument_error("y", None, "the class of each sample, as per_class is set")
            how["groups"] = torch.as_tensor(np.unique(np.asarray(y), return_inverse=True)[1].astype(np.int64).ravel())
        if isinstance(self.n_select, float | np.floating):
            how["fraction"] = float(self.n_select)
        else:
            how["k"] = self.n_select
        with renamed(groups="y", k="n_select", fraction="n_select", seed="random_state"):
            picks = self._pick(x, **how)
        self.sample_indices_ = picks.ids.numpy()
        self.gains_ = picks.gains.numpy()
        return self

    def fit_resample(self, X: Any, y: Any = None) -> Any:  # noqa: N803  # scikit-learn's name
        """The picked samples, in the order in which they were picked.

        Args:
            X: ``[n, d]``, an array or a data frame.
            y: ``[n]``: taken along; classes, with ``per_class``.

        Returns:
            The samples, and with ``y`` also theirs.
        """
        from sklearn.utils import _safe_indexing

        self.fit(X, y)
        rows = _safe_indexing(X, self.sample_indices_)
        return rows if y is None else (rows, _safe_indexing(y, self.sample_indices_))


class _KCenter(_Selector):
    """Farthest-first picks; see :func:`distillrs.select.k_center`.

    Args:
        n_select: How many samples, or a share of them as a float; with ``per_class`` of each class.
        per_class: Pick from each class apart, the lowest first.
        metric: "euclidean" or "cosine".
        random_state: Seed of the first pick; a generator or ``None`` draws one.

    Attributes:
        sample_indices_: int64 ``[k]``: rows of the picks, in order.
        gains_: Each pick's distance to those before it.
    """

    def __init__(
        self, n_select: Any = 0.1, *, per_class: bool = False, metric: str = "euclidean", random_state: Any = 0
    ) -> None:
        self.n_select = n_select
        self.per_class = per_class
        self.metric = metric
        self.random_state = random_state

    def _pick(self, x: Any, **how: Any) -> select.Picks:
        return select.k_center(x, metric=self.metric, seed=_seed(self.random_state), **how)  # type: ignore[arg-type]  # checked there


class _FacilityLocation(_Selector):
    """Picks near all samples; see :func:`distillrs.select.facility_location`.

    Args:
        n_select: How many samples, or a share of them as a float; with ``per_class`` of each class.
        per_class: Pick from each class apart, the lowest first.
        method: "lazy" or "stochastic".
        random_state: Seed of the candidates of "stochastic"; a generator or ``None`` draws one.

    Attributes:
        sample_indices_: int64 ``[k]``: rows of the picks, in order.
        gains_: What each pick added to the value.
    """

    def __init__(
        self, n_select: Any = 0.1, *, per_class: bool = False, method: str = "lazy", random_state: Any = 0
    ) -> None:
        self.n_select = n_select
        self.per_class = per_class
        self.method = method
        self.random_state = random_state

    def _pick(self, x: Any, **how: Any) -> select.Picks:
        return select.facility_location(x, method=self.method, seed=_seed(self.random_state), **how)  # type: ignore[arg-type]  # checked there


class _Herding(_Selector):
    """Picks whose mean stays near that of all; see :func:`distillrs.select.herding`.

    Args:
        n_select: How many samples, or a share of them as a float; with ``per_class`` of each class.
        per_class: Pick from each class apart, the lowest first.

    Attributes:
        sample_indices_: int64 ``[k]``: rows of the picks, in order.
        gains_: Distance of the picks' mean from that of all, after each.
    """

    def __init__(self, n_select: Any = 0.1, *, per_class: bool = False) -> None:
        self.n_select = n_select
        self.per_class = per_class

    def _pick(self, x: Any, **how: Any) -> select.Picks:
        return select.herding(x, **how)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
    except ModuleNotFoundError as failure:
        raise ModuleNotFoundError("scikit-learn is not installed: pip install 'distillrs[sklearn]'") from failure
    own: Any = globals()[f"_{name}"]
    mixins = (ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin) if issubclass(own, _Clusterer) else ()
    kind = type(name, (own, *mixins, BaseEstimator), {"__doc__": own.__doc__, "__module__": __name__})
    # Once made it is found like any other name, by pickle too.
    globals()[name] = kind
    return kind
