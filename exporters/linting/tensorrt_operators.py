"""Operators that TensorRT's ONNX parser has no importer for, as it says itself (`OnnxParser.supports_operator`, 1.7).

The parser goes by an operator's name and not by its domain. tests/exporters/test_lint_truth.py asks it again for each.
"""

# Of ONNX's own operators, those that work on integers in place of Q/DQ pairs.
INTEGER = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")
# Of ONNX's own operators, those that TensorRT has a plugin for, or a layer, and TensorRT for RTX has not.
PLUGINS = ("CausalConvWithState", "DeformConv", "LinearAttention", "NonZero", "RoiAlign")
# The rest of ONNX's own operators that it does not know.
UNSUPPORTED = (
    "AffineGrid",
    "Bernoulli",
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CenterCropPad",
    "Col2Im",
    "Compress",
    "ConcatFromSequence",
    "CumProd",
    "DFT",
    "Det",
    "ImageDecoder",
    "MaxRoiPool",
    "MaxUnpool",
    "MelWeightMatrix",
    "Multinomial",
    "NegativeLogLikelihoodLoss",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "RegexFullMatch",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SoftmaxCrossEntropyLoss",
    "SplitToSequence",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "SwiGLU",
    "TfIdfVectorizer",
    "Unique",
)
# Names outside ONNX's own set that it takes, whatever their domain.
FOREIGN = (
    "GroupQueryAttention",
    "ImageScaler",
    "MatMulNBits",
    "MultiHeadAttention",
    "ParametricSoftplus",
    "ScaledTanh",
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "TRT_AveragePool",
    "TRT_BlockQuantize",
    "TRT_FP8DequantizeLinear",
    "TRT_FP8QuantizeLinear",
    "TRT_INT4DequantizeLinear",
)
# Names outside ONNX's own set, written by the tools that quantize, that it does not take.
QUANTIZED_FOREIGN = (
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConcat",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMul",
    "QLinearReduceMean",
    "QLinearSigmoid",
    "QLinearSoftmax",
)
# Input that it must know when it builds: operator -> index.
BUILD_TIME_INPUTS = {
    "Dropout": 2,
    "ReduceL1": 1,
    "ReduceL2": 1,
    "ReduceLogSum": 1,
    "ReduceLogSumExp": 1,
    "ReduceMax": 1,
    "ReduceMean": 1,
    "ReduceMin": 1,
    "ReduceProd": 1,
    "ReduceSum": 1,
    "ReduceSumSquare": 1,
    "STFT": 1,
}
# It has the first of their outputs only.
ONE_OUTPUT = ("Attention", "LayerNormalization", "MaxPool")
# It pools neighbours only.
UNDILATED = ("AveragePool", "LpPool", "MaxPool")
