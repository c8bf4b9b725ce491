"""Block formats: what types there are (table), weights to blocks and back (codec),
what they lose (error).
"""

from dynquant.quants.codec import (
    NotFiniteError,
    active_isa,
    decode,
    encode,
    encode_stored,
    error_sums,
    isas,
)
from dynquant.quants.error import ErrorSums, TensorError
from dynquant.quants.table import ALL, QuantType, quant_type, unknown_type

__all__ = [
    "ALL",
    "ErrorSums",
    "NotFiniteError",
    "QuantType",
    "TensorError",
    "active_isa",
    "decode",
    "encode",
    "encode_stored",
    "error_sums",
    "isas",
    "quant_type",
    "unknown_type",
]
