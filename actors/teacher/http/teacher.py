"""A model behind a URL as teacher: any server that returns prompt log-probabilities by token id.

vLLM's OpenAI-compatible server does (``prompt_logprobs``). It names its likeliest tokens and the
one that stands there; the student's other tokens are bounded (:mod:`actors.teacher.http.bounds`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.teacher.http.bounds import least_divergent
from actors.teacher.http.client import HttpClient
from actors.teacher.http.probe import Served, named_tokens, probe, scoring_body
from actors.teacher.http.rows import read_rows
from actors.teacher.kinds.projection import answer_of, widest_topk
from actors.teacher.protocol import TeacherError
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo


class HttpTeacher:
    """Asks a server (see :class:`actors.teacher.protocol.Teacher`); token ids are sent, no text.

    ``at_student_topk`` is exact for tokens that the server names. The others get the values that
    make the divergence to the student least among all that are possible, so streamed scores are
    lower bounds still; teacher_mass then lies within its limits, and may be too high or too low.
    The entropy is not known.

    Args: as :func:`actors.teacher.registry.make_teacher`; of ``settings``, ``url``, ``model``,
        ``api_key_env``, ``named_tokens``, ``concurrency``, ``timeout_s``, ``max_retries``,
        ``signal`` (``topk`` or ``sampled``) and ``topk``. The server's distribution counts the rows
        beyond ``vocab_size`` too; more than rounding there is an error.

    Raises:
        TeacherError: the server cannot be reached, or lacks what a teacher needs; it is listed.
    """

    def __init__(
        self, settings: TeacherSettings, *, vocab_size: int | None = None, own_topk: int = 0
    ) -> None:
        if vocab_size is None:
            raise TeacherError("a teacher behind a URL needs the number of tokens of the student")
        self._settings, self._own_topk, self._vocab_size = settings, own_topk, vocab_size
        self._named = named_tokens(settings, vocab_size, own_topk)
        self._client = HttpClient(settings)
        # One event loop for the life of the teacher, so that connections stay open between calls.
        self._runner = asyncio.Runner()
        self._served = self._runner.run(self._open())

    def info(self) -> TeacherInfo:
        """What was found out about the server."""
        return TeacherInfo(
            name=self._served.model,
            vocab_size=self._vocab_size,
            context_length=self._served.context_length,
            signals=(self._settings.signal.value,),
            max_topk=self._named,
            answers_rows=True,
            meta={
                "kind": "http",
                "url": self._settings.url,
                "named_tokens": self._named,
                "reads_student_logprobs": self._named < self._vocab_size,
            },
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """One answer a request, in the order of the requests."""
        return self._runner.run(self._score_all(requests))

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.__aexit__(None, None, None))
        self._runner.close()

    async def _open(self) -> Served:
        await self._client.__aenter__()
        try:
            return await probe(self._client, self._settings, self._vocab_size, self._own_topk)
        except BaseException:
            await self._client.__aexit__(None, None, None)
            raise

    async def _score_all(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        tasks = [asyncio.ensure_future(self._score(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # After an error the others' answers are of no use.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _score(self, request: ScoreRequest) -> TeacherAnswer:
        who = f"teacher {self._served.model!r}, rollout {request.rollout_id!r}"
        tokens = np.concatenate((request.prompt_ids, request.response_ids)).tolist()
        body = scoring_body(self._served.model, tokens, self._named)
        try:
            reply = await self._client.ask("/completions", body)
        except TeacherError as error:
            raise TeacherError(f"{who}: {error}") from error
        if not reply.ok:
            raise TeacherError(f"{who}: {self._client.said}: {reply.complaint}")
        rows = read_rows(who, reply.body, request, self._named, self._vocab_size)
        student = request.student_topk
        told_nK, known_nK = rows.look_up(student.ids)
        widest = widest_topk(self._settings, self._own_topk)
        rows.require(widest, self._settings.key)
        found = {
            "logprob": rows.logprob_n,
            "at_student_topk": least_divergent(
                student.logprobs, told_nK, known_nK, rows.cap_n, rows.mass_n
            ),
            "top_ids": rows.ids_nE[:, :widest],
            "top_logprobs": rows.logprobs_nE[:, :widest],
        }
        answer = answer_of(request.rollout_id, found, self._settings, self._own_topk)
        return replace(answer, retries=reply.retries)
