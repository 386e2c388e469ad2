"""Every field of a config, with its default."""

from __future__ import annotations

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """PromptIntern on the company task with the bundled model."""
    config = ConfigDict()
    config.name = "promptintern"  # shown in tables
    config.seed = 0  # of every random choice

    config.model = ConfigDict()
    config.model.path = "nano"  # a directory, org/name on the hub, or `nano`, the bundled model
    config.model.revision = ""  # of org/name: branch, tag or commit; empty is the newest
    config.model.random_init = False  # weights drawn from the seed, shapes from config.json
    config.model.dtype = "auto"  # auto (float32 on CPU, else bfloat16), float32 or bfloat16
    config.model.quantize = "none"  # int8 holds the frozen linear maps in a byte per weight
    config.model.remat = False  # recompute activations in the backward pass: less memory
    # auto, xla or cudnn (NVIDIA GPUs, bfloat16: no scores in memory); auto: cudnn on one such GPU
    config.model.attention = "auto"
    # blocks that a program has one behind another, in a loop over the rest; more take longer to
    # compile. 0: all of up to 48 on one GPU, which trains faster so; 1 elsewhere
    config.model.unroll = 0

    config.mesh = ConfigDict()  # of devices; the sizes multiply to their number, -1 is the rest
    config.mesh.data = 1  # rows of a batch are split over it
    config.mesh.fsdp = -1  # rows and weights are
    config.mesh.tensor = 1  # heads and inner widths are

    config.task = ConfigDict()
    config.task.kind = "company"  # company, files, or a public set, see `pintern.tasks`
    config.task.data = ""  # public sets and files: file, folder, or org/name[:config] on the hub
    config.task.query_field = "query"  # files: of the rows in `data`
    config.task.completion_field = "completion"  # likewise
    config.task.template = ""  # files: text file with the recurring prompt
    config.task.train = ""  # files: JSONL of {"query", "completion"}
    config.task.test = ""  # files: the same; empty splits off a fifth of `train`
    config.task.unlabelled = ""  # files: JSONL of {"query"}, for distillation; may be empty
    config.task.metric = "exact"  # files: exact, bleu, chrf, bash_tokens, nlc2cmd or sql
    config.task.database = ""  # files: SQLite file, for the metric sql
    config.task.query_format = "Question: {query}\nAnswer:"  # files
    config.task.completion_format = " {completion}"  # files
    config.task.example_end = "\n"  # files: between an example and what follows
    config.task.chat = False  # in the checkpoint's chat template: system, turns, user
    config.task.max_train = 0  # use at most so many labelled pairs; 0 is all
    config.task.max_test = 0  # likewise

    config.prompt = ConfigDict()
    config.prompt.compressor = "self_information"  # self_information, llmlingua2 or truncation
    # llmlingua2: a token classifier, a folder or a name on the hub
    config.prompt.llmlingua_model = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
    config.prompt.ladder = ""  # folder with a hand-written template-<rate>.txt for each level
    # bm25, dense (states of the base), sentence_transformers, similarity_band, random or fixed
    config.prompt.retriever = "bm25"
    # sentence_transformers: a folder or a name on the hub
    config.prompt.sentence_model = "sentence-transformers/all-MiniLM-L6-v2"
    config.prompt.similarity = "dense"  # similarity_band: bm25, dense or sentence_transformers
    config.prompt.similarity_quantile = 1.0  # similarity_band: 1 the most similar, 0 the least
    config.prompt.fixed_shots = ()  # fixed: indices of labelled pairs; () is the first ones
    config.prompt.max_shots = 2  # K, retrieved examples at the fullest level

    config.curriculum = ConfigDict()
    config.curriculum.schedule = "linear"  # see `python -m pintern.curriculum --help`
    config.curriculum.unit = "stages"  # stages or steps
    config.curriculum.stages = 4  # T, levels from the full prompt to the query alone
    config.curriculum.keep_rates = ()  # explicit: τ of each level
    config.curriculum.shots = ()  # explicit: examples of each level
    config.curriculum.final_share = 0.0  # share of steps on the query alone; 0 is an equal share
    config.curriculum.epsilon = 2.0  # adaptive: points the next level may lag behind
    config.curriculum.patience = 50  # adaptive: steps between two looks
    config.curriculum.smoothing = 0.0  # λ of random steps ahead (2405.14838 has 4); 0 is none
    config.curriculum.probe = 48  # adaptive: labelled pairs scored at each look

    config.adapter = ConfigDict()
    # With neither LoRA nor a soft prompt nothing is trained: the base as it is.
    config.adapter.targets = ("all",)  # patterns over linear modules; () is no LoRA
    config.adapter.rank = 16
    config.adapter.alpha = 32.0
    config.adapter.dropout = 0.0  # on what goes into LoRA, while training
    config.adapter.rank_stabilised = False  # α/√r in place of α/r
    config.adapter.init_from = ""  # PEFT LoRA or PROMPT_TUNING folder, or an export, to start from
    config.adapter.soft_prompt = 0  # learned vectors at the head of the prefix
    config.adapter.soft_prompt_init = "vocabulary"  # uniform, vocabulary, text or file
    config.adapter.soft_prompt_text = ""  # for text
    config.adapter.soft_prompt_file = ""  # for file

    config.train = ConfigDict()
    config.train.steps = 400  # optimizer steps
    config.train.batch_rows = 16  # rows per optimizer step, all behind one shared prefix
    config.train.accumulate = 1  # micro-batches per optimizer step
    config.train.pack = True  # rows may stand one behind another, where that saves padding
    config.train.learning_rate = 2e-3
    config.train.warmup = 0.1  # share of steps
    config.train.decay = "cosine"  # cosine, linear or constant
    config.train.final_rate = 0.0  # share of the peak rate at the end
    config.train.weight_decay = 0.0
    config.train.clip = 1.0  # global gradient norm
    config.train.ce_weight = 1.0  # of the cross-entropy; 0 is distillation alone
    config.train.prompt_loss_weight = 0.0  # of a prompt token in the loss, where a target has 1
    config.train.reset_optimizer = False  # moments start anew at each stage; the rate goes on
    config.train.balance_weight = 0.02  # of the load-balancing loss; mixtures of experts only
    config.train.log_every = 10  # steps

    config.distill = ConfigDict()
    config.distill.weight = 0.0  # λ of KL to a teacher that reads the full prompt
    config.distill.teacher = "base"  # base (adapter off) or first_stage (as its last step ends)
    config.distill.shots = 2  # examples in the teacher's prompt
    config.distill.temperature = 1.0
    config.distill.top_k = 0  # KL over the teacher's k likeliest tokens and the rest; 0 is all
    config.distill.labelled = True  # learn from the teacher on labelled completions too
    config.distill.by_confidence = True  # a row's KL counts by the teacher's belief in it
    config.distill.unlabelled = 0  # queries of the log the teacher answers, mixed into the rows

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 100  # steps
    config.checkpoint.minutes = 0.0  # also when the last is so old, by the clock; 0 is never
    config.checkpoint.keep = 2
    config.checkpoint.stages = False  # keep the state at each stage's end, in stages/

    config.eval = ConfigDict()
    config.eval.keep_rate = 0.0  # τ of the template at inference
    config.eval.shots = 0  # retrieved examples at inference
    config.eval.cached = True  # the template is read once; False reads it again at every request
    config.eval.max_new_tokens = 64
    config.eval.batch_rows = 64
    config.eval.temperature = 0.0  # 0 is greedy
    config.eval.samples = 1  # answers per example, drawn at the temperature: pass@k
    config.eval.draft_tokens = 0  # guessed ahead where a request is served alone; 0 is none
    config.eval.unconfined = False  # mbpp: run programs where the kernel can't confine them
    return config


def trains(config: ConfigDict) -> bool:
    """Whether the config trains anything; without LoRA and soft prompt it is the base as it is."""
    return bool(config.adapter.targets or config.adapter.soft_prompt)
