"""RecBole's SASRec on its own copy of MovieLens-100K, one JSON line an epoch. Runs in the peers' environment, not in ours.

python recbole_sasrec.py FOLDER SECONDS WIDTH
"""

import json
import sys
import time
from pathlib import Path

import recbole
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

folder, budget, width = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
settings = {
    "data_path": str(Path(recbole.__file__).parent / "dataset_example"), "checkpoint_dir": folder, "seed": 0,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "user_inter_num_interval": "[5,inf)",
    "item_inter_num_interval": "[5,inf)", "MAX_ITEM_LIST_LENGTH": 100, "hidden_size": width, "inner_size": 2 * width,
    "n_layers": 2, "n_heads": 2, "loss_type": "CE", "train_neg_sample_args": None, "train_batch_size": 2048,
    "eval_batch_size": 1024, "learning_rate": 0.001, "epochs": 1000, "metrics": ["Hit", "NDCG"], "topk": [10],
    "valid_metric": "NDCG@10", "show_progress": False, "use_gpu": False, "state": "ERROR",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": {"valid": "full", "test": "full"}, "group_by": "user"},
}  # fmt: skip
sys.argv = sys.argv[:1]  # RecBole reads the command line itself
config = Config(model="SASRec", dataset="ml-100k", config_dict=settings)
init_seed(0, True)
dataset = create_dataset(config)
train, valid, test = data_preparation(config, dataset)
model = get_model("SASRec")(config, train.dataset)
trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
seconds = 0.0
for epoch in range(1, 1001):
    started = time.perf_counter()
    trainer._train_epoch(train, epoch - 1, show_progress=False)
    seconds += time.perf_counter() - started
    model.eval()
    validation = trainer._valid_epoch(valid, show_progress=False)[1]
    result = trainer.evaluate(test, load_best_model=False, show_progress=False)
    print(json.dumps({"epoch": epoch, "seconds": seconds, "validation": float(validation["ndcg@10"]),
                      "test": float(result["ndcg@10"])}), flush=True)  # fmt: skip
    if seconds > budget:
        break
