"""Ask held-out problems of anything that answers chats, score the replies, and tell the result as a table or JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from remuda.evaluation.problem import Problem
from remuda.evaluation.scoring import is_right
from remuda.evaluation.skills import SKILLS
from remuda.protocol.errors import ConfigError

Ask = Callable[[Problem], str]
"""The reply to a problem's chat; called from several threads at once."""
_SHOWN_FAILURES = 5  # per skill, in the JSON


@dataclass
class Tally:
    """Right replies of those asked."""

    right: int = 0
    asked: int = 0

    def add(self, right: bool) -> None:
        self.right += right
        self.asked += 1

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else 0.0


@dataclass
class SkillResult:
    name: str
    bar: float | None  # None for skills that are not the demo model's
    total: Tally = field(default_factory=Tally)
    variants: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    failures: list[dict[str, str]] = field(default_factory=list)

    def add(self, problem: Problem, reply: str) -> None:
        right = is_right(problem, reply)
        self.total.add(right)
        self.variants[problem.variant].add(right)
        if not right and len(self.failures) < _SHOWN_FAILURES:
            asked = problem.messages[-1]["content"]
            text = asked if isinstance(asked, str) else " ".join(part.get("text", "[image]") for part in asked)
            self.failures.append({"asked": text[-300:], "expected": problem.answer, "reply": reply[:300]})


@dataclass
class Report:
    skills: list[SkillResult]

    def table(self, details: bool = False) -> str:
        """One line per skill; with `details` one per variant too."""
        lines = [f"{'skill':<18}{'right':>7}{'of':>6}{'share':>9}{'bar':>7}"]
        for skill in self.skills:
            lines.append(_row(skill.name, skill.total) + _against(skill))
            if details:
                lines += [_row(f"  {name}", tally) for name, tally in skill.variants.items()]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        def told(tally: Tally) -> dict[str, Any]:
            return {"right": tally.right, "asked": tally.asked, "share": round(tally.share, 4)}

        return {
            "skills": {
                skill.name: told(skill.total)
                | {"bar": skill.bar, "variants": {name: told(tally) for name, tally in skill.variants.items()}}
                | {"failures": skill.failures}
                for skill in self.skills
            },
        }


def _row(name: str, tally: Tally) -> str:
    return f"{name:<18}{tally.right:>7}{tally.asked:>6}{tally.share:>9.1%}"


def _against(skill: SkillResult) -> str:
    if skill.bar is None:
        return ""
    return f"{skill.bar:>7.0%}" + ("" if skill.total.share >= skill.bar else "  below")


def run_eval(
    ask: Ask,
    problems: Mapping[str, Sequence[Problem]],
    skills: Sequence[str] = (),
    *,
    count: int = 100,
    concurrency: int = 8,
    progress: bool = True,
) -> Report:
    """Score the first `count` problems of each skill (default: all skills).

    Raises:
        ConfigError: a skill that does not exist.
    """
    if unknown := set(skills) - problems.keys():
        raise ConfigError(f"no skill is called {', '.join(sorted(unknown))}; there are {', '.join(problems)}")
    results = []
    with ThreadPoolExecutor(concurrency) as pool:
        for name in skills or problems:
            asked = problems[name][:count]
            result = SkillResult(name, SKILLS[name].bar if name in SKILLS else None)
            replies = tqdm(pool.map(ask, asked), total=len(asked), desc=f"{name:<11}", disable=not progress)
            for problem, reply in zip(asked, replies, strict=True):
                result.add(problem, reply)
            results.append(result)
    return Report(results)
