"""Runs inside the Triton image: Triton on the gpu profile's ports, serving the tiny model as TensorRT-LLM would."""

import os
from pathlib import Path

from engines.triton.environment import default_directory, open_environment
from engines.triton.repository import ModelSpec, write_repository
from engines.triton.tensors import Dialect

MODEL = Path("/opt/fairlead/app/engines/triton/models/tiny-llama")
REPOSITORY = Path("/tmp/models")

environment = open_environment(default_directory())
write_repository(ModelSpec(Dialect.LLMAPI, MODEL), REPOSITORY)
os.environ["LD_LIBRARY_PATH"] = environment.library_path
os.environ["PATH"] = f"{environment.root}/bin:{os.environ['PATH']}"
del os.environ["PYTHONPATH"]  # the model's Python is another environment
ports = ("--grpc-port=8001", "--http-port=8000", "--metrics-port=8002")
paths = (f"--model-repository={REPOSITORY}", f"--backend-directory={environment.backends}")
os.execv(environment.server, [str(environment.server), *paths, *ports, "--disable-auto-complete-config"])
