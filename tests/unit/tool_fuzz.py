"""Random students and random tools, and what must hold whatever they do.

By hand, with any number of calls and any tokenizer that has ChatML's special tokens:

    PYTHONPATH=. python tests/unit/tool_fuzz.py 10000 [SEED] [FOLDER]
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from random import Random
from typing import Any

from chat_tokenizer import END, TURNS, chat_tokenizer
from tool_draws import CALL_SECONDS, TOOLS, Talkative, Wild, turn

from opd_ray.environments.calls import CallParser, ToolCall
from opd_ray.environments.episode import Episode, EpisodeLimits
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.environments.runner import EnvironmentRunner
from opd_ray.environments.turns import TurnTemplate

# Some templates write the name that a result is of.
NAMING_TEMPLATE = TURNS.replace("{{ m.content }}\n</tool", "{{ m.name }} {{ m.content }}\n</tool")
ENDINGS = {"stop", "length", "context", "turns", "tool_limit"}


class Fuzz:
    """Episodes one after another, each checked after every turn.

    Args:
        seed: of all that is drawn.
        tokenizer: with ChatML's special tokens.
        hangs: share of the calls that take longer than they may.
    """

    def __init__(self, seed: int, tokenizer: Any, hangs: float) -> None:
        self._draw, self._tokenizer, self._hangs = Random(seed), tokenizer, hangs
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []

    def run(self, calls: int) -> None:
        """Play until there were so many calls."""
        handler = _Complaints(self.complaints)
        logging.getLogger("asyncio").addHandler(handler)
        before, threading.excepthook = threading.excepthook, self._thread_failed
        runner = EnvironmentRunner(workers=4, call_seconds=CALL_SECONDS)
        try:
            while self.counts["calls"] < calls:
                runner.start("one", lambda: self._play(runner))
                outcome = runner.ended.get(timeout=120)[1]
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            runner.close()
            gc.collect()  # tasks complain when they are forgotten
            threading.excepthook = before
            logging.getLogger("asyncio").removeHandler(handler)

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        self.complaints.append(f"a thread: {failed.exc_type.__name__}: {failed.exc_value}")

    async def _play(self, runner: EnvironmentRunner) -> None:
        draw = self._draw
        form = draw.choice(["hermes", "llama3_json", "qwen3_coder"])
        kind = draw.choice([Wild, Wild, Talkative])
        world = kind(Random(draw.random()), self._hangs)
        limits = EpisodeLimits(
            context=draw.choice([600, 6000, 200_000]),
            response=draw.choice([400, 5000, 150_000]),
            turns=draw.randrange(1, 8),
            calls=draw.randrange(1, 20),
            result_tokens=draw.choice([1, 20, 100]),
            turn=draw.choice([None, None, 300]),
        )
        parser = get_parser(form, "parser")
        options = {"chat_template": NAMING_TEMPLATE}
        template = TurnTemplate(self._tokenizer, TOOLS, options, [self._end])
        episode = Episode("the world", lambda: world, template, parser, runner, limits)
        await episode.begin({"prompt": []}, [])
        sampled: list[list[int]] = []
        while episode.ending is None:
            assert episode.room >= 1
            ids = self._ids(turn(draw, form), episode.room)
            sampled.append(ids)
            before = len(episode.messages), episode.account.calls, len(world.seen)
            await episode.take(ids, "stop" if ids[-1] == self._end else "length")
            self._check_tokens(episode, sampled)
            self._check_answers(episode, parser, ids, world, before)
        await episode.finish()
        assert episode.ending in ENDINGS
        self.counts[episode.ending] += 1
        self.counts["turns"] += len(sampled)
        self.counts["rollouts"] += 1
        for name, number in asdict(episode.account).items():
            self.counts[name] += number

    def _ids(self, said: str, room: int) -> list[int]:
        """Said as a student would: cut where there is no room, ended by the end token else."""
        ids = self._tokenizer(said, add_special_tokens=False)["input_ids"]
        ids = [n for n in ids if n != self._end]
        if self._draw.random() < 0.1:  # a student may sample any token
            others = sorted(self._special - {self._end})
            ids.insert(self._draw.randrange(len(ids) + 1), self._draw.choice(others))
        return [*ids, self._end][:room]

    def _check_tokens(self, episode: Episode, sampled: list[list[int]]) -> None:
        arrays = episode.arrays()
        ids, mask, turns = arrays["response_ids"], arrays["response_mask"], arrays["turns"]
        limits = episode.limits
        assert len(ids) == len(mask) == len(turns) <= limits.response
        assert len(episode.prompt_ids) + len(ids) <= limits.context
        assert ids[mask == 1].tolist() == [n for part in sampled for n in part]
        for number, part in enumerate(sampled):
            own = turns == number
            assert ids[own & (mask == 1)].tolist() == part
            assert mask[own].tolist() == sorted(mask[own].tolist(), reverse=True)
            others = ids[own & (mask == 0)].tolist()
            special = [n for n in others if n in self._special]
            if number < len(sampled) - 1 or episode.ending is None:
                begin, end = (
                    self._tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", END)
                )
                assert special == [begin, end, begin]
            else:
                assert not others
        assert turns.tolist() == sorted(turns.tolist())

    def _check_answers(
        self,
        episode: Episode,
        parser: CallParser,
        ids: list[int],
        world: Wild,
        before: tuple[int, int, int],
    ) -> None:
        account, (messages, calls, seen) = episode.account, before
        for message in episode.messages[messages:]:
            json.dumps(message, ensure_ascii=False).encode()
        if ids[-1] != self._end:
            assert episode.messages[messages:][1:] == []
            return
        found = parser.parse(self._tokenizer.decode(ids[:-1]), TOOLS).calls
        assert account.calls - calls <= len(found)
        assert account.calls <= episode.limits.calls
        known = [
            (c.name, json.dumps(c.arguments))
            for c in found[: account.calls - calls]
            if isinstance(c, ToolCall) and c.name in ("act", "act_later", "look")
        ]
        called = [(name, json.dumps(arguments)) for name, arguments in world.seen[seen:]]
        assert called == known if not account.timeout else called == known[: len(called)]
        if episode.ending is not None:
            return
        follows = episode.messages[messages + 1 :]
        for message in follows:
            content = message["content"]
            assert not any(token in content for token in (END, "<|im_start|>"))
            kept = content.rpartition("\n[cut: ")[0] or content
            assert len(kept) <= 64 * episode.limits.result_tokens + 20
        if found:
            assert [m["role"] for m in follows] == ["tool"] * len(found)
            assert [m["tool_call_id"] for m in follows] == [
                f"call{n:05d}" for n in range(calls, account.calls)
            ]
            assert [
                m.get("name") for m in follows if m.get("name") in ("act", "act_later", "look")
            ] == [name for name, _ in known]


class _Complaints(logging.Handler):
    def __init__(self, complaints: list[str]) -> None:
        super().__init__()
        self._complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        self._complaints.append(record.getMessage())


def main() -> None:
    """Play as the command line says, and print what there was."""
    calls = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    tokenizer = chat_tokenizer()
    if len(sys.argv) > 3:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
    begin = time.perf_counter()
    fuzz = Fuzz(seed, tokenizer, hangs=0.002)
    fuzz.run(calls)
    print(f"{time.perf_counter() - begin:.1f} s", dict(fuzz.counts), fuzz.complaints)


if __name__ == "__main__":
    main()
