"""Progress of diabetes after a year (442 patients, comes with scikit-learn): a linear regression and a tree."""

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeRegressor

import edgesmith


def splits() -> dict[str, edgesmith.ArraySplit]:
    """264 patients to train, 89 to choose on, 89 to judge on."""
    features, progress = load_diabetes(return_X_y=True)
    features, progress = features.astype(np.float32), progress.astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(features, progress, test_size=89, random_state=0)
    x_train, x_val, y_train, y_val = train_test_split(x_train, y_train, test_size=89, random_state=0)
    return {
        "train": edgesmith.ArraySplit({"features": x_train}, y_train),
        "validation": edgesmith.ArraySplit({"features": x_val}, y_val),
        "test": edgesmith.ArraySplit({"features": x_test}, y_test),
    }


def task() -> edgesmith.Task:
    """The linear regression is the original; the tree's depth is the best on validation."""
    data = splits()
    x, y = data["train"].inputs["features"], data["train"].labels
    return edgesmith.Task(
        name="diabetes",
        model=LinearRegression().fit(x, y),
        models={"tree": DecisionTreeRegressor(max_depth=2, random_state=0).fit(x, y)},
        loss="mse",
        metrics=("mae", "rmse"),
        outputs=("progress",),
        **data,
    )
