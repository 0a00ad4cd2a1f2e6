"""Fusion rules: several models' predictions to one, as numpy computes them and as nodes of an ONNX graph.

A stack is `(N, members, C)`: probabilities of C classes, or C numbers. Weights `(members,)` add up to 1.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import scipy

from ...core.errors import RecipeError
from ...exporters.graph.compose import Nodes

LEAST = 1e-7  # no probability is taken to be smaller where its logarithm is
EDGE = 1e-6  # single precision tells a probability from 1 no closer
_ADDS = 0.01  # a member with a smaller weight adds nothing worth its cost
_GATE_DECAY = 1e-3  # of the gate's matrix
_TIE = 1e-3  # of the mean among votes: less than any vote of up to 1,000 members


class Combination(Protocol):
    """What a rule comes to, once its numbers are known."""

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        """`(N, members, C)` to `(N, C)`."""
        ...

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        """The same as nodes behind the tensor `stack`, whose C is `classes`; the name of what they give."""
        ...


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shares: np.ndarray = scipy.special.softmax(logits, axis=-1)
    return shares


def write_logs(nodes: Nodes, shares: str) -> str:
    """Logarithms of probabilities that nothing else reads, none taken to be below `LEAST`.

    Where the last node is the softmax that made them, it becomes a LogSoftmax: one node less.
    """
    if nodes.nodes and nodes.nodes[-1].op_type == "Softmax" and nodes.nodes[-1].output[0] == shares:
        nodes.nodes[-1].op_type = "LogSoftmax"
        return nodes.add("Max", shares, nodes.constant(np.log(LEAST)))
    return nodes.add("Log", nodes.add("Max", shares, nodes.constant(LEAST)))


@dataclasses.dataclass(frozen=True)
class Mean:
    """The weighted arithmetic mean (the linear opinion pool)."""

    weights: np.ndarray

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        mean: np.ndarray = np.einsum("m,nmc->nc", self.weights, stack)
        return mean

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        members = nodes.constant([1], np.int64)
        if not np.ptp(self.weights):
            return nodes.add("ReduceMean", stack, members, keepdims=0)
        parts = nodes.add("Mul", stack, nodes.constant(self.weights[None, :, None]))
        return nodes.add("ReduceSum", parts, members, keepdims=0)


@dataclasses.dataclass(frozen=True)
class LogMean:
    """The weighted geometric mean of probabilities, normalised (the logarithmic opinion pool; Hinton, 2002)."""

    weights: np.ndarray

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        return softmax(Mean(self.weights)(np.log(np.maximum(stack, LEAST))))

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        return nodes.add("Softmax", Mean(self.weights).write(nodes, write_logs(nodes, stack), classes), axis=-1)


@dataclasses.dataclass(frozen=True)
class Voting:
    """The share of votes, one for each member's top class; among classes with as many, the mean decides."""

    weights: np.ndarray

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        votes = np.eye(stack.shape[2])[stack.argmax(2)]
        return (Mean(self.weights)(votes) + _TIE * Mean(self.weights)(stack)) / (1 + _TIE)

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        top = nodes.add("ArgMax", stack, axis=2, keepdims=0)
        votes = nodes.add(
            "OneHot", top, nodes.constant(classes, np.int64), nodes.constant([0, 1 / (1 + _TIE)]), axis=-1
        )
        tied = nodes.add("Mul", stack, nodes.constant(_TIE / (1 + _TIE)))
        return Mean(self.weights).write(nodes, nodes.add("Add", votes, tied), classes)


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """A mean whose weights differ from input to input: a member counts by 1 less its normalised entropy."""

    weights: np.ndarray

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        entropy = -(stack * np.log(np.maximum(stack, LEAST))).sum(2, keepdims=True) / np.log(stack.shape[2])
        counts = self.weights[None, :, None] * np.maximum(1 - entropy, LEAST)
        fused: np.ndarray = (counts * stack).sum(1) / counts.sum(1)
        return fused

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        members = nodes.constant([1], np.int64)
        most = np.log(classes)  # times 1 less the normalised entropy: what all counts share comes to nothing
        sure = nodes.add("Add", _certainty_nodes(nodes, stack, keepdims=1), nodes.constant(most))
        counts = nodes.add("Max", sure, nodes.constant(LEAST * most))
        if np.ptp(self.weights):
            counts = nodes.add("Mul", counts, nodes.constant(self.weights[None, :, None]))
        total = nodes.add("ReduceSum", counts, members, keepdims=0)
        return nodes.add("Div", nodes.add("ReduceSum", nodes.add("Mul", counts, stack), members, keepdims=0), total)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A mean whose weights a small gate gives for every input anew: a softmax of how sure each member is of it.

    A mixture of experts (Jacobs et al., 1991) whose gate, linear, sees of the members what they say: `matrix` reads
    each one's highest probability and its negative entropy.
    """

    matrix: np.ndarray  # (2 * members, members)
    bias: np.ndarray  # (members,)

    @staticmethod
    def features(stack: np.ndarray) -> np.ndarray:
        """`(N, 2 * members)`."""
        return np.concatenate([stack.max(2), (stack * np.log(np.maximum(stack, LEAST))).sum(2)], axis=1)

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        shares = softmax(self.features(stack) @ self.matrix + self.bias)
        fused: np.ndarray = np.einsum("nm,nmc->nc", shares, stack)
        return fused

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        last = nodes.constant([2], np.int64)
        certainty = _certainty_nodes(nodes, stack, keepdims=0)
        features = nodes.add("Concat", nodes.add("ReduceMax", stack, last, keepdims=0), certainty, axis=1)
        scores = nodes.add("Gemm", features, nodes.constant(self.matrix), nodes.constant(self.bias))
        shares = nodes.add("Unsqueeze", nodes.add("Softmax", scores, axis=-1), last)
        return nodes.add("ReduceSum", nodes.add("Mul", shares, stack), nodes.constant([1], np.int64), keepdims=0)


def gated(stack: np.ndarray, labels: np.ndarray, shares: bool) -> Gate:
    """The gate with the least log loss, drawn a little (`_GATE_DECAY`) towards weights that are the same for all."""
    own, members = stack[np.arange(len(stack)), :, labels], stack.shape[1]
    scale = np.repeat([1.0, -1 / np.log(stack.shape[2])], members)  # entropy between 0 and 1, for the decay
    features = Gate.features(stack) * scale

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        matrix, bias = flat[:-members].reshape(-1, members), flat[-members:]
        weights = softmax(features @ matrix + bias)
        mixed = np.maximum((weights * own).sum(1), LEAST)
        error = (weights - weights * own / mixed[:, None]) / len(own)  # of the scores, which the softmax reads
        gradient = np.concatenate([(features.T @ error + 2 * _GATE_DECAY * matrix).ravel(), error.sum(0)])
        return float(-np.log(mixed).mean() + _GATE_DECAY * (matrix**2).sum()), gradient

    start = np.zeros(features.shape[1] * members + members)
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Gate(found[:-members].reshape(-1, members) * scale[:, None], found[-members:])


def _certainty_nodes(nodes: Nodes, stack: str, keepdims: int) -> str:
    """The negative entropy of every member's probabilities."""
    logs = nodes.add("Log", nodes.add("Max", stack, nodes.constant(LEAST)))
    return nodes.add("ReduceSum", nodes.add("Mul", stack, logs), nodes.constant([2], np.int64), keepdims=keepdims)


@dataclasses.dataclass(frozen=True)
class Stacking:
    """A linear model on the members' outputs (Wolpert, 1992): of probabilities' logarithms, with a softmax."""

    matrix: np.ndarray  # (members * C, C)
    bias: np.ndarray  # (C,)
    shares: bool

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        linear = _features(stack, self.shares) @ self.matrix + self.bias
        return softmax(linear) if self.shares else linear

    def write(self, nodes: Nodes, stack: str, classes: int) -> str:
        logs = write_logs(nodes, stack) if self.shares else stack
        flat = nodes.add("Reshape", logs, nodes.constant([-1, len(self.matrix)], np.int64))
        linear = nodes.add("Gemm", flat, nodes.constant(self.matrix), nodes.constant(self.bias))
        return nodes.add("Softmax", linear, axis=-1) if self.shares else linear


def _features(stack: np.ndarray, shares: bool) -> np.ndarray:
    values = np.log(np.maximum(stack, LEAST)) if shares else stack
    return values.reshape(len(stack), -1)


def best_weights(stack: np.ndarray, labels: np.ndarray, shares: bool) -> Mean:
    """The point of the simplex with the least log loss, or squared error; both are convex in the weights.

    Args:
        stack: `(N, members, C)`.
        labels: classes `(N,)`, or numbers `(N, C)`.
    """
    members = stack.shape[1]
    own = stack[np.arange(len(stack)), :, labels] if shares else stack

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        if shares:
            mixed = np.maximum(own @ weights, LEAST)
            return -float(np.log(mixed).mean()), -(own / mixed[:, None]).mean(0)
        error = np.einsum("m,nmc->nc", weights, own) - labels
        return float((error**2).mean()), 2 * np.einsum("nc,nmc->m", error, own) / error.size

    start = np.full(members, 1 / members)
    scale = max(loss(start)[0], 1e-12)
    found = scipy.optimize.minimize(
        lambda weights: tuple(part / scale for part in loss(weights)),
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 300},
    )
    weights = np.where(found.x < _ADDS, 0.0, found.x)
    return Mean(weights / weights.sum())


def stacked(stack: np.ndarray, labels: np.ndarray, shares: bool) -> Stacking:
    """Logistic regression, or ridge regression, on the members' outputs; `labels` as in `best_weights`."""
    from sklearn.linear_model import LogisticRegression, Ridge

    features, classes = _features(stack, shares), stack.shape[2]
    if not shares:
        ridge = Ridge(alpha=1.0).fit(features, labels)
        return Stacking(np.atleast_2d(ridge.coef_).T, np.atleast_1d(ridge.intercept_), shares)
    model = LogisticRegression(C=0.1, max_iter=2000).fit(features, labels)
    matrix, bias = model.coef_.T, model.intercept_
    if classes == 2:  # one row, which stands for the second class against the first
        matrix, bias = np.hstack([0 * matrix, matrix]), np.array([0.0, bias[0]])
    return Stacking(matrix, bias, shares)


def needs_sklearn(where: str) -> None:
    """Refuse stacking where its meta-learner cannot be had.

    Raises:
        RecipeError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise RecipeError(f"{where}.rule: 'stacking' needs scikit-learn: pip install 'edgesmith[sklearn]'")


def selected(
    stack: np.ndarray, rule: Callable[[np.ndarray], Combination], score: Callable[[np.ndarray], float], rounds: int = 20
) -> np.ndarray:
    """Shares from greedy selection with replacement (Caruana et al., 2004): the best bag on the way, first of one.

    Args:
        rule: shares of the members to the combination that is scored.
        score: of `(N, C)`; higher is better.
    """
    members = stack.shape[1]
    counts, best, kept = np.zeros(members), -np.inf, np.zeros(members)
    for _ in range(rounds):
        tried = [counts + np.eye(members)[member] for member in range(members)]
        scores = [score(rule(each / each.sum())(stack)) for each in tried]
        chosen = int(np.argmax(scores))
        counts = tried[chosen]
        if scores[chosen] > best:
            best, kept = scores[chosen], counts
    shares: np.ndarray = kept / kept.sum()
    return shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A fusion rule: made from weights alone, or fitted to `(stack, labels, shares)`."""

    make: Callable[[np.ndarray], Combination] | None = None
    fit: Callable[[np.ndarray, np.ndarray, bool], Combination] | None = None
    numbers: bool = False  # whether it fuses numbers too, not probabilities alone


FUSIONS: Mapping[str, Rule] = {
    "mean": Rule(make=Mean, numbers=True),
    "weighted": Rule(fit=best_weights, numbers=True),
    "voting": Rule(make=Voting),
    "log-mean": Rule(make=LogMean),
    "stacking": Rule(fit=stacked, numbers=True),
    "adaptive": Rule(make=Adaptive),
    "gate": Rule(fit=gated),
}


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """A share of every prediction is spread evenly over the classes: none is certain."""

    share: float

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        spread: np.ndarray = (1 - self.share) * shares + self.share / shares.shape[1]
        return spread

    def write(self, nodes: Nodes, shares: str) -> str:
        kept = nodes.add("Mul", shares, nodes.constant(1 - self.share))
        mean = nodes.add("ReduceMean", shares, nodes.constant([1], np.int64), keepdims=1)  # of shares: 1 / classes
        return nodes.add("Add", kept, nodes.add("Mul", mean, nodes.constant(self.share)))


def log_loss(shares: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative logarithm of the label's probability."""
    return -float(np.log(np.maximum(shares[np.arange(len(labels)), labels], LEAST)).mean())


def folds(labels: np.ndarray, count: int, seed: int, classes: Sequence[int] | None) -> list[np.ndarray]:
    """Indices of `count` disjoint parts of the samples, in each of which classes are as frequent as in all.

    Args:
        labels: classes `(N,)`, or numbers `(N, C)`.
        classes: those that no part may be without; None: labels are numbers.

    Raises:
        ValueError: a class with fewer samples than folds; the text says which.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if classes is not None:
        numbers = np.array([int((labels == each).sum()) for each in classes])
        if numbers.min() < count:
            rare = classes[int(numbers.argmin())]
            fewer = f"set folds to {numbers.min()}, or " if numbers.min() > 1 else ""
            raise ValueError(
                f"class {rare} has {numbers.min()} sample(s) for {count} folds: one would be without it; "
                f"{fewer}give the class more samples"
            )
        order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[start::count]) for start in range(count)]
