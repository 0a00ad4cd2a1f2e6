"""The table of targets."""

from .onnxruntime_cpu import OnnxRuntimeCpu
from .onnxruntime_gpu import OnnxRuntimeGpu
from .onnxruntime_openvino import OnnxRuntimeOpenVino
from .openvino import OpenVino
from .target import Target
from .tensorrt import TensorRT

TARGETS: dict[str, Target] = {
    "onnxruntime-cpu": OnnxRuntimeCpu(),
    "onnxruntime-x86": OnnxRuntimeCpu(name="onnxruntime-x86", cpu="x86"),
    "onnxruntime-arm": OnnxRuntimeCpu(name="onnxruntime-arm", cpu="arm"),
    "onnxruntime-cuda": OnnxRuntimeGpu(name="onnxruntime-cuda", device="cuda"),
    "onnxruntime-tensorrt": OnnxRuntimeGpu(name="onnxruntime-tensorrt", device="tensorrt"),
    "onnxruntime-openvino": OnnxRuntimeOpenVino(),
    "openvino": OpenVino(),
    "tensorrt": TensorRT(),
}
