"""Positions mean the same in Python and in the C core, and the core runs on this CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from dynquant.quants import ALL, ErrorSums, _core, isas
from dynquant.quants.search import EFFORTS
from dynquant.quants.stored import NUMBERS, PACKINGS
from dynquant.quants.table import FLOATS

# Features that each level of the x86-64 psABI adds, as named in /proc/cpuinfo.
LEVELS = {
    "v2": {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"},
    "v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def test_names_in_the_core_equal_those_in_python() -> None:
    assert _core.EFFORTS == EFFORTS
    assert tuple(FLOATS) == _core.STORED
    assert _core.NUMBERS == NUMBERS
    assert _core.PACKINGS == PACKINGS
    assert ErrorSums._fields == _core.SUMS


def test_the_core_has_every_type_once() -> None:
    assert sorted(name for name, _, _ in _core.TYPES) == sorted(ALL)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86-64 CPU")
def test_isa_is_available_if_the_cpu_has_all_features_of_its_level() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    line = next(s for s in cpuinfo.read_text().splitlines() if s.startswith("flags"))
    flags = set(line.partition(":")[2].split())
    expected = ["portable"]
    if LEVELS["v2"] | LEVELS["v3"] <= flags:
        expected += ["v3", "v4"] if LEVELS["v4"] <= flags else ["v3"]
    assert list(isas()) == expected
