"""A fitted scikit-learn estimator to ONNX through skl2onnx, checked against the estimator before it is believed."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import compose, helper

from ..core.errors import ExportError, TaskError
from ..core.values import Arrays, TensorSpec
from .graph import onnx_file
from .sessions.ort_session import OnnxRuntimeSession

_OPSET = {"": 18, "ai.onnx.ml": 3}  # the former is what torch's exporter writes, so that both can stand in one file
_ATOL, _RTOL = 1e-4, 1e-3  # of the output's largest value: the estimator computes in double precision


def is_estimator(model: Any) -> bool:
    """Whether it is an estimator of scikit-learn's kind: it has `fit`, `predict` and `get_params`, and is no class."""
    return not isinstance(model, type) and all(hasattr(model, name) for name in ("fit", "predict", "get_params"))


def check_convertible(estimator: Any, where: str) -> None:
    """It is fitted and, where it tells classes apart, gives their probabilities, of one thing.

    Raises:
        TaskError: with what to do.
    """
    if importlib.util.find_spec("skl2onnx") is None:
        raise TaskError(f"{where}: scikit-learn estimators need skl2onnx: pip install 'edgesmith[sklearn]'")
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise TaskError(f"{where}: the estimator is not fitted; fit it in the task, on the 'train' split") from error
    except Exception:  # of another library's estimator, of which this cannot be told
        pass
    classes, kind = getattr(estimator, "classes_", None), type(estimator).__name__
    if isinstance(classes, list):  # one array for each of several outputs
        raise TaskError(f"{where}: this {kind} classifies {len(classes)} things at once; fit one for each of them")
    if classes is not None and not hasattr(estimator, "predict_proba"):
        raise TaskError(
            f"{where}: a {kind} gives no probabilities (it has no predict_proba); wrap it in a CalibratedClassifierCV, "
            "fitted on the 'train' split"
        )


def convert(
    estimator: Any, inputs: tuple[TensorSpec, ...], output: str, samples: Arrays, where: str
) -> onnx.ModelProto:
    """Write an estimator as ONNX with a dynamic batch axis, and prove that it computes what the estimator does.

    Args:
        estimator: fitted; a classifier gives `predict_proba` `(N, classes)`, a regressor `predict` `(N, targets)`.
        inputs: the one input `(batch, features)`, float32.
        samples: real inputs by name, for the check.
        where: in front of errors.

    Raises:
        TaskError: skl2onnx is missing; not fitted; an input of another kind; an estimator that skl2onnx does not know.
        ExportError: the file's outputs differ.
    """
    check_convertible(estimator, where)
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 2:
        got = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in inputs)
        raise TaskError(f"{where}: an estimator takes one float32 input (batch, features), the task has: {got}")
    model = _written(estimator, inputs[0], output, where)
    _check(model, estimator, samples[inputs[0].name], output, where)
    return model


def _written(estimator: Any, spec: TensorSpec, output: str, where: str) -> onnx.ModelProto:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    classifies = hasattr(estimator, "classes_")
    try:
        model: onnx.ModelProto = convert_sklearn(
            estimator,
            name="estimator",  # else a random one, and the file would differ from run to run
            initial_types=[(spec.name, FloatTensorType([None, spec.shape[1]]))],
            options={id(estimator): {"zipmap": False}} if classifies else None,
            target_opset=_OPSET,
        )
    except Exception as error:  # it raises many kinds, all of which mean the same to the user
        line = next(iter(str(error).strip().splitlines()), "")
        raise TaskError(
            f"{where}: skl2onnx cannot convert {type(estimator).__name__}: {type(error).__name__}: {line}"
        ) from error
    model = compose.add_prefix(
        model, "estimator/", rename_inputs=False
    )  # one of its names may be that of the task's output
    graph = model.graph
    made = next(value for value in graph.output if not value.name.endswith("label"))
    graph.node.append(helper.make_node("Identity", [made.name], [output], name="output"))
    shape = ["batch", *(axis.dim_value for axis in made.type.tensor_type.shape.dim[1:])]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    versions = {entry.domain: entry.version for entry in model.opset_import}  # it writes one of them twice
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    return model


def _check(model: onnx.ModelProto, estimator: Any, samples: np.ndarray, output: str, where: str) -> None:
    expected = np.asarray(
        estimator.predict_proba(samples) if hasattr(estimator, "classes_") else estimator.predict(samples), np.float64
    )
    with tempfile.TemporaryDirectory(prefix="edgesmith-estimator-") as folder:
        onnx_file.save(model, Path(folder) / "model.onnx")
        session = OnnxRuntimeSession(Path(folder) / "model.onnx")
        actual = session.run({session.inputs[0].name: samples})[output]
        session.close()
    difference = np.abs(expected.reshape(len(samples), -1) - actual.reshape(len(samples), -1))
    allowed = _ATOL * max(1.0, float(np.abs(expected).max())) + _RTOL * np.abs(expected).reshape(len(samples), -1)
    if not bool((difference <= allowed).all()):
        raise ExportError(f"{where}: the converted file differs from the estimator by up to {difference.max():.3g}")
