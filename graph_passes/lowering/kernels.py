"""Operators that onnxruntime 1.32 has CPU kernels for, by domain.

Listed here because the passes do not import onnxruntime; a test holds the list against the installed one.
Standard ops that are missing here still run where ONNX defines them as a function of others.
"""

from __future__ import annotations

from collections.abc import Mapping

CPU_KERNELS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        """
        Abs Acos Acosh Add Affine AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
        BatchNormalization BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast
        Ceil Celu Clip Col2Im Compress Concat ConcatFromSequence ConstantOfShape Conv ConvInteger
        ConvTranspose Cos Cosh Crop CumProd CumSum DFT DeformConv DepthToSpace DequantizeLinear Det Div
        Dropout DynamicQuantizeLinear DynamicSlice Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor
        GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
        GreaterOrEqual GridSample HammingWindow HannWindow HardSigmoid Hardmax Identity If ImageScaler
        InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
        LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean
        MeanVarianceNormalization MelWeightMatrix MemcpyFromHost MemcpyToHost Min Mod Mul Multinomial Neg
        NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement OptionalHasElement Or PRelu Pad
        ParametricSoftplus Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN RandomNormal
        RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
        ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch
        Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scale ScaledTanh Scan
        Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase
        SequenceInsert SequenceLength Shape Shrink Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Size
        Slice Softmax Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze StringConcat
        StringNormalizer StringSplit Sub Sum Tan Tanh TensorScatter TfIdfVectorizer ThresholdedRelu Tile
        TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
        """.split()  # noqa: SIM905 (a table)
    ),
    "com.microsoft": frozenset(
        """
        Attention AttnLSTM BeamSearch BiasGelu BifurcationDetector BranchwiseRMSNorm CDist
        CausalConvWithState ConvTransposeWithDynamicPads CropAndResize DecoderMaskedMultiHeadAttention
        DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul DynamicTimeWarping
        EmbedLayerNormalization EngramGate ExpandDims FastGelu FusedConv FusedGemm FusedMatMul GatedAdd
        GatedDeltaNet GatedRMSNorm GatherBlockQuantized GatherND GatherPacked Gelu GreedySearch GridSample
        GroupQueryAttention HyperConnectionPostMix HyperConnectionPreMix Inverse LinearAttention
        LinearAttentionGate MRotaryEmbedding MatMulBnb4 MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat
        MatMulNBits MaxpoolWithMask MoE MoEGroupRouter MultiHeadAttention MurmurHash3 NGramHashMapping
        NGramRepeatBlock NhwcMaxPool Pad QAttention QEmbedLayerNormalization QGemm QLinearAdd
        QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
        QLinearSigmoid QLinearSoftmax QLinearWhere QMoE QuantizeLinear QuickGelu Range RotaryEmbedding
        SampleOp Sampling ScaledSiLU SkipLayerNormalization SkipSimplifiedLayerNormalization
        SparseAttention SparseToDenseMatMul Tokenizer TransposeMatMul Trilu UnfoldTensor Unique
        VarlenCausalConvWithState VarlenNGramHashMapping WhisperBeamSearch WordConvEmbedding
        """.split()  # noqa: SIM905 (a table)
    ),
}
