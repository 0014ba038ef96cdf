"""Seconds of 100 steps of a small Transformer: what threads that spin cost beside other work.

    python benchmarks/waits.py
    GOMP_SPINCOUNT=1000 python benchmarks/waits.py

Start a busy loop, or another training, beside it, and compare.
"""

import time

import torch


def step(model, optimizer, x):
    """One training step."""
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def main():
    """Ten steps to warm up, a hundred that count."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.TransformerEncoderLayer(64, 2, 256, dropout=0.2, batch_first=True),
        torch.nn.Linear(64, 256),
        torch.nn.GELU(),
        torch.nn.Linear(256, 64),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(128, 50, 64)
    for _ in range(10):
        step(model, optimizer, x)
    started = time.perf_counter()
    for _ in range(100):
        step(model, optimizer, x)
    print(f"{torch.get_num_threads()} threads: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
