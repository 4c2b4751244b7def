"""Ten-fold cross-validation of four models on the diabetes data.

    python examples/cross_validation.py
    PARMAP_PLAN=threads python examples/cross_validation.py

The table is the same on every plan, to the last digit. ``--full`` repeats the ten folds ten
times.
"""

import itertools
import os
import sys
import time

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import RepeatedKFold
from sklearn.neighbors import KNeighborsRegressor

import parmap

parmap.set_plan(os.environ.get("PARMAP_PLAN", "processes"))

X, y = load_diabetes(return_X_y=True)
repeats = 10 if "--full" in sys.argv else 1
folds = list(RepeatedKFold(n_splits=10, n_repeats=repeats, random_state=1).split(X))
models = {
    "ridge": Ridge(alpha=0.1),
    "nearest neighbours": KNeighborsRegressor(n_neighbors=15),
    "random forest": RandomForestRegressor(n_estimators=300, random_state=1),
    "gradient boosting": GradientBoostingRegressor(max_depth=2, random_state=1),
}


def cv_fit(fold, method):
    """Fit a model without one fold; give its R² on that fold."""
    train, test = folds[fold]
    model = clone(models[method]).fit(X[train], y[train])
    return model.score(X[test], y[test])


began = time.perf_counter()
tasks = list(itertools.product(range(len(folds)), models))
scores = parmap.starmap(cv_fit, tasks, progress=True)
scores = np.reshape(scores, (len(folds), len(models)))

print(f"{'R² on ' + str(len(folds)) + ' folds':20} {'mean':>7}   {'sd':>6}")
for method, of_method in zip(models, scores.T, strict=True):
    print(f"{method:20} {of_method.mean():7.4f} ± {of_method.std(ddof=1):6.4f}")
print(f"{time.perf_counter() - began:.1f} s on {parmap.current_plan()}")
