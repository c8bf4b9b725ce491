"""Roles and architectures that the gguf package does not have yet; the oracle is llama.cpp."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import pytest
from handmade import computed_tensor

from dynquant.arch.families import graphs
from dynquant.recipe.newer_names import NEWER_ARCHITECTURES, NEWER_ROLES
from dynquant.recipe.protection import protection
from dynquant.recipe.roles import ROLES
from dynquant.recipe.values import ARCHITECTURES


@pytest.fixture(scope="module")
def library() -> bytes:
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    if found is None or found.origin is None:
        pytest.skip("needs xllamacpp")
    return Path(found.origin).read_bytes()


def test_the_gguf_package_does_not_have_them() -> None:
    """Remove those that a later release has."""
    known = {name.removeprefix("blk.{bid}.") for name in gguf.TENSOR_NAMES.values()}
    assert set() == NEWER_ROLES & known
    assert set() == NEWER_ARCHITECTURES & set(gguf.MODEL_ARCH_NAMES.values())


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_has_the_names(library: bytes) -> None:
    made_on_the_way = {"v.resample_query_1024", "v.resample_query_768"}  # with a number
    names = (NEWER_ROLES | NEWER_ARCHITECTURES) - made_on_the_way
    assert {name for name in names if name.encode() not in library} == set()


def test_recipes_can_name_them() -> None:
    assert {"hc_attn_fn", "indexer.q_proj", "ple_key", "attn_compressor_kv"} <= ROLES


def test_recipes_can_name_the_architecture_of_every_family() -> None:
    assert set(graphs()) <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    "role", ["hc_attn_up", "indexer.attn_k", "ssm_f_a", "ssm_beta", "attn_k_b", "attn_kv_a_mqa"]
)
def test_tensors_of_glm5_next_are_protected_there_only(role: str) -> None:
    tensor = computed_tensor(f"blk.0.{role}.weight", 4, 256)
    assert protection(tensor, "deepseek2") is None
    found = protection(tensor, "glm5-next")
    assert found is not None
    assert found.type.name == "F32"
