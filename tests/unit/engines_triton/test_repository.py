"""The model repository as Triton will read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.triton.adapter import TINY_MODEL
from engines.triton.repository import ModelSpec, model_config, write_repository
from engines.triton.tensors import INPUTS, OUTPUTS, Dialect


@pytest.mark.parametrize("dialect", list(Dialect))
def test_config_declares_the_dialects_tensors(dialect: Dialect) -> None:
    """Proves that config.pbtxt parses as Triton's own message and names exactly the dialect's tensors."""
    config = text_format.Parse(model_config(ModelSpec(dialect, TINY_MODEL)), model_config_pb2.ModelConfig())
    assert [tensor.name for tensor in config.input] == [tensor.name for tensor in INPUTS[dialect]]
    assert [tensor.name for tensor in config.output] == [tensor.name for tensor in OUTPUTS[dialect]]
    assert [tensor.optional for tensor in config.input] == [tensor.optional for tensor in INPUTS[dialect]]
    assert config.model_transaction_policy.decoupled
    assert config.parameters["dialect"].string_value == dialect.value


def test_kv_cache_holds_at_least_one_context() -> None:
    """Shows that no setting makes a KV cache in which a request the model allows would never fit."""
    spec = ModelSpec(Dialect.ENSEMBLE, TINY_MODEL, kv_tokens=1)
    config = text_format.Parse(model_config(spec), model_config_pb2.ModelConfig())
    assert config.parameters["kv_capacity_tokens"].string_value == "4096"


def test_paths_with_any_characters_survive(tmp_path: Path) -> None:
    """Shows that a folder's name cannot break the text format."""
    folder = tmp_path / 'a "b" é'
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    config = text_format.Parse(model_config(ModelSpec(Dialect.ENSEMBLE, folder)), model_config_pb2.ModelConfig())
    assert config.parameters["model_directory"].string_value == str(folder)


def test_the_repository_is_complete_and_replaces_an_older_one(tmp_path: Path) -> None:
    """Shows what is written, and that nothing of another dialect is left behind."""
    write_repository(ModelSpec(Dialect.ENSEMBLE, TINY_MODEL), tmp_path / "r")
    assert write_repository(ModelSpec(Dialect.LLMAPI, TINY_MODEL), tmp_path / "r") == "tensorrt_llm"
    files = {str(path.relative_to(tmp_path / "r")) for path in (tmp_path / "r").rglob("*") if path.is_file()}
    package = "tensorrt_llm/1/fairlead_triton_backend/"
    assert files == {"tensorrt_llm/config.pbtxt", "tensorrt_llm/1/model.py"} | {
        package + name for name in ("__init__.py", "dialects.py", "model.py", "step_loop.py", "text.py")
    }
