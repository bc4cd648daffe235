"""Scans Keras models: finds, in the model's configuration, the classes that loading the model would import.

A configuration (``config.json`` in ``.keras``, an attribute in HDF5) has the class name of every part of the model, and
Keras imports the class from the module in ``module`` (keras/src/saving/serialization_lib.py). A list of known names has
Keras's own classes that only make layers; every other class counts as unknown code. So ``Lambda`` and
``TorchModuleWrapper``, which run code from the file, need no list of bad classes: they are not among the known names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ....errors import CheckpointError, FormatError
from ....formats.base.slice import FileSlice
from ....formats.exported.hdf5 import FORMAT as HDF5
from ....formats.hdf5.groups import OUTSIDE
from ..context import ScanItem, shortened
from ..findings import Fault, Verdict

__all__ = ["KERAS_CLASSES", "look_at_hdf5", "why_code"]

# The classes of Keras 2 and 3 that make layers and their parts, and run no code from the file.

# fmt: off
KERAS_CLASSES = frozenset((
    "Functional", "Model", "Sequential", "InputLayer", "InputSpec", "Layer", "DTypePolicy", "DTypePolicyMap",
    "FloatDTypePolicy", "Policy", "QuantizedDTypePolicy", "Dense", "EinsumDense", "Embedding", "ReversibleEmbedding",
    "Identity", "Masking", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
    "SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D", "Convolution1D", "Convolution2D",
    "Convolution3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "MaxPooling1D", "MaxPooling2D",
    "MaxPooling3D", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "AdaptiveAveragePooling1D",
    "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D", "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D",
    "AdaptiveMaxPooling3D", "LSTM", "GRU", "SimpleRNN", "RNN", "LSTMCell", "GRUCell", "SimpleRNNCell",
    "StackedRNNCells", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Bidirectional", "TimeDistributed", "Wrapper",
    "CuDNNGRU", "CuDNNLSTM", "BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization",
    "SpectralNormalization", "UnitNormalization", "Normalization", "Rescaling", "Attention", "AdditiveAttention",
    "MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention", "Activation", "ReLU", "LeakyReLU", "PReLU",
    "ELU", "Softmax", "ThresholdedReLU", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum",
    "Concatenate", "Dot", "Flatten", "Reshape", "Permute", "RepeatVector", "Cropping1D", "Cropping2D", "Cropping3D",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Dropout",
    "AlphaDropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    "ActivityRegularization", "CategoryEncoding", "Discretization", "Hashing", "CenterCrop", "Resizing",
    "RandomBrightness", "RandomContrast", "RandomCrop", "RandomFlip", "RandomRotation", "RandomTranslation",
    "RandomZoom", "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform",
    "Ones", "Orthogonal", "OrthogonalInitializer", "RandomNormal", "RandomUniform", "TruncatedNormal",
    "VarianceScaling", "Zeros", "IdentityInitializer", "SeedGenerator", "L1", "L2", "L1L2", "OrthogonalRegularizer",
    "MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm", "SGD", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta",
    "Adafactor", "Ftrl", "Lamb", "Lion", "Nadam", "RMSprop", "LossScaleOptimizer", "Muon", "CosineDecay",
    "CosineDecayRestarts", "ExponentialDecay", "InverseTimeDecay", "PiecewiseConstantDecay", "PolynomialDecay",
    "BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy", "CategoricalFocalCrossentropy",
    "SparseCategoricalCrossentropy", "MeanSquaredError", "MeanAbsoluteError", "MeanAbsolutePercentageError",
    "MeanSquaredLogarithmicError", "CosineSimilarity", "Hinge", "SquaredHinge", "CategoricalHinge", "Huber",
    "KLDivergence", "LogCosh", "Poisson", "CTC", "Dice", "Tversky", "Accuracy", "BinaryAccuracy",
    "CategoricalAccuracy", "SparseCategoricalAccuracy", "TopKCategoricalAccuracy", "SparseTopKCategoricalAccuracy",
    "AUC", "Precision", "Recall", "F1Score", "FBetaScore", "Mean", "MeanMetricWrapper", "RootMeanSquaredError",
    "R2Score", "IoU", "MeanIoU", "OneHotIoU", "OneHotMeanIoU", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__",
    "__slice__", "__keras_tensor__", "CompileConfig", "TensorShape",
))
# fmt: on
"""The classes in keras.io/api, except ``Lambda``, ``TorchModuleWrapper``, ``TFSMLayer`` and layers that read other
files."""


_STEP = 4 << 20
_OVERLAP = 4096
"""Overlap of two consecutive reads in bytes: at least the length of the longest class name with its module."""

_MODULE = re.compile(
    r"(?:tf_)?keras(?:\.src)?(?:\.(?:activations|constraints|dtype_policies|initializers|layers|losses|metrics|models|"
    r"optimizers|quantizers|random|regularizers)(?:\.\w+)*)?"
)
_TEXT = rb'"((?:[^"\\]|\\.){0,300})"'
_ATTRIBUTE = re.compile(rb'"(class_name|module)"\s*:\s*%b' % _TEXT)
_SPELLED = re.compile(rb"\\u00[2-7][0-9a-fA-F]")
"""Matches a printable ASCII character as a JSON escape. No library writes these, but they could hide a class name."""
_SHOWN = 5
_MODEL = b"model_config"
"""The HDF5 attribute with the model's configuration (keras/src/legacy/saving/legacy_h5_format.py)."""


def why_code(pairs: list[tuple[str, object]]) -> Iterator[str]:
    """Yield a note for each class or module that is unknown code and that a JSON object would make Keras import.

    ``pairs`` are the keys and values of the object. If a key occurs twice, both values are checked, because JSON
    readers differ in which of them they use.
    """
    values: dict[str, list[object]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    names = [name for name in values.get("class_name", ()) if isinstance(name, str) and name not in KERAS_CLASSES]
    is_keras = "class_name" in values and "config" in values
    yield from (_why_class(name) for name in names if is_keras or name.endswith("Lambda"))
    if is_keras:
        yield from (_why_module(module) for module in values.get("module", ()) if module and not _is_keras(module))


def _is_keras(module: object) -> bool:
    return isinstance(module, str) and _MODULE.fullmatch(module) is not None


def _why_class(name: str) -> str:
    if name.endswith("Lambda") or name == "__lambda__":
        return f"Keras runs the compiled Python of {name}"
    return f"Keras creates {name}, which is not in ckpt's list of harmless Keras classes"


def _why_module(module: object) -> str:
    return f"Keras imports {module}"


def look_at_hdf5(place: ScanItem) -> None:
    """Search the bytes of an HDF5 file for the class names of a Keras model.

    HDF5 is not decoded: strings in its attributes are not compressed, so they can be found in the bytes.
    """
    why: dict[str, None] = {}
    is_model = found = spelled = False
    for data in _pieces(place):
        is_model |= _MODEL in data
        for attribute in _ATTRIBUTE.finditer(data):
            found |= attribute[1] == b"class_name"
            why.update(dict.fromkeys(_why(attribute[1], attribute[2])))
        spelled |= is_model and _SPELLED.search(data) is not None
    if spelled:
        why[r"its configuration has letters written as \u escapes, which can hide class names"] = None
    if why:
        place.add("Keras model in HDF5", Verdict.CODE, notes=shortened(why, _SHOWN))
    elif is_model and not found:
        place.add(
            "Keras model in HDF5", fault=Fault("unreadable", "its layer classes were not found: HDF5 is not decoded")
        )
    else:
        place.add("HDF5", notes=("recognised, but its contents are not decoded", *_leads_out(place)))


def _leads_out(place: ScanItem) -> Iterator[str]:
    """Yield a note if an HDF5 file links to other files, or stores values there: the HDF5 library opens these files."""
    try:
        HDF5.read(FileSlice(place.file, 0, place.file.size))
    except CheckpointError as error:
        if isinstance(error, FormatError) and error.rule == OUTSIDE:
            yield "it refers to other files, which the HDF5 library opens by itself"


def _why(key: bytes, raw: bytes) -> Iterator[str]:
    try:
        text = json.loads(b'"%b"' % raw)
    except ValueError:
        text = raw.decode("latin-1")
    if key == b"module" and text and not _is_keras(text):
        yield _why_module(text)
    elif key == b"class_name" and text not in KERAS_CLASSES:
        yield _why_class(text)


def _pieces(place: ScanItem) -> Iterator[bytes]:
    file, at = place.file, 0
    while at < file.size:
        data = file.read(at, min(_STEP + _OVERLAP, file.size - at))
        place.state.budget.take("searched", len(data))
        yield data
        at += _STEP
