"""Triton and TensorRT-LLM: the adapter, and a real Triton that runs a real LLM engine on the CPU."""
