"""A model for Triton's Python backend: openvino-genai's continuous batching behind TensorRT-LLM's tensors.

This package is copied into the model repository and runs inside Triton's stub process, in the Triton environment. It
imports nothing of Fairlead, only the standard library, numpy, openvino-genai and Triton's own module.
"""
