"""Engines that speak OpenAI's API: vLLM, SGLang, llama.cpp, a provider, another Fairlead."""
