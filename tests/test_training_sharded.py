"""Weights that processes share out among themselves: whole checkpoints, the same training, one process or many."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from worldline.training import checkpoint
from worldline.training.config import TrainConfig
from worldline.training.loop import train
from worldline.training.sharding import kept_whole

CONFIG = TrainConfig(name="net", steps=3, batch_size=1, weights={"error": 1.0}, learning_rate=1e-2, checkpoint_every=3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))
    model[2].requires_grad_(False)
    return model


def error(model: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    noise = torch.randn(3, generator=generator)
    return {"error": (model(batch) - noise).square().mean()}


def batches(index: int) -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(index))


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import accelerate
import torch
torch.set_num_threads(1)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from test_training_sharded import CONFIG, batches, error, net
from worldline.training.loop import train

class Sharing(accelerate.Accelerator):  # Accelerate shares out weights on GPUs only; this is what it does there
    def prepare(self, module, optimizer):
        mesh = init_device_mesh("cpu", (self.num_processes,))
        for layer in module.model:
            if isinstance(layer, torch.nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        parameters = [p for p in module.parameters() if p.requires_grad]
        assert all(isinstance(p, DTensor) for p in parameters)
        settings = {k: v for k, v in optimizer.param_groups[0].items() if k in ("lr", "weight_decay", "fused")}
        return module, self.prepare_optimizer(torch.optim.AdamW(parameters, **settings))

    def unwrap_model(self, module, **options):
        return module

accelerate.Accelerator = Sharing
folder = Path(sys.argv[1])
train(net(), error, batches, CONFIG, folder / "straight")
for _ in range(3):
    train(net(), error, batches, CONFIG, folder / "interrupted", minutes=0.0)
train(net(), error, batches, CONFIG, folder / "moved", minutes=0.0)
torch.distributed.destroy_process_group()
"""


def test_shared_out_weights_are_kept_whole_and_go_on_anywhere(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "src")])
    shared = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        assert process.wait(timeout=600) == 0, process.stderr.read()[-2000:]  # type: ignore[union-attr]
    straight = load_file(tmp_path / "straight" / "net.safetensors")
    assert {name: tuple(value.shape) for name, value in straight.items()} == {
        name: tuple(value.shape) for name, value in net().named_parameters() if not name.startswith("2.")
    }
    interrupted = load_file(tmp_path / "interrupted" / "net.safetensors")
    assert all(torch.equal(value, interrupted[name]) for name, value in straight.items())
    # one process goes on from the files of two
    newest = checkpoint.latest(tmp_path / "moved" / "net-checkpoint")
    assert newest is not None and checkpoint.information(newest)["step"] == 1
    tensors = checkpoint.load(newest)[0]
    assert tensors["optimizer/0.weight/exp_avg"].shape == tensors["average/0.weight"].shape == (6, 4)
    trained = {name for name in straight if not torch.equal(straight[name], dict(net().named_parameters())[name])}
    assert trained == set(straight)
    alone = train(net(), error, batches, CONFIG, tmp_path / "moved")
    assert alone.finished and alone.step == 3  # on other batches than two processes, so to other weights


class Engine:
    """Stands where Accelerate with DeepSpeed would: keeps its own state, steps inside of `backward`."""

    distributed_type = "DEEPSPEED"
    num_processes, process_index, is_main_process, device = 1, 0, True, torch.device("cpu")
    told: dict[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        self.state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=self.told))
        self.gradient_state = SimpleNamespace(_set_sync_gradients=lambda value: setattr(self, "boundary", value))

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        self.module, self.own = module, optimizer
        idle = SimpleNamespace(param_groups=optimizer.param_groups, step=lambda: None, zero_grad=lambda: None)
        return module, idle

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        if self.boundary:
            self.own.step()
            self.own.zero_grad()

    def clip_grad_norm_(self, parameters: Any, largest: float) -> None:
        return None

    def unwrap_model(self, module: nn.Module) -> nn.Module:
        return module

    def get_state_dict(self, module: nn.Module) -> dict[str, torch.Tensor]:
        return module.state_dict()

    def save_state(self, folder: str) -> None:
        Path(folder).mkdir()
        state = {f"moment.{i}": value["exp_avg"] for i, value in self.own.state_dict()["state"].items()}
        save_file({**self.module.state_dict(), **state}, Path(folder) / "mine.safetensors")

    def load_state(self, folder: str) -> None:
        state = load_file(Path(folder) / "mine.safetensors")
        self.module.load_state_dict({k: v for k, v in state.items() if not k.startswith("moment.")})


def test_deepspeed_keeps_its_own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    config = replace(CONFIG, ema_decay=None, accumulate=2)
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.Accelerator", Engine)
        with pytest.raises(ValueError, match="averages weights"):
            train(net(), error, batches, replace(config, ema_decay=0.9), tmp_path / "no")
        first = train(net(), error, batches, config, tmp_path, minutes=0.0)
        assert Engine.told == {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0,
        }  # fmt: skip
        newest = checkpoint.latest(tmp_path / "net-checkpoint")
        assert first.step == 1 and newest is not None and (newest / checkpoint.ENGINE / "mine.safetensors").is_file()
        done = train(net(), error, batches, config, tmp_path)
        assert done.finished and set(load_file(done.weights)) == {"0.weight", "0.bias", "4.weight"}
    with pytest.raises(ValueError, match="by DeepSpeed"):
        train(net(), error, batches, config, tmp_path)


def test_what_encodes_samples_stays_whole() -> None:
    model = net()
    assert kept_whole(model) == []
    model.asked_between_steps = lambda: [model[0], model[2]]  # type: ignore[assignment]
    assert kept_whole(model) == [model[2]]  # the first is trained
