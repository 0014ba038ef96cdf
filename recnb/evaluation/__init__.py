"""Evaluation: fixed request sets, stored answers, metrics with intervals, the paper's tables."""
