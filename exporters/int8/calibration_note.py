"""What an INT8 file says of the data that its ranges come from."""

import json

import onnx

_KEY = "edgesmith.calibration"  # in the file's metadata


def write(model: onnx.ModelProto, data: str, **facts: str | int) -> None:
    """Add the note, in place.

    Args:
        model: of which a file is made.
        data: digest of the samples; see the caller for what it is of.
        facts: whatever else a reader of the file wants to know.
    """
    model.metadata_props.add(key=_KEY, value=json.dumps({"data": data, **facts}, sort_keys=True))


def data_of(model: onnx.ModelProto) -> str:
    """The digest in the note; empty where there is none that can be read."""
    text = next((entry.value for entry in model.metadata_props if entry.key == _KEY), "")
    try:
        note = json.loads(text)
    except ValueError:
        return ""
    found = note.get("data") if isinstance(note, dict) else None
    return found if isinstance(found, str) else ""
