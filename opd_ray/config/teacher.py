"""The keys of the section ``teacher``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opd_ray.config.choices import CacheMode, Dtype, SignalChoice

# Logits that a teacher which runs a model makes at once, bytes in float32; in bfloat16 half.
LOGITS_CHUNK_BYTES = 1 << 27

TEACHER_KINDS = ("hf", "vllm", "http", "class", "actor", "ensemble", "self")
# Kinds that run a model from the folder teacher.path.
MODEL_KINDS = ("hf", "vllm")
# Keys that mean something to one kind alone; a teacher of another kind does not inherit them.
KIND_KEYS: dict[str, tuple[str, ...]] = {
    "class": ("class_path", "arguments"),
    "actor": ("actor_name",),
    "http": ("url", "model", "api_key_env"),
    "ensemble": ("members",),
    "self": ("follow_decay",),
}


@dataclass
class TeacherSettings:
    # Kind of teacher: "hf" runs a Hugging Face model, "vllm" runs it in a vLLM engine, "http" asks
    # a server at a URL, "class" is a class of your own, "actor" asks a named Ray actor of your own
    # that runs already, "ensemble" mixes several of teachers, "self" is the student's own weights.
    kind: str = "hf"
    # Hugging Face folder (or hub name) of the teacher. Kinds http, class and actor need none; with
    # one, its tokenizer is compared with the student's.
    path: str | None = None
    # Kind class: "package.module:Class" of an actors.teacher.protocol.Teacher, on every node.
    class_path: str | None = None
    # Kind class: keyword arguments of its constructor.
    arguments: dict[str, Any] = field(default_factory=dict)
    # Kind actor: name of the Ray actor whose methods info() and score(requests) are a Teacher's.
    actor_name: str | None = None
    # Kind actor: the Ray namespace that it was named in.
    actor_namespace: str = "opd-ray"
    # Kind http: base URL of an OpenAI-compatible server that returns prompt log-probabilities by
    # token id, as vLLM's does: http://HOST:8000/v1.
    url: str | None = None
    # Kind http: the name under which the server offers the model; null takes the only one it has.
    model: str | None = None
    # Kind http: environment variable with the API key, set wherever Ray was started.
    api_key_env: str | None = None
    # Kind http: how many of its likeliest tokens the server is asked for at each position; at least
    # teacher.topk. The student's tokens that are not among them are bounded, see docs/teachers.md.
    named_tokens: int = 64
    # Kind http: requests, of one rollout each, that a replica has under way at once.
    concurrency: int = 16
    # Kind http: seconds until an unanswered request counts as lost and is sent again.
    timeout_s: float = 300.0
    # Kind http: how often a request is sent again after a lost connection, a time-out or HTTP 408,
    # 425, 429, 500, 502, 503 or 504.
    max_retries: int = 8
    # Kind ensemble: names of teachers and their weights (above 0; divided by their sum).
    members: dict[str, float] = field(default_factory=dict)
    # Kind self: after every step the teacher's weights become this share of their own and the rest
    # of the student's; null keeps those of the start.
    follow_decay: float | None = None
    # Copies of the teacher; rollouts go to the least loaded.
    replicas: int = 1
    # How often each replica is started again when its process dies; the others go on meanwhile.
    max_restarts: int = 1
    # Ray CPUs each replica reserves; 0 takes one, or a share where actors outnumber cores.
    cpus_per_replica: float = 0.0
    # GPUs each replica reserves; 0 runs on the CPU.
    gpus_per_replica: float = 0
    # CPU threads of a replica's matrix products; 0 shares a node's cores with its rollout actors.
    threads: int = 0
    # Number format of the teacher's weights. Kinds http, class and actor choose their own: say here
    # which, as check-teacher allows for its rounding.
    dtype: Dtype = Dtype.float32
    # What reaches the loss: top-k with tail, hidden states (exact), or the sampled token alone.
    signal: SignalChoice = SignalChoice.topk
    # k of the top-k signal.
    topk: int = 32
    # Prompt and response tokens scored in one forward pass (kind hf: a prompt once for all its
    # samples in there). Kind http: a replica is given at least concurrency sequences of
    # student.context_length together.
    batch_tokens: int = 8192
    # Kind vllm: bytes of KV cache of a replica on the CPU; bounds the longest sequence.
    kv_cache_bytes: int = 1 << 28
    # Kind vllm: GPUs (or CPU processes) one replica is split over.
    tensor_parallel_size: int = 1
    # Kind vllm: share of a GPU's memory that weights, activations and KV cache may take; logits of
    # scored rows come on top.
    gpu_memory_utilization: float = 0.8
    # Bytes of signals a replica may hold until the filter says which rows are kept.
    store_bytes: int = 1 << 33
    # Answers on disk, of any kind of teacher: "record" writes them to cache_dir, "replay" reads
    # them and needs no teacher, "replay_or_ask" loads the teacher once an answer is missing.
    cache: CacheMode = CacheMode.off
    # Folder of recorded answers, of one teacher; several replicas and runs may share it.
    cache_dir: str | None = None
    # Differences to the student's model that are accepted: "extra_tokens", "merges",
    # "special_tokens", "probes", "eos", "pad", "chat_template".
    accept_mismatch: list[str] = field(default_factory=list)
    # Run model code that comes with the checkpoint.
    trust_remote_code: bool = False


def batch_budget(teacher: TeacherSettings, longest: int) -> int:
    """Prompt and response tokens that a replica is given at once.

    A replica that asks a server gets enough to have all its requests under way, also when every
    sequence has ``longest`` tokens.
    """
    if teacher.kind != "http":
        return teacher.batch_tokens
    return max(teacher.batch_tokens, teacher.concurrency * longest)


def model_path(teacher: TeacherSettings) -> str | None:
    """Where the teacher's files are, if a run reads any: a cache that is replayed needs none."""
    return None if teacher.cache is CacheMode.replay else teacher.path
