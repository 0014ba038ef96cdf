"""The language model: tokenizer, base, adapters, generation, the catalogue automaton, parsing."""
