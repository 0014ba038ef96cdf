"""The conventional recommender behind labels and rewards: SASRec, beside simple baselines."""
