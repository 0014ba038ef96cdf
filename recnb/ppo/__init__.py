"""The RL stage (2.3): rule-based rewards, PPO arithmetic, and the trainer that uses both."""
