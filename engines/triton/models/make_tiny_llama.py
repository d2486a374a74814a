"""Makes a tiny model with random weights, laid out like models/tiny-llama: for when its format has to change.

    pip install "transformers>=5.5,<6" "optimum-intel[openvino]>=1.27" torch tokenizers
    python engines/triton/models/make_tiny_llama.py OUTPUT

Not part of the platform and not run in CI; see README.md beside the model.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

VOCABULARY_SIZE = 348
CONTEXT_TOKENS = 4096
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
CHAT_TEMPLATE = """{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}assistant:"""
# What the few merges of the vocabulary are learned from.
WORDS = (
    "the quick brown fox jumps over the lazy dog; hello world, this is a tiny model with a few tokens of its own. "
    "requests wait, replicas serve, tenants share: a router picks the cheapest start and settles what it really took. "
)


def make_tokenizer() -> Any:
    """Returns a byte-level BPE tokenizer (`tokenizers.Tokenizer`) with the special tokens first."""
    library = import_module("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([WORDS * 50], trainer)
    return tokenizer


def make_model() -> Any:
    """Returns the model (`transformers.LlamaForCausalLM`) with the random weights of seed 0."""
    import_module("torch").manual_seed(0)
    library = import_module("transformers")
    return library.LlamaForCausalLM(
        library.LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Writes the Hugging Face form beside the output, then exports it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args(argv).output
    source = output.with_name(output.name + "-source")
    begin, end, padding = SPECIAL_TOKENS
    tokenizer = import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), bos_token=begin, eos_token=end, pad_token=padding
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(source)
    make_model().save_pretrained(source)
    exporter = import_module("optimum.exporters.openvino")
    exporter.main_export(str(source), output=output, task="text-generation-with-past", convert_tokenizer=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
