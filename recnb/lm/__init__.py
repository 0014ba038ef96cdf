"""The language model: tokenizer, base, adapters, recommender, the catalogue automaton, parsing."""
