"""Where a profile departs from the paper: the paper's value of every knob that it names."""

PAPER = {
    "data.history_length": 10,
    "data.latest_share": 1.0,
    "teacher.transitions": 0.0,
    "instructions.sequential": 0,
    "instructions.category": 0,
    "instructions.proportion": 0,
    "instructions.search": 0,
    "instructions.chat_share": 1 / 3,
    "instructions.k_max": 10,
    "instructions.k_draws": 1,
    "instructions.asides": 0.0,
    "instructions.pairs": 0,
    "instructions.wordings": "paper",
    "instructions.share_order": "teacher",
    "instructions.validation_users": 320,
    "instructions.fidelity": "paper",
    "model.name": "meta-llama/Llama-2-7b-chat-hf",
    "base.teacher_embeddings": False,
    "base.repeat_weight": 0.0,
    "sft.rank": 16,
    "sft.alpha": 8,
    "sft.learning_rate": 0.001,
    "sft.muon_learning_rate": 0.0,
    "sft.batch_size": 64,
    "sft.epochs": 30.0,
    "sft.max_tokens": 1024,
    "sft.repeat_weight": 0.0,
    "ppo.steps": 3000,
    "ppo.pair_kinds": [],
    "ppo.task_draw": "turns",
    "ppo.samples": 2,
    "ppo.temperature": 0.7,
    "ppo.learning_rate": 5e-6,
    "ppo.critic_learning_rate": 5e-6,
    "ppo.rank": 4,
    "ppo.alpha": 2,
    "ppo.kl_weight": 0.3,
    "ppo.list_weight": 10.0,
    "ppo.item_reward": True,
    "ppo.gamma": 0.99,
    "ppo.gae_lambda": 0.95,
    "ppo.clip": 0.2,
    "ppo.value_weight": 0.5,
    "ppo.value_clip_after": 0,
    "ppo.critic_start": "zero",
    "ppo.baseline": "critic",
    "ppo.hidden_seen": "rank",
    "ppo.entropy_weight": 0.01,
    "ppo.k_min": 1,
    "ppo.k_max": 10,
    "ppo.fidelity": "paper",
    "evaluation.format_k": (11, 15),
}
"""The paper's value, or the reading of a sentence or equation that the default of the knob is."""
EACH = {
    "instructions.sequential": "one a user",
    "instructions.category": "one a user",
    "instructions.proportion": "one a user",
    "instructions.search": "one an item",
}
"""What 0 means."""


def deviations(profile):
    """The knobs whose value is not the paper's.

    Returns:
        List of ``(knob, value here, the paper's)`` as text.
    """
    rows = []
    for knob, paper in PAPER.items():
        section, name = knob.split(".")
        here = getattr(getattr(profile, section), name)
        if here != paper:
            rows.append((knob, _text(here), EACH.get(knob) or _text(paper)))
    return rows


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
