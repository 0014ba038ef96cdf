"""How it is made fast: packed passes, cache, decoding, losses with written-out gradients, Muon.

The method can be understood without this folder. Every fast path has its slow twin in ``tests/``.
"""
