"""Reading: every refusal with its exact text, and no cut, no damage that gets through as another error."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from hypothesis import given, settings, strategies as st
from onnx import helper, numpy_helper

from edgesmith.core.errors import ArtifactError
from edgesmith.exporters.graph import onnx_file

from ..conftest import Network
from ..graphs import FLOAT, graph, node, random, run

DAMAGED = "not an ONNX file, or truncated"


def linear(weight: np.ndarray | None = None) -> onnx.ModelProto:
    weight = random(4, 3) if weight is None else weight
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "y")]
    return graph(nodes, {"w": weight, "b": random(4, seed=1)}, {"x": ["batch", 3]}, {"y": ["batch", 4]})


def external(location: str, values: int = 4, **entries: object) -> onnx.TensorProto:
    """A float tensor `w` `(values,)` whose data lies in a file."""
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[values], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def adding(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """`y = x + w`, the tensor an initializer."""
    model = graph([node("Add", "x w", "y")], {}, {"x": [4]}, {"y": [4]})
    model.graph.initializer.append(tensor)
    return model


def adding_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return graph([node("Constant", "", "w", value=tensor), node("Add", "x w", "y")], {}, {"x": [4]}, {"y": [4]})


def branching(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """The tensor stands in one branch of an If."""
    out = helper.make_tensor_value_info("out", FLOAT, [4])
    branches = [
        helper.make_graph([node("Add", "x w", "out")], "then", [], [out], [tensor]),
        helper.make_graph([node("Identity", "x", "out")], "else", [], [out]),
    ]
    nodes = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "positive")]
    nodes.append(node("If", "positive", "y", then_branch=branches[0], else_branch=branches[1]))
    return graph(nodes, {"zero": np.float32(0).reshape(())}, {"x": [4]}, {"y": [4]})


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """The tensor stands in a function of the model's own."""
    model = graph([helper.make_node("F", ["x"], ["y"], domain="own")], {}, {"x": [4]}, {"y": [4]}, domains=["own"])
    body = [node("Constant", "", "w", value=tensor), node("Add", "a w", "b")]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    return model


PLACES = pytest.mark.parametrize("place", [adding, adding_constant, branching, in_function])
Place = Callable[[onnx.TensorProto], onnx.ModelProto]


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as raised:
        onnx_file.load(path)
    return str(raised.value).removeprefix(f"{path}: ")


def refusal_of(model: onnx.ModelProto, folder: Path) -> str:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return refusal(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.onnx") == "cannot read the ONNX file: No such file or directory"
    assert refusal(tmp_path) == "cannot read the ONNX file: Is a directory"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", f"{DAMAGED}: it has no graph outputs; export it again"),
        (b"This is not a model.\n" * 20, f"{DAMAGED}; export it again"),
        (b"{}", f"{DAMAGED}; export it again"),
        (b"\x08\x08", f"{DAMAGED}: it has no graph outputs; export it again"),
        (b"PK\x03\x04" + bytes(200), f"{DAMAGED}; export it again"),
    ],
)
def test_other_files(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refusal(path) == text


def test_no_cut_gets_through(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_file.save(linear(), path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            onnx_file.load(path)
    path.write_bytes(data)
    assert onnx_file.load(path) == linear()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_cut_of_an_exported_network_gets_through(
    digits: Network, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = digits.path.read_bytes()
    near_the_end = st.integers(len(whole) - 400, len(whole) - 1)
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1) | near_the_end)])
    with pytest.raises(ArtifactError):
        onnx_file.load(path)


@settings(max_examples=400, deadline=None)
@given(position=st.integers(0), mask=st.integers(1, 255))
def test_a_damaged_byte_is_no_other_error(tmp_path_factory: pytest.TempPathFactory, position: int, mask: int) -> None:
    data = bytearray(linear().SerializeToString())
    data[position % len(data)] ^= mask
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    with contextlib.suppress(ArtifactError):
        onnx_file.load(path)


def test_round_trip(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "model.onnx"
    onnx_file.save(network.model, path)
    loaded = onnx_file.load(path)
    assert loaded == network.model
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    first = path.read_bytes()
    onnx_file.save(loaded, path)
    assert path.read_bytes() == first


def test_too_large_a_model_is_refused_in_words(tmp_path: Path) -> None:
    class TooLarge:
        """The real thing takes 5 GB of memory; protobuf then raises just this."""

        def SerializeToString(self, deterministic: bool) -> bytes:
            raise EncodeError("Failed to serialize proto")

    path = tmp_path / "model.onnx"
    with pytest.raises(ArtifactError) as raised:
        onnx_file.save(TooLarge(), path)  # type: ignore[arg-type]
    text = f"{path}: the model does not fit in one ONNX file of 2 GiB: Failed to serialize proto"
    assert str(raised.value) == text
    assert not list(tmp_path.iterdir())


def test_specs_name_dynamic_axes_and_leave_weights_out() -> None:
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 3]))  # as exporters did before 2019
    model.graph.input.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", None, 7]))
    inputs, outputs = onnx_file.specs(model)
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*inputs, *outputs)] == [
        ("x", "float32", ("batch", 3)),
        ("ids", "int64", ("batch", "?", 7)),
        ("y", "float32", ("batch", 4)),
    ]


# --- weights in other files


@PLACES
def test_weights_beside_the_file_are_read(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"pad." + np.arange(4, dtype=np.float32).tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(place(external("sub/w.bin", offset=4, length=16)).SerializeToString())
    x = np.ones(4, np.float32)
    loaded = onnx_file.load(path)
    np.testing.assert_array_equal(run(loaded, {"x": x})["y"], [1, 2, 3, 4])
    assert b"w.bin" not in loaded.SerializeToString()


@PLACES
@pytest.mark.parametrize("form", ["absolute", "parent", "through a folder", "empty"])
def test_weights_outside_the_folder_are_refused(place: Place, form: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(16))
    location = {"absolute": str(secret), "parent": "../secret.bin", "through a folder": "sub/../../secret.bin"}
    written = location.get(form, "")
    assert refusal_of(place(external(written)), folder) == (
        f"tensor 'w' points outside the model's folder ('{written}'); "
        "such a file is not opened: put its weights beside it, or export it as one file"
    )


def test_an_absolute_path_into_the_folder_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    assert "points outside the model's folder" in refusal_of(adding(external(str(tmp_path / "w.bin"))), tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").symlink_to("../secret.bin")
    assert "tensor 'w' points outside the model's folder ('w.bin')" in refusal_of(adding(external("w.bin")), folder)
    (folder / "linked").symlink_to("..")
    text = refusal_of(adding(external("linked/secret.bin")), folder)
    assert "tensor 'w' points outside the model's folder ('linked/secret.bin')" in text


def test_the_weights_of_a_linked_model_lie_beside_the_model(tmp_path: Path) -> None:
    real, other = tmp_path / "real", tmp_path / "other"
    real.mkdir()
    other.mkdir()
    (real / "model.onnx").write_bytes(adding(external("w.bin")).SerializeToString())
    (real / "w.bin").write_bytes(np.full(4, 5, np.float32).tobytes())
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (other / "w.bin").symlink_to("../secret.bin")  # what stands beside the link is nobody's
    (other / "model.onnx").symlink_to("../real/model.onnx")
    loaded = onnx_file.load(other / "model.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), [5, 5, 5, 5])


def test_a_second_name_of_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    os.link(tmp_path / "secret.bin", folder / "w.bin")
    text = refusal_of(adding(external("w.bin")), folder)
    assert text.startswith("tensor 'w': its data cannot be read: ")
    assert "hard link" in text


def test_nothing_is_read_before_all_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    model = adding(external("w.bin"))
    model.graph.initializer.add().CopyFrom(external("../passwd"))
    model.graph.initializer[1].name = "v"
    opened = []
    monkeypatch.setattr(onnx_file, "load_external_data_for_tensor", lambda *arguments: opened.append(arguments))
    assert "tensor 'v' points outside the model's folder ('../passwd')" in refusal_of(model, tmp_path)
    assert not opened


def test_missing_and_short_data(tmp_path: Path) -> None:
    assert refusal_of(adding(external("w.bin")), tmp_path) == "tensor 'w': its data file 'w.bin' is missing"
    (tmp_path / "w.bin").write_bytes(bytes(15))
    assert refusal_of(adding(external("w.bin", length=16)), tmp_path) == (
        "tensor 'w': its data file 'w.bin' holds 15 bytes and 16 are needed; it is truncated"
    )
    (tmp_path / "w.bin").write_bytes(bytes(1016))
    assert refusal_of(adding(external("w.bin", offset=1001, length=16)), tmp_path) == (
        "tensor 'w': its data file 'w.bin' holds 1,016 bytes and 1,017 are needed; it is truncated"
    )
    (tmp_path / "w.bin").write_bytes(bytes(8))
    text = refusal_of(adding(external("w.bin")), tmp_path)  # without a length there is only the tensor's own size
    assert text.startswith("tensor 'w' cannot be read: ") and text.endswith("; the file is damaged")


@pytest.mark.parametrize("entries", [{"offset": -4}, {"length": -1}, {"offset": "four"}])
def test_senseless_places_of_data(entries: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    text = refusal_of(adding(external("w.bin", **entries)), tmp_path)
    assert text.startswith("tensor 'w': where its data lies cannot be read: ")


# --- what stands in the tensors


@PLACES
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_nan_is_refused_wherever_it_stands(place: Place, kind: type, tmp_path: Path) -> None:
    values = np.array([0, 1, np.nan, 3]).astype(kind)
    assert refusal_of(place(numpy_helper.from_array(values, "w")), tmp_path) == (
        "weight 'w' holds NaN or infinity; train or export the model again"
    )


def test_an_infinite_weight_is_refused(tmp_path: Path) -> None:
    weight = random(4, 3)
    weight[1, 2] = -np.inf
    assert refusal_of(linear(weight), tmp_path) == "weight 'w' holds NaN or infinity; train or export the model again"


@PLACES
def test_an_attention_mask_may_be_infinite(place: Place, tmp_path: Path) -> None:
    mask = np.array([0, 0, -np.inf, -np.inf], np.float32)
    path = tmp_path / "model.onnx"
    onnx_file.save(place(numpy_helper.from_array(mask, "w")), path)
    np.testing.assert_array_equal(run(onnx_file.load(path), {"x": np.ones(4, np.float32)})["y"], 1 + mask)


@pytest.mark.parametrize("kind", [0, 99, onnx.TensorProto.DOUBLE])
def test_a_tensor_of_no_or_another_type_is_damage(kind: int, tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.data_type = kind
    text = refusal_of(adding(tensor), tmp_path)
    assert text.startswith("tensor 'w' cannot be read: ") and text.endswith("; the file is damaged")


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    model = linear()
    model.graph.node[1].input[0] = "nobody"
    text = refusal_of(model, tmp_path)
    assert text.startswith("not a valid ONNX model: ") and "nobody" in text
    del model.opset_import[:]
    assert refusal_of(model, tmp_path).startswith("not a valid ONNX model: ")


def test_shapes_of_outputs_follow_from_the_graph(tmp_path: Path) -> None:
    """Exporters leave them out behind control flow, and runtimes do without."""
    model = linear()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    _, (output,) = onnx_file.specs(onnx_file.load(tmp_path / "m.onnx"))
    assert (output.name, output.dtype, output.shape) == ("y", "float32", ("batch", 4))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError) as caught:
        onnx_file.load(tmp_path / "m.onnx")
    path = tmp_path / "m.onnx"
    assert str(caught.value) == f"{path}: 'x' has no shape, and none follows from the graph; export it again"


def test_an_invalid_graph_is_not_said_to_lack_a_shape_alone(tmp_path: Path) -> None:
    model = linear()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    model.graph.node[1].input[0] = "nobody"
    text = refusal_of(model, tmp_path)
    assert text.startswith("not a valid ONNX model: ") and "nobody" in text


@pytest.mark.parametrize("field", [b"Relu", b"Gemm", b"transB"])
def test_a_name_that_is_no_text(field: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear().SerializeToString().replace(field, b"\xff" + field[1:]))
    with pytest.raises(ArtifactError) as error:
        onnx_file.load(path, valid=False)
    assert str(error.value) == f"{path}: damaged: a name in it is no UTF-8 text; export it again"
