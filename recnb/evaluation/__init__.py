"""Evaluation: fixed request sets, stored answers, metrics with intervals, tables laid out as the paper's."""
