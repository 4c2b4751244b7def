"""Three different models on one data set: few tasks, of very different cost.

    python examples/three_models.py
    PARMAP_PLAN="processes(workers=3)" python examples/three_models.py

Each model is one task, and each worker takes one at once. The table is the same on every plan, to
the last digit. How long each took, and how much faster three workers can be at all, goes to
standard error. ``--full`` grows larger forests.
"""

import os
import sys
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

import parmap

parmap.set_plan(os.environ.get("PARMAP_PLAN", "processes"))

X, y = load_digits(return_X_y=True)
X = X / 16
models = {
    "forest": RandomForestClassifier(1000 if "--full" in sys.argv else 100, random_state=1),
    "logistic regression": LogisticRegression(max_iter=200, random_state=1),
    "support vectors": SVC(gamma=0.5, random_state=1),
}


def accuracy(name):
    """Five-fold cross-validation of a model; and the seconds that it takes."""
    began = time.perf_counter()
    scores = cross_val_score(models[name], X, y, cv=5)
    return scores.mean(), scores.std(ddof=1), time.perf_counter() - began


began = time.perf_counter()
results = parmap.pmap(accuracy, models)
took = time.perf_counter() - began

print(f"{'accuracy on digits':20} {'mean':>7}   {'sd':>6}")
for name, (mean, deviation, _) in zip(models, results, strict=True):
    print(f"{name:20} {mean:7.4f} ± {deviation:6.4f}")
seconds = np.array([each for *_, each in results])
for name, each in zip(models, seconds, strict=True):
    print(f"{name} took {each:.1f} s", file=sys.stderr)
bound = seconds.sum() / seconds.max()
print(f"the longest bounds the gain: at most {bound:.1f} times faster", file=sys.stderr)
print(f"{took:.1f} s on {parmap.current_plan()}")
