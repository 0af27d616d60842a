"""One training stage: steps, checkpoints and a loss curve; a killed run continues as if nothing had happened.

Everything random in a step is drawn from its number: scenes from the seed counter, noise from a generator seeded with
(run seed, batch index). So the step number, the weights, the optimiser's moments and the average are the whole state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from worldline.io.atomic import atomic_file
from worldline.scene import Progress, no_progress
from worldline.training import checkpoint
from worldline.training.config import TrainConfig
from worldline.training.curve import Curve
from worldline.training.ema import Ema
from worldline.training.sharding import kept_whole, shared_out_like, wait, whole

Objective = Callable[[Any, Any, torch.Generator], dict[str, Tensor]]
"""(model, batch, generator) -> named scalar losses."""

Batches = Callable[[int], Any]
"""Batch of an index: a pure function, the same for the same index."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a call of `train` left the stage.

    Attributes:
        step: optimiser steps done.
        finished: whether all steps are done.
        weights: file of the trained parameters (their average, if there is one) once finished, else None.
    """

    step: int
    finished: bool
    weights: Path | None


class _Step(nn.Module):
    """Model and objective as one module, so that autocast and gradient synchronisation wrap the whole loss.

    Autocast is entered here and not by Accelerate, whose precision is fixed for the life of the process.
    """

    def __init__(self, model: nn.Module, objective: Objective, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.bf16 = bf16

    def forward(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.autocast(generator.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective(self.model, batch, generator)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """Plain attention on a CPU, where the flash kernel's gradient takes several times as long for some hundred tokens.

    It must hold in the backward pass, too: what is recomputed there has to meet the same kernel.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = True,
    minutes: float | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Outcome:
    """Train the parameters of `model` that require a gradient, to the end or for some minutes.

    Writes `folder/<name>.jsonl` (curve), `folder/<name>-checkpoint/` and at the end `folder/<name>.safetensors`.

    Args:
        model: its parameters with `requires_grad` are trained; the rest must be the same at every resume.
        objective: the named losses of a batch; those in `config.weights` are added up.
        batches: index -> batch; index = (step * accumulate + part) * processes + rank.
        config: the run.
        folder: where everything is written.
        resume: continue from the newest checkpoint, if there is one.
        minutes: stop after this wall time, with a checkpoint; None: run to the end.
        device: "cpu", or anything else for the accelerator that Accelerate finds.
        progress: told the name of the stage, steps done and steps in all.

    Raises:
        ValueError: the checkpoint is of another run.
        FloatingPointError: the loss or its gradient is no longer finite.
    """
    run = _Run(model, objective, batches, config, folder, device)
    step = run.resume() if resume else 0
    curve = Curve(folder / f"{config.name}.jsonl", config.to_json(), resume_step=step)
    started = time.monotonic()
    try:
        while step < config.steps:
            report = run.step(step)
            step += 1
            if step % config.report_every == 0 or step == config.steps:
                clock = {"seconds": round(time.monotonic() - started, 2), "waited_seconds": round(run.waited, 3)}
                curve.add({"step": step, **clock, **{k: float(v) for k, v in report.items()}})
            progress(config.name, step, config.steps)
            out_of_time = minutes is not None and time.monotonic() - started > 60 * minutes
            if step % config.checkpoint_every == 0 or out_of_time or step == config.steps:
                run.save(step)
            if out_of_time:
                break
    finally:
        run.close()
    finished = step >= config.steps
    return Outcome(step=step, finished=finished, weights=run.write_weights() if finished else None)


class _Run:
    """The moving parts of `train`: accelerator, optimiser, average, and batches made one ahead.

    Attributes:
        waited: seconds in which training stood still for want of a batch.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, batches: Batches, config: TrainConfig, folder: Path, device: str
    ) -> None:
        from accelerate import Accelerator

        self.config, self.folder, self.batches = config, folder, batches
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
        trained = _trained(model)
        if not trained:
            raise ValueError(f"Stage {config.name!r} has nothing to train: no parameter requires a gradient.")
        self.engine = _of_an_engine(self.accelerator, model, config)
        optimizer = torch.optim.AdamW(
            list(trained.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.module, self.optimizer = self.accelerator.prepare(
            _Step(model, objective, config.precision == "bf16"), optimizer
        )
        # sharing out makes new parameters of them
        self.parameters = _trained(self.accelerator.unwrap_model(self.module).model)
        self.ema = None if config.ema_decay is None else Ema(self.parameters, config.ema_decay)
        self.ahead = ThreadPoolExecutor(max_workers=1)
        self.pending: dict[int, Future] = {}
        self.waited = 0.0

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step; returns the mean losses of its batches, the total, the gradient norm and the rate."""
        config, parts = self.config, self.config.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(step)
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            if self.engine:  # it makes its step inside of `backward`
                self.accelerator.gradient_state._set_sync_gradients(part == parts - 1)
            index = (step * parts + part) * self.accelerator.num_processes + self.accelerator.process_index
            batch, generator = self._batch(index), self._generator(index)
            with _attention(self.accelerator.device):
                losses = self.module(batch, generator)
                total = sum(weight * losses[name] for name, weight in config.weights.items())
                self.accelerator.backward(total / parts)
            for name, value in {**losses, "total": total}.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        clipped = self.accelerator.clip_grad_norm_(list(self.parameters.values()), config.gradient_clip)
        norm = whole(torch.as_tensor(0.0 if clipped is None else clipped))
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"The gradient of stage {config.name!r} is not finite at step {step}; lower its learning rate."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.parameters, step)
        return {**sums, "gradient_norm": norm, "learning_rate": torch.tensor(config.rate(step))}

    def _generator(self, index: int) -> torch.Generator:
        """Randomness of a batch; also seeds torch's global generator, which dropout uses."""
        seed = (self.config.seed * 1_000_003 + index) % 2**63
        torch.manual_seed(seed)
        return torch.Generator(self.accelerator.device).manual_seed(seed)

    def _batch(self, index: int) -> Any:
        """The batch of an index, made while the one before it was trained on."""
        future = self.pending.pop(index, None) or self.ahead.submit(self.batches, index)
        following = index + self.accelerator.num_processes
        if not self.pending:
            self.pending[following] = self.ahead.submit(self.batches, following)
        asked = time.monotonic()
        batch = future.result()
        self.waited += time.monotonic() - asked
        return batch

    def save(self, step: int) -> None:
        """Write a checkpoint; every process takes part, the main one writes."""
        info, write = {"config": self.config.to_json()}, self.accelerator.is_main_process
        if self.engine:
            engine = lambda folder: self.accelerator.save_state(str(folder))  # noqa: E731
            checkpoint.save(self._checkpoints(), step, {}, info, write=write, engine=engine)
            return
        names = list(self.parameters)
        tensors = {f"parameter/{name}": value for name, value in self.parameters.items()}
        if self.ema is not None:
            tensors |= {f"average/{name}": value for name, value in self.ema.average.items()}
        moments = checkpoint.optimizer_tensors(self.optimizer.optimizer, names)
        tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
        checkpoint.save(self._checkpoints(), step, tensors, info, write=write)

    @torch.no_grad()
    def resume(self) -> int:
        """Load the newest checkpoint; returns the steps done (0 without one)."""
        newest = checkpoint.latest(self._checkpoints())
        if newest is None:
            return 0
        checkpoint.check_run(newest, self.config.to_json())
        if self.engine != (newest / checkpoint.ENGINE).is_dir():
            raise ValueError(f"{newest} was written {'without' if self.engine else 'by'} DeepSpeed; go on as it began.")
        if self.engine:
            self.accelerator.load_state(str(newest / checkpoint.ENGINE))
            return checkpoint.information(newest)["step"]
        moments: dict[str, Tensor] = {}
        for path, value in checkpoint.stream(newest):  # a file at a time: 14B would not fit twice
            kind, name = path.split("/", 1)
            own = self.parameters[name.rsplit("/", 1)[0] if kind == "optimizer" else name]
            value = shared_out_like(value, own)
            if kind == "parameter":
                own.copy_(value)
            elif kind == "optimizer":
                moments[name] = value
            elif self.ema is not None:
                self.ema.average[name].copy_(value)
        checkpoint.restore_optimizer(self.optimizer.optimizer, list(self.parameters), moments)
        return checkpoint.information(newest)["step"]

    def write_weights(self) -> Path:
        """The trained parameters, averaged if the run averages, as one file."""
        path = self.folder / f"{self.config.name}.safetensors"
        values = self.parameters if self.ema is None else self.ema.average
        if self.engine:
            state = self.accelerator.get_state_dict(self.module)
            values = {name: state[f"model.{name}"] for name in values} if self.accelerator.is_main_process else {}
        kept = {}
        for name, value in values.items():
            together = whole(value.detach())  # every process takes part
            if self.accelerator.is_main_process:
                kept[name] = together.cpu().contiguous()
        if self.accelerator.is_main_process:
            with atomic_file(path) as draft:  # a torn file would pass for a finished stage
                save_file(kept, draft)
        wait()
        return path

    def close(self) -> None:
        """Stop making batches."""
        self.ahead.shutdown(wait=True, cancel_futures=True)

    def _checkpoints(self) -> Path:
        return self.folder / f"{self.config.name}-checkpoint"


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _of_an_engine(accelerator: Any, model: nn.Module, config: TrainConfig) -> bool:
    """Tell sharding what it must know before anything is prepared; returns whether DeepSpeed keeps the state.

    Raises:
        ValueError: a moving average is asked for, which DeepSpeed's parts of weights do not give.
    """
    state = accelerator.state
    if accelerator.distributed_type == "FSDP":
        state.fsdp_plugin.ignored_modules = kept_whole(model)
    if accelerator.distributed_type != "DEEPSPEED":
        return False
    if config.ema_decay is not None:
        raise ValueError(f"Stage {config.name!r} averages weights, which DeepSpeed cannot; set ema_decay to None.")
    state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size
    state.deepspeed_plugin.deepspeed_config["gradient_accumulation_steps"] = config.accumulate
    state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = config.gradient_clip
    return True
