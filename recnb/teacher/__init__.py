"""The conventional recommender that labels instructions and scores rewards: SASRec, and simple baselines beside it."""
