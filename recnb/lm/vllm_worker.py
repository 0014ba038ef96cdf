"""Answers of vLLM: a script for the Python of vLLM's own environment; it imports nothing of recnb.

``recnb.lm.vllm_client`` starts it and talks to it in JSON, an object a line; each gets one
reply. What vLLM itself prints goes to stderr.

    {"model": folder or Hub id, "dtype": ..., "longest": tokens, "rank": of LoRA, 0 = none,
     "cache_bytes": for keys and values, 0 = a share of the memory}
        -> {"vllm": version}
    {"prompts": lists of token ids, "rooms": most new tokens of each, "end": token id,
     "temperature": 0 = the most probable token, "seeds": one each, or null,
     "adapter": folder, or null}
        -> {"answers": lists of token ids, "end" included where it came}

A request that fails is answered with {"error": text}.
"""

import json
import os
import sys

SHARE = 0.4
"""Of the memory, where ``cache_bytes`` says nothing: the model that trains lies beside."""


def opened(settings):
    """The engine, and its version."""
    import vllm

    own = {"gpu_memory_utilization": SHARE}
    if settings["cache_bytes"]:
        own = {"kv_cache_memory_bytes": settings["cache_bytes"]}
    if settings["rank"]:
        own.update(enable_lora=True, max_lora_rank=settings["rank"], max_loras=1)
    engine = vllm.LLM(
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=settings["longest"],
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **own,
    )
    return engine, vllm.__version__


def answered(engine, asked, numbers):
    """Token ids of each answer, in the order of the prompts.

    Args:
        numbers: ``{adapter's folder: its number}`` so far. A new folder gets a new number, by
            which vLLM knows adapters and what it has cached with them.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    adapter, count = asked["adapter"], len(asked["prompts"])
    number = numbers.setdefault(adapter, len(numbers) + 1)
    request = LoRARequest(f"adapter-{number}", number, adapter) if adapter else None
    wishes = [
        SamplingParams(
            temperature=asked["temperature"],
            max_tokens=room,
            seed=seed,
            stop_token_ids=[asked["end"]],
            ignore_eos=True,  # that of the model's settings; "end" is the one that counts
            detokenize=False,
        )
        for room, seed in zip(asked["rooms"], asked["seeds"] or [None] * count, strict=True)
    ]
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    outputs = engine.generate(prompts, wishes, lora_request=request, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def main():
    """Answer line by line until stdin ends, as it does when the other side is gone."""
    sys.path.pop(0)  # this script's folder, whose modules are not vLLM's
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine, numbers = None, {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if engine is None:
                engine, version = opened(asked)
                reply = {"vllm": version}
            else:
                reply = {"answers": answered(engine, asked, numbers)}
        except Exception as error:  # vLLM raises many kinds; the other side says what it was
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
