"""Train the demo model on one GPU (or, to try the script, on the CPU), in one or several calls that resume each other.

    python -m training.train --out OUT --state STATE --seconds 560 --planned-seconds 1100

The schedule follows the clock: `--planned-seconds` is the training time of all calls together, `--seconds` of this one.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from remuda.evaluation.skills import SKILLS
from training.architecture import PAD
from training.export import read_weights, write_weights
from training.model import EXPERTS, DemoModel, Functions, PackedBatch
from training.muon import Muon, optimizer_for
from training.packing import HeldOutRows, Rows, RowShape, row_loader

CHECKPOINT = Path(__file__).parent.parent / "remuda" / "assets" / "demo"
MATRIX_RATE = 0.012
WARMUP_STEPS = 150
DECAY_FROM = 0.25  # of the planned time; then linearly to zero
BALANCE, Z = 0.03, 1e-3  # weights of the router's auxiliary losses


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.run = Functions(compiled=self.device.type == "cuda")
        self.model = DemoModel()
        if args.weights:
            read_weights(self.model, args.weights)
        self.model.to(self.device)
        self.optimizer: Muon = optimizer_for(self.model)
        self.step, self.seconds_before, self.rate = 0, args.trained_seconds, MATRIX_RATE
        self.started = time.monotonic()
        if args.state and args.state.exists():
            self._resume(args.state)
        self.progress = multiprocessing.Value("d", self.seconds_before / args.planned_seconds)
        shape = RowShape(args.tokens, args.tiles)
        self.held_out: Iterable[Any] = row_loader(
            HeldOutRows(CHECKPOINT, list(SKILLS), args.eval_count, shape), min(1, args.workers), ahead=64
        )
        self.held_out_rows: Iterator[Any] | None = iter(self.held_out)  # its worker starts now
        self.rows = iter(row_loader(Rows(CHECKPOINT, shape, args.seed + self.step, self.progress), args.workers))
        self.replay = CapturedStep(self.train_step) if self.device.type == "cuda" else self.train_step
        self._keep_or_restore(good=True)
        self.log = (args.out / "log.jsonl").open("a")

    def _resume(self, file: Path) -> None:
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds_before = state["step"], state["seconds"]

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def factor(self) -> float:
        """Of the learning rates: warm-up by steps, constant, then linear to zero by the clock."""
        progress = min(1.0, self.seconds / self.args.planned_seconds)
        self.progress.value = progress
        return min((self.step + 1) / WARMUP_STEPS, 1.0, (1 - progress) / (1 - DECAY_FROM))

    def train_step(self, batch: PackedBatch) -> torch.Tensor:
        """One update; returns loss, share of trained tokens predicted right, and balance."""
        loss_T, right_T, routings = self.model.losses(batch, self.run, self.dtype)
        loss = (loss_T * batch.weights_T).sum() / batch.weights_T.sum()
        balance = torch.stack([r.balance for r in routings]).sum()
        z = torch.stack([r.z for r in routings]).sum()
        (loss + BALANCE * balance + Z * z).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        trained_T = batch.labels_T >= 0
        return torch.stack([loss.detach(), (right_T & trained_T).sum() / trained_T.sum(), balance.detach()])

    def train(self) -> None:
        args, recent, since, reported = self.args, [], time.monotonic(), 0.0
        self._keep_or_restore(good=True)
        while time.monotonic() - self.started < args.seconds and self.step < args.steps:
            self.optimizer.set_rates(self.rate, self.factor())
            recent.append(self.replay(on_device(next(self.rows), self.device)))
            self.step += 1
            if len(recent) == args.log_every:
                means = torch.stack(recent).mean(0).tolist()
                pace = args.log_every * args.tokens / (time.monotonic() - since)
                recent, since = [], time.monotonic()
                self._write(loss=means[0], token_accuracy=means[1], balance=means[2], tokens_per_s=round(pace))
                self._keep_or_restore(good=math.isfinite(means[0]))
                if self.seconds - self.seconds_before > reported + args.eval_every:
                    write_weights(self.model, args.out)
                    self.evaluate()
                    reported, since = self.seconds - self.seconds_before, time.monotonic()
        if recent:  # the last steps, after the last look: weights that are not finite must never replace good ones
            self._keep_or_restore(good=bool(torch.stack(recent).isfinite().all()))
        self.save()
        self.evaluate()

    def _keep_or_restore(self, good: bool) -> None:
        """Should training diverge after all: back to the last good weights, at half the rate."""
        if good:
            self.kept = {name: value.clone() for name, value in self.model.state_dict().items()}
            return
        self.model.load_state_dict(self.kept)
        self.optimizer.forget()
        self.rate /= 2

    def evaluate(self) -> None:
        """Held-out accuracy: a reply counts if greedy decoding would give exactly the reference, token for token."""
        outcomes: dict[str, list[bool]] = defaultdict(list)
        used: list[torch.Tensor] = []  # tokens of each MoE layer's experts, row by row
        if self.held_out_rows is not None:
            self.held_out, self.held_out_rows = list(self.held_out_rows), None
        for batch, names in self.held_out:
            batch = on_device(batch, self.device)
            _, right_T, routings = self.model.losses(batch, self.run, self.dtype)
            is_text_T = batch.ids_T != PAD
            used.append(torch.stack([r.expert_T[is_text_T].bincount(minlength=EXPERTS) for r in routings]))
            wrong = ((batch.labels_T >= 0) & ~right_T).cpu()
            ends = batch.documents.tolist()
            for name, start, end in zip(names, ends, ends[1:], strict=False):
                outcomes[name].append(not wrong[start:end].any().item())
        variants = {name: round(sum(o) / len(o), 3) for name, o in sorted(outcomes.items())}
        by_skill = {s: [x for name, o in outcomes.items() if name.startswith(f"{s}/") for x in o] for s in SKILLS}
        used_LE = torch.stack(used).sum(0)
        shares = (used_LE * EXPERTS / used_LE.sum(1, keepdim=True)).tolist()  # 1 is fair
        self._write(
            skills={s: round(sum(o) / len(o), 3) for s, o in by_skill.items()},
            variants=variants,
            routing=[[round(share, 2) for share in layer] for layer in shares],
        )

    def _write(self, **values: Any) -> None:
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()},
        }
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        write_weights(self.model, self.args.out)
        if self.args.state:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "seconds": self.seconds,
                },
                self.args.state,
            )


class CapturedStep:
    """A step recorded as a CUDA graph and replayed: launching its kernels one by one takes longer than running them."""

    WARM_UP_STEPS = 3  # outside the graph: they compile and allocate

    def __init__(self, step: Callable[[PackedBatch], torch.Tensor]) -> None:
        self.step, self.done = step, 0
        self.stream = torch.cuda.Stream()
        self.graph = torch.cuda.CUDAGraph()

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        if self.done < self.WARM_UP_STEPS:
            self.done += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.step(batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.done == self.WARM_UP_STEPS:
            self.done += 1
            self.input = batch
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads pin memory meanwhile
                self.result = self.step(self.input)
        for name, tensor in self.input.tensors().items():
            tensor.copy_(getattr(batch, name))
        self.graph.replay()
        return self.result.clone()


def on_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    return batch.map(lambda tensor: tensor.to(device, non_blocking=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and log.jsonl")
    parser.add_argument("--state", type=Path, help="file to resume from, if it exists, and to save to")
    parser.add_argument("--weights", type=Path, help="start from a checkpoint's weights")
    parser.add_argument("--trained-seconds", type=float, default=0, help="of --weights: the schedule goes on there")
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--planned-seconds", type=float, default=1100)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--tokens", type=int, default=32768, help="per step")
    parser.add_argument("--tiles", type=int, default=224, help="image tiles per step, at most")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--eval-every", type=float, default=90, help="seconds")
    parser.add_argument("--eval-count", type=int, default=200, help="held-out problems per skill")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args).train()


if __name__ == "__main__":
    main()
