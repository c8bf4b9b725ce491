"""Block formats: the table of types, the encoders and their door, decoding, and errors."""

from dynquant.quants.codec import NotFiniteError, active_isa, decode, isas
from dynquant.quants.encoder import (
    CORE,
    ENCODER_REVISION,
    Batch,
    Encoded,
    Encoder,
    encode,
    is_copied,
    keeps_weights,
)
from dynquant.quants.error import ErrorSums, TensorError
from dynquant.quants.table import ALL, QuantType, quant_type, unknown_type

__all__ = [
    "ALL",
    "CORE",
    "ENCODER_REVISION",
    "Batch",
    "Encoded",
    "Encoder",
    "ErrorSums",
    "NotFiniteError",
    "QuantType",
    "TensorError",
    "active_isa",
    "decode",
    "encode",
    "is_copied",
    "isas",
    "keeps_weights",
    "quant_type",
    "unknown_type",
]
