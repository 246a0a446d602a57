"""The kinds of teacher, and the keys of the section ``teacher``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from opd_ray.config.choices import CacheMode, Dtype, SignalChoice, TeacherTiming
from opd_ray.config.marks import PATH
from opd_ray.config.ranges import ABOVE_ZERO, SHARE_ABOVE_ZERO, at_least, share_below_one
from opd_ray.on_resume import FIXED, FREE, TOLD

# The name of the section ``teacher`` in routes.
MAIN = "teacher"
# Logits that a teacher which runs a model makes at once, bytes in float32; in bfloat16 half.
LOGITS_CHUNK_BYTES = 1 << 27


class TeacherKind(StrEnum):
    """What answers as the teacher; the values of ``teacher.kind``."""

    hf = "hf"
    vllm = "vllm"
    http = "http"
    class_ = "class"
    actor = "actor"
    ensemble = "ensemble"
    self_ = "self"


@dataclass(frozen=True)
class KindTraits:
    """What a teacher of one kind needs, can give and may be."""

    # The key without which there is none of this kind, and what it has to hold.
    needs: tuple[str, str] | None = None
    # Keys that mean something to this kind alone; a teacher of another kind does not inherit them.
    own_keys: tuple[str, ...] = ()
    signals: tuple[SignalChoice, ...] = tuple(SignalChoice)
    # Most GPUs of a replica; why, and what to do with more.
    most_gpus: float = math.inf
    gpu_remedy: str = ""
    # Why it cannot be part of an ensemble, or what to do instead; None: it can.
    not_member: str | None = None
    # Runs a model from the folder teacher.path, which a rollout engine can run too.
    runs_model: bool = False
    # In a vLLM engine: split over GPUs, with a KV cache.
    vllm_engine: bool = False
    # Asks a server at teacher.url, which is probed before the run.
    asks_server: bool = False
    # Asks an actor in the Ray cluster that the run joins.
    asks_cluster: bool = False
    # Of the user's making: its vocabulary is what it says it is.
    user_made: bool = False
    # May know no more than bounds of some of the student's tokens.
    may_bound: bool = False
    # Computes with the student's own files.
    students_files: bool = False
    # Mixes other teachers of the run.
    mixes_members: bool = False

    @property
    def asks_others(self) -> bool:
        """Computes nothing in this run's own processes."""
        return self.asks_server or self.asks_cluster

    @property
    def of_a_run(self) -> bool:
        """Is made of other models of its run: nothing to be served, or inherited from."""
        return self.students_files or self.mixes_members


_ON_ONE_GPU: dict[str, Any] = {
    "most_gpus": 1,
    "gpu_remedy": "it runs on one GPU; use at most 1, and more {key}.replicas",
}
_BOUNDED = (SignalChoice.topk, SignalChoice.sampled)

TRAITS: Mapping[str, KindTraits] = {
    TeacherKind.hf: KindTraits(
        needs=("path", "a Hugging Face folder or hub name"), runs_model=True, **_ON_ONE_GPU
    ),
    TeacherKind.vllm: KindTraits(
        needs=("path", "a Hugging Face folder or hub name"),
        signals=_BOUNDED,
        not_member=(
            "only one vLLM engine fits a process; use hf, or serve it (opd-ray serve-teacher "
            "--teacher NAME) and give kind actor"
        ),
        runs_model=True,
        vllm_engine=True,
    ),
    TeacherKind.http: KindTraits(
        needs=("url", "the base URL of a server, http://HOST:8000/v1"),
        own_keys=("url", "model", "api_key_env"),
        signals=_BOUNDED,
        most_gpus=0,
        gpu_remedy="a replica only asks the server; set it to 0",
        not_member="it knows bounds of some of the student's tokens, not values; use it by a route",
        asks_server=True,
        may_bound=True,
    ),
    TeacherKind.class_: KindTraits(
        needs=("class_path", "package.module:Class"),
        own_keys=("class_path", "arguments"),
        user_made=True,
    ),
    TeacherKind.actor: KindTraits(
        needs=("actor_name", "the name of a running Ray actor"),
        own_keys=("actor_name",),
        most_gpus=0,
        gpu_remedy="a replica only passes requests on; set it to 0",
        asks_cluster=True,
        user_made=True,
        may_bound=True,
    ),
    TeacherKind.ensemble: KindTraits(
        own_keys=("members",),
        not_member="list its members instead",
        mixes_members=True,
        **_ON_ONE_GPU,
    ),
    TeacherKind.self_: KindTraits(
        own_keys=("follow_decay",),
        not_member="use it alone, or by a route",
        students_files=True,
        **_ON_ONE_GPU,
    ),
}


@dataclass
class TeacherSettings:
    # Kind of teacher: "hf" runs a Hugging Face model, "vllm" runs it in a vLLM engine, "http" asks
    # a server at a URL, "class" is a class of your own, "actor" asks a named Ray actor of your own
    # that runs already, "ensemble" mixes several of teachers, "self" is the student's own weights.
    kind: str = field(default=TeacherKind.hf.value, metadata=TOLD)
    # Hugging Face folder (or hub name) of the teacher. Kinds http, class and actor need none; with
    # one, its tokenizer is compared with the student's.
    path: str | None = field(default=None, metadata=PATH | TOLD)
    # Kind class: "package.module:Class" of an actors.teacher.protocol.Teacher, on every node.
    class_path: str | None = field(default=None, metadata=TOLD)
    # Kind class: keyword arguments of its constructor.
    arguments: dict[str, Any] = field(default_factory=dict, metadata=TOLD)
    # Kind actor: name of the Ray actor whose methods info() and score(requests) are a Teacher's.
    actor_name: str | None = field(default=None, metadata=TOLD)
    # Kind actor: the Ray namespace that it was named in.
    actor_namespace: str = field(default="opd-ray", metadata=TOLD)
    # Kind http: base URL of an OpenAI-compatible server that returns prompt log-probabilities by
    # token id, as vLLM's does: http://HOST:8000/v1.
    url: str | None = field(default=None, metadata=TOLD)
    # Kind http: the name under which the server offers the model; null takes the only one it has.
    model: str | None = field(default=None, metadata=TOLD)
    # Kind http: environment variable with the API key, set wherever Ray was started.
    api_key_env: str | None = field(default=None, metadata=FREE)
    # Kind http: how many of its likeliest tokens the server is asked for at each position; at least
    # teacher.topk. The student's tokens that are not among them are bounded, see docs/teachers.md.
    named_tokens: int = field(default=64, metadata=at_least(1) | TOLD)
    # Kind http: requests, of one rollout each, that a replica has under way at once.
    concurrency: int = field(default=16, metadata=at_least(1) | FREE)
    # Kind http: seconds until an unanswered request counts as lost and is sent again.
    timeout_s: float = field(default=300.0, metadata=ABOVE_ZERO | FREE)
    # Kind http: how often a request is sent again after a lost connection, a time-out or HTTP 408,
    # 425, 429, 500, 502, 503 or 504.
    max_retries: int = field(default=8, metadata=at_least(0) | FREE)
    # Kind ensemble: names of teachers and their weights (above 0; divided by their sum).
    members: dict[str, float] = field(default_factory=dict, metadata=TOLD)
    # Kind self: after every step the teacher's weights become this share of their own and the rest
    # of the student's; null keeps those of the start.
    follow_decay: float | None = field(
        default=None,
        metadata=share_below_one("; for a teacher that stays as it is leave it out") | FIXED,
    )
    # Copies of the teacher; rollouts go to the least loaded.
    replicas: int = field(default=1, metadata=at_least(1) | FREE)
    # How often each replica is started again when its process dies or hangs; the others go on
    # meanwhile.
    max_restarts: int = field(default=1, metadata=at_least(0) | FREE)
    # Seconds that a replica may take for a batch, after which it counts as hanging: it is ended and
    # started again. Kind http has its own limits, timeout_s and max_retries, and does without; so
    # does kind self with student.lora, for whose ranks trainer.answer_timeout_s holds. null: only
    # cluster.stall_timeout_s holds.
    answer_timeout_s: float | None = field(default=900.0, metadata=ABOVE_ZERO | FREE)
    # Ray CPUs each replica reserves; 0 takes one, or a share where actors outnumber cores.
    cpus_per_replica: float = field(default=0.0, metadata=at_least(0) | FREE)
    # GPUs each replica reserves; 0 runs on the CPU. With cluster.placement=shared the share of a
    # GPU that it has beside another role.
    gpus_per_replica: float = field(default=0, metadata=at_least(0) | FREE)
    # CPU threads of a replica's matrix products; 0 shares a node's cores with its rollout actors.
    threads: int = field(default=0, metadata=at_least(0) | FREE)
    # "streaming" scores rollouts while others are written, "after_writing" when all of a step are,
    # which is faster where both compute on the same cores. Null: after_writing where what computes
    # there while rollouts are written, trainers too with run.lag or where they compute its answers,
    # has more threads than its node has cores; streaming elsewhere and with run.overlap.
    when: TeacherTiming | None = field(default=None, metadata=FREE)
    # Number format of the teacher's weights. Kinds http, class and actor choose their own: say here
    # which, as check-teacher allows for its rounding.
    dtype: Dtype = field(default=Dtype.float32, metadata=TOLD)
    # What reaches the loss: top-k with tail, hidden states (exact), or the sampled token alone.
    signal: SignalChoice = field(default=SignalChoice.topk, metadata=TOLD)
    # k of the top-k signal.
    topk: int = field(default=32, metadata=at_least(1) | TOLD)
    # Prompt and response tokens scored in one forward pass (kind hf: a prompt once for all its
    # samples in there). Kind http: tokens that a replica is given together, or concurrency texts of
    # student.context_length where that is more.
    batch_tokens: int = field(default=8192, metadata=at_least(1) | FREE)
    # Kind vllm: bytes of KV cache of a replica on the CPU; bounds the longest sequence.
    kv_cache_bytes: int = field(default=1 << 28, metadata=at_least(1) | FREE)
    # Kind vllm: GPUs (or CPU processes) one replica is split over.
    tensor_parallel_size: int = field(default=1, metadata=at_least(1) | FREE)
    # Kind vllm: share of a GPU's memory that weights, activations and KV cache may take; logits of
    # scored rows come on top. With a share of a GPU, this share of it.
    gpu_memory_utilization: float = field(default=0.8, metadata=SHARE_ABOVE_ZERO | FREE)
    # Bytes of signals a replica may hold until the filter says which rows are kept.
    store_bytes: int = field(default=1 << 33, metadata=at_least(1) | FREE)
    # Answers on disk, of any kind of teacher: "record" writes them to cache_dir, "replay" reads
    # them and needs no teacher, "replay_or_ask" loads the teacher once an answer is missing.
    cache: CacheMode = field(default=CacheMode.off, metadata=TOLD)
    # Folder of recorded answers, of one teacher; several replicas and runs may share it.
    cache_dir: str | None = field(default=None, metadata=PATH | TOLD)
    # Differences to the student's model that are accepted: "extra_tokens", "merges",
    # "special_tokens", "probes", "eos", "pad", "chat_template".
    accept_mismatch: list[str] = field(default_factory=list, metadata=TOLD)
    # Run model code that comes with the checkpoint.
    trust_remote_code: bool = field(default=False, metadata=FREE)

    @property
    def name(self) -> str:
        """What routes call it; a further teacher knows its own."""
        return MAIN

    @property
    def key(self) -> str:
        """Where the configuration speaks of it: "teacher" or "teachers.NAME"."""
        return self.name if self.name == MAIN else f"teachers.{self.name}"

    @property
    def traits(self) -> KindTraits:
        """Of its kind, which is one there is."""
        return TRAITS[self.kind]


def batch_budget(teacher: TeacherSettings, longest: int) -> int:
    """Prompt and response tokens that a replica is given at once.

    A replica that asks a server gets enough to have all its requests under way, also when every
    sequence has ``longest`` tokens.
    """
    if not teacher.traits.asks_server:
        return teacher.batch_tokens
    return max(teacher.batch_tokens, teacher.concurrency * longest)


def paths_of(*teachers: TeacherSettings) -> dict[str, str | None]:
    """What their replicas read on their nodes, by key: models, and recorded answers."""
    found = {}
    for one in teachers:
        key = "student" if one.traits.students_files else one.key
        if one.traits.runs_model or one.traits.students_files:
            found[f"{key}.path"] = model_path(one)
        if one.cache is not CacheMode.off:
            found[f"{one.key}.cache_dir"] = one.cache_dir
    return found


def model_path(teacher: TeacherSettings) -> str | None:
    """Where the teacher's files are, if a run reads any: a cache that is replayed needs none."""
    return None if teacher.cache is CacheMode.replay else teacher.path
