"""Weights in chunks through Ray's object store: on CPUs and GPUs, between any nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray

from actors.weights.chunks import WeightChunk
from actors.weights.transport import UpdatedEngine, WeightTransport


class ObjectStore(WeightTransport):
    """Rank 0 puts the chunks into the store of its node; every rollout actor fetches them."""

    vllm_backend = "opd_ray"
    vllm_engine = ("actors.weights.ray_engine", "ChunkWeightTransferEngine")
    brings_to_one = True

    def collect(self) -> Sequence[ray.ObjectRef]:
        return self.trainers.weights()

    def deliver(self, version: int, chunks: Sequence[ray.ObjectRef] | None) -> None:
        self.rollouts.call_transport("load", version, *(chunks or ()))

    def bring(self, handle: Any, version: int, chunks: Sequence[ray.ObjectRef]) -> ray.ObjectRef:
        return cast(ray.ObjectRef, handle.call_transport.remote("load", version, *chunks))

    @classmethod
    def engine_end(cls, engine: UpdatedEngine) -> ChunkReceiver:
        return ChunkReceiver(engine)


@dataclass
class ChunkReceiver:
    """The end of a rollout actor."""

    engine: UpdatedEngine

    def load(self, version: int, *chunks: WeightChunk) -> None:
        """Replace all weights and forget everything computed with the old ones.

        Args:
            version: carried by every later rollout.
            chunks: together every tensor of :func:`actors.weights.chunks.named_weights`.

        Raises:
            RuntimeError: requests are unfinished, or weights of a layer are missing.
        """
        self.engine.start_weight_update()
        for chunk in chunks:
            self.engine.receive_weights({"chunk": chunk})
        self.engine.finish_weight_update(version)
