"""The policy of recovery in virtual time: thousands of histories of deaths, queries of death and clients that leave."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from remuda.engine.recovery import BackOff, Standing, after_death, next_to_run

HISTORIES = 1000


@dataclass
class Request:
    """`kills_at`: the replica dies when it would make that token (None: harmless)."""

    length: int
    kills_at: int | None
    tokens: int = 0
    before: int = 0
    standing: Standing = field(default_factory=lambda: Standing(running=False, deaths=0))
    fruitless: int = 0  # the test's own count of deaths in a row without a token
    end: str = ""


class World:
    """Requests, and a replica that a step of any request, or anything else, may kill."""

    def __init__(self, seed: int, stray_deaths: int) -> None:
        self.random = random.Random(seed)
        self.stray_deaths = stray_deaths
        self.requests: dict[str, Request] = {}
        self.deaths_by_request = 0
        self.alone_when_ended: list[bool] = []

    def arrive(self, kills: bool) -> None:
        length = self.random.randint(1, 12)
        kills_at = self.random.randrange(length) if kills else None
        self.requests[f"r{len(self.requests)}"] = Request(length, kills_at)

    def open(self) -> dict[str, Request]:
        return {id_: request for id_, request in self.requests.items() if not request.end}

    def hand_over(self) -> None:
        open_ = self.open()
        for id_ in next_to_run({id_: request.standing for id_, request in open_.items()}):
            request = open_[id_]
            assert not request.standing.running, "handed over twice"
            request.standing = Standing(running=True, deaths=request.standing.deaths)
            request.before = request.tokens

    def step(self) -> None:
        """One token of one running request, or a death."""
        running = [request for request in self.open().values() if request.standing.running]
        if self.stray_deaths and self.random.random() < 0.1:
            self.stray_deaths -= 1
            self.die()
        elif running:
            request = self.random.choice(running)
            if request.tokens == request.kills_at:
                self.deaths_by_request += 1
                self.die()
                return
            request.tokens += 1
            request.standing = Standing(running=True, deaths=0)
            request.end = "whole" if request.tokens == request.length else ""

    def die(self) -> None:
        open_ = self.open()
        running = [request for request in open_.values() if request.standing.running]
        for request in running:
            request.fruitless = 1 if request.tokens > request.before else request.fruitless + 1
        left, guilty = after_death({id_: request.standing for id_, request in open_.items()})
        assert left.keys() | set(guilty) == open_.keys() and not left.keys() & set(guilty)
        for id_ in guilty:
            self.alone_when_ended.append(len(running) == 1 and open_[id_].fruitless >= 3)
            open_[id_].end = "guilty"
        for id_, standing in left.items():
            assert not standing.running
            open_[id_].standing = standing

    def run(self) -> None:
        """Until all have ended; newcomers and leavers on the way."""
        for _ in range(5000):
            if self.random.random() < 0.05 and len(self.requests) < 20:
                self.arrive(kills=self.random.random() < 0.2)
            if self.random.random() < 0.01 and self.open():
                self.random.choice(list(self.open().values())).end = "left"
            self.hand_over()
            open_ = self.open()
            if not open_:
                return
            assert any(request.standing.running for request in open_.values()), "everybody waits for ever"
            self.step()
        raise AssertionError("it does not end")


@pytest.mark.parametrize("stray_deaths", [0, 4], ids=["queries of death only", "and stray deaths"])
def test_in_every_history_the_guilty_end_and_the_others_get_all_their_tokens(stray_deaths: int) -> None:
    for seed in range(HISTORIES):
        world = World(seed, stray_deaths)
        for _ in range(world.random.randint(1, 8)):
            world.arrive(kills=world.random.random() < 0.3)
        world.run()
        assert all(world.alone_when_ended), seed
        for request in world.requests.values():
            if request.kills_at is not None:
                assert request.end in ("guilty", "left"), seed
            elif stray_deaths == 0:
                assert request.end in ("whole", "left"), seed
        killers = sum(request.kills_at is not None for request in world.requests.values())
        assert world.deaths_by_request <= 4 * killers + 4 * bool(stray_deaths), seed


def test_nobody_waits_when_nobody_is_suspect() -> None:
    requests = {"a": Standing(False, 1), "b": Standing(True, 0), "c": Standing(False, 0)}
    assert next_to_run(requests) == ["a", "c"]


def test_the_most_suspect_runs_first_and_alone() -> None:
    requests = {"a": Standing(False, 2), "b": Standing(False, 3), "c": Standing(False, 0)}
    assert next_to_run(requests) == ["b"]
    on_trial = requests | {"b": Standing(True, 3)}
    assert next_to_run(on_trial) == []
    assert after_death(on_trial) == ({"a": Standing(False, 2), "c": Standing(False, 0)}, ["b"])
    cleared = requests | {"b": Standing(True, 0)}
    assert next_to_run(cleared) == ["a"]  # with b beside it: no proof against it
    assert after_death(cleared | {"a": Standing(True, 2)})[1] == []


def test_back_off_grows_only_while_no_life_gets_anywhere() -> None:
    back_off = BackOff()
    assert [back_off.after(fruitful=True), back_off.after(fruitful=True)] == [0, 0]
    assert [back_off.after(fruitful=False) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert back_off.after(fruitful=True) == 0
