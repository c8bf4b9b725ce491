"""Block formats: what types there are (table), weights to blocks and back (codec)."""

from dynquant.quants.codec import NotFiniteError, active_isa, decode, encode, encode_stored, isas
from dynquant.quants.table import ALL, QuantType, quant_type, unknown_type

__all__ = [
    "ALL",
    "NotFiniteError",
    "QuantType",
    "active_isa",
    "decode",
    "encode",
    "encode_stored",
    "isas",
    "quant_type",
    "unknown_type",
]
