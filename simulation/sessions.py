"""Chat in sessions: every turn's prompt is the whole conversation so far, and the next turn comes when somebody has
read the answer.

So how fast a session goes on depends on how it is served, and what is recomputed of its prompt on where it is served.
What is said in a session depends on the seed alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from engines.simulated.work import SchedulerLimits
from simulation.kernel import mix
from simulation.scenario import TenantSpec
from simulation.shape import Shape

CONVERSATION_TOKENS_MAX: Final = 32_768
"""A session ends before its prompt gets longer than this."""

# An answer takes about this long; only for sessions that had begun before the run.
_ANSWER_S: Final = 4.0
# Sessions that began this many mean lengths before a moment are over by then, all but one in 400.
_MEMORY_LENGTHS: Final = 6.0
_PIECE_TOKENS: Final = SchedulerLimits().piece_tokens


class Turn(NamedTuple):
    """One request of a session.

    Attributes:
        think_s: From the end of the answer before it; 0 for the first.
        input_tokens: Its prompt: all that was said before, and what is said now.
        output_tokens: Its answer.
        prefix: Ids of the prompt's pieces.
    """

    think_s: float
    input_tokens: int
    output_tokens: int
    prefix: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatTerms:
    """What the sessions of one tenant have in common.

    Attributes:
        spec: The tenant.
        system: Ids of the pieces of its system prompt.
    """

    spec: TenantSpec
    system: tuple[int, ...]

    @classmethod
    def of(cls, spec: TenantSpec, salt: int) -> ChatTerms:
        """Those of a tenant; `salt` keeps its prompts apart from everybody else's."""
        own = mix(salt)
        return cls(spec, tuple(mix(own + at) for at in range(spec.system_tokens // _PIECE_TOKENS)))

    @property
    def length_s(self) -> float:
        """How long a session lasts on average."""
        return self.spec.turns * (self.spec.think_s + _ANSWER_S)


class Conversation:
    """One session, and what it says next.

    Args:
        terms: Its tenant's.
        seed: Of what it says.

    Attributes:
        seed: Names it.
    """

    __slots__ = ("_ids", "_random", "_terms", "_tokens", "_turns", "seed")

    def __init__(self, terms: ChatTerms, seed: int) -> None:
        self.seed = seed
        self._terms = terms
        self._random = Random(seed)
        self._ids = list(terms.system)
        self._tokens = terms.spec.system_tokens  # of everything said so far
        self._turns = 0

    def next_turn(self) -> Turn | None:
        """What it says next; None where it is over."""
        spec, random = self._terms.spec, self._random
        if self._turns and random.random() * spec.turns < 1.0:
            return None
        think_s = random.expovariate(1.0 / spec.think_s) if self._turns and spec.think_s else 0.0
        asked = _tokens(spec.input_tokens, spec.input_sigma, random)
        answered = _tokens(spec.output_tokens, spec.output_sigma, random)
        read = min(self._tokens + asked, CONVERSATION_TOKENS_MAX)
        if self._turns and read == CONVERSATION_TOKENS_MAX:
            return None
        self._turns += 1
        own = mix(self.seed)
        self._ids += [mix(own + at) for at in range(len(self._ids), read // _PIECE_TOKENS)]
        self._tokens = read + answered
        return Turn(think_s, read, answered, tuple(self._ids))


class Opening(NamedTuple):
    """The first turn of a session that is seen in a run.

    Attributes:
        at_s: When it comes.
        turn: What it is.
        conversation: Says the rest.
    """

    at_s: float
    turn: Turn
    conversation: Conversation


def openings(terms: ChatTerms, sessions_per_s: float, random: Random, shape: Shape | None) -> Iterator[Opening]:
    """The sessions of a tenant in order of their first turn, without end.

    Sessions begin by a Poisson process. When traffic begins, and wherever its rate steps up, as many sessions are
    under way as there would be if it had been like that for long.

    Args:
        terms: The tenant's.
        sessions_per_s: Rate at which they begin, above 0.
        random: The tenant's random stream.
        shape: How that rate changes, if it does.
    """
    seeds = Random(random.getrandbits(64))
    pieces = shape.pieces if shape is not None else ((0.0, 1.0),)
    underway: list[Opening] = []
    before = 0.0
    for begin_s, factor in pieces:
        if factor > before:
            underway += _underway(terms, sessions_per_s * (factor - before), begin_s, random)
        before = factor
    fresh = _fresh(terms, sessions_per_s, random, seeds)
    return heapq.merge(sorted(underway, key=_at_s), fresh if shape is None else shape.apply(fresh), key=_at_s)


def sampled(spec: TenantSpec, sessions: int) -> tuple[tuple[int, int], ...]:
    """Prompt and answer of every turn of a number of sessions, always the same ones.

    Args:
        spec: The tenant.
        sessions: How many.
    """
    terms, random = ChatTerms.of(spec, 0), Random(1)
    pairs = []
    for _ in range(sessions):
        conversation = Conversation(terms, random.getrandbits(60))
        while (turn := conversation.next_turn()) is not None:
            pairs.append((turn.input_tokens, turn.output_tokens))
    return tuple(pairs)


def _fresh(terms: ChatTerms, per_s: float, random: Random, seeds: Random) -> Iterator[Opening]:
    at_s = 0.0
    while True:
        at_s += random.expovariate(per_s)
        conversation = Conversation(terms, seeds.getrandbits(60))
        turn = conversation.next_turn()
        assert turn is not None  # a session says something
        yield Opening(at_s, turn, conversation)


def _underway(terms: ChatTerms, per_s: float, now_s: float, random: Random) -> Iterator[Opening]:
    """Sessions that began before a moment and go on after it."""
    at_s = now_s - _MEMORY_LENGTHS * terms.length_s
    while (at_s := at_s + random.expovariate(per_s)) < now_s:
        conversation = Conversation(terms, random.getrandbits(60))
        turn, turn_s = conversation.next_turn(), at_s
        while turn is not None and turn_s < now_s:
            turn = conversation.next_turn()
            turn_s += _ANSWER_S + (turn.think_s if turn is not None else 0.0)
        if turn is not None:
            yield Opening(turn_s, turn, conversation)


def _at_s(opening: Opening) -> float:
    return opening.at_s


def _tokens(median: int, sigma: float, random: Random) -> int:
    return min(CONVERSATION_TOKENS_MAX, max(1, round(median * math.exp(random.gauss(0.0, sigma)))))
