"""The classes of Keras 2 and 3 that make layers and what belongs to them, and run nothing that a file brings along."""

from __future__ import annotations

__all__ = ["KERAS_CLASSES"]

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
"""After keras.io/api, without ``Lambda``, ``TorchModuleWrapper``, ``TFSMLayer`` and layers that read other files."""
