"""RecBole's SASRec on its own copy of MovieLens-100K, one JSON line an epoch.

Runs in the peers' environment, not in ours:

    python recbole_sasrec.py FOLDER SECONDS WIDTH LENGTH
"""

import json
import math
import sys
import time
from pathlib import Path

import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

folder, budget, width, length = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
settings = {
    "data_path": str(Path(recbole.__file__).parent / "dataset_example"),
    "checkpoint_dir": folder,
    "seed": 0,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "user_inter_num_interval": "[5,inf)",
    "item_inter_num_interval": "[5,inf)",
    "MAX_ITEM_LIST_LENGTH": length,
    "hidden_size": width,
    "inner_size": 2 * width,
    "n_layers": 2,
    "n_heads": 2,
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "train_batch_size": 2048,
    "eval_batch_size": 1024,
    "learning_rate": 0.001,
    "epochs": 1000,
    "metrics": ["Hit", "NDCG"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "show_progress": False,
    "use_gpu": False,
    "state": "ERROR",
    "eval_args": {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "mode": {"valid": "full", "test": "full"},
        "group_by": "user",
    },
}
sys.argv = sys.argv[:1]  # RecBole reads the command line itself
config = Config(model="SASRec", dataset="ml-100k", config_dict=settings)
init_seed(0, True)
dataset = create_dataset(config)
seen = {}
columns = dataset.inter_feat["user_id"].tolist(), dataset.inter_feat["item_id"].tolist()
for user, item in zip(*columns, strict=True):
    seen.setdefault(user, []).append(item)
train, valid, test = data_preparation(config, dataset)
model = get_model("SASRec")(config, train.dataset)
trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
seconds = 0.0
targets = []
for part in (valid, test):
    pairs = [zip(batch[0]["user_id"], batch[3], strict=True) for batch in part]
    targets.append({int(user): int(item) for rows in pairs for user, item in rows})


@torch.no_grad()
def ndcg(part, ahead):
    """NDCG@10 of a full ranking without what a user had before the target, as in recnb.

    Args:
        ahead: target of each user that lies later in time, which the model may rank.
    """
    model.eval()
    values = []
    for interaction, _, _, positives in part:
        scores = model.full_sort_predict(interaction).view(len(positives), -1)
        scores[:, 0] = -torch.inf
        users = interaction["user_id"].tolist()
        for row, (user, target) in enumerate(zip(users, positives.tolist(), strict=True)):
            kept = scores[row, target].clone()
            later = ahead.get(user, target)
            kept_later = scores[row, later].clone()
            scores[row, seen[user]] = -torch.inf
            scores[row, later], scores[row, target] = kept_later, kept
            place = int((scores[row] > kept).sum())
            values.append(1 / math.log2(place + 2) if place < 10 else 0.0)
    return sum(values) / len(values)


for epoch in range(1, 1001):
    started = time.perf_counter()
    trainer._train_epoch(train, epoch - 1, show_progress=False)
    validation = ndcg(valid, targets[1])
    seconds += time.perf_counter() - started
    row = {"epoch": epoch, "seconds": seconds, "validation": validation, "test": ndcg(test, {})}
    print(json.dumps(row), flush=True)
    if seconds > budget:
        break
