"""How TensorRT-LLM's models behind Triton are talked to: what replica agents and routers share."""
