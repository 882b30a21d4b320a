"""The training loop: collect, advantages, update, save."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..artifacts.files import write_atomically
from ..rewards.guarded import guard
from ..rewards.protocol import Reward, weighted_sum
from .advantages import PromptStatistics
from .algorithms.draft import PathwiseUpdater
from .algorithms.policy_gradient import PolicyUpdater, TrainingCollapsed, ValueUpdater
from .algorithms.rwr import RegressionUpdater
from .buffer import Transitions, join
from .checkpoints import ADAPTER, save_checkpoint
from .checks import check_epoch
from .collection import Collection, Collector, PromptTable
from .config import TrainConfig
from .models.protocol import TextToImageModel
from .monitoring import Monitor
from .objectives import returns_to_go
from .processes import Processes
from .resume import resume_state
from .state import TrainState, adapter_copy, restore_adapter, to_dict
from .value import ValueFunction

logger = logging.getLogger("diffusion_blend")


class Trainer:
    """One run of DPOK, DDPO or RWR on a model; usable without a configuration file, with any model and reward."""

    def __init__(
        self,
        config: TrainConfig,
        model: TextToImageModel,
        rewards: Mapping[str, Reward],
        heldout: Mapping[str, Reward],
        prompts: Sequence[str],
        accelerator: Accelerator,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Put the parts of a run together; writes nothing yet.

        Args:
            config: the settings; ``base``, ``adapter`` and ``prompts`` in it are only recorded here.
            model: what to train.
            rewards: the trained reward's terms by name, one for each weight in ``config.rewards``.
            heldout: rewards that are only watched.
            prompts: what to draw.
            accelerator: devices and processes.
            metadata: header of the adapter file.
        """
        self.config, self.model = config, model
        self.rewards = guard(rewards, config.reward_timeout)
        watched = self.rewards | guard(heldout, config.reward_timeout)
        self.processes = Processes(accelerator)
        self.metadata = dict(metadata or {})
        self.output = Path(config.output)
        self.steps = model.ddim_steps(config.sampling.steps, config.sampling.eta)
        self.table = PromptTable(model, prompts)
        seed, sampling, algorithm = config.run.seed, config.sampling, config.algorithm
        self.collector = Collector(model, self.steps, self.table, sampling, seed, self.processes)
        updater = {"rwr": RegressionUpdater, "draft": PathwiseUpdater}.get(algorithm.name, PolicyUpdater)
        self.policy = updater(
            model, self.steps, self.table, sampling.guidance_scale, algorithm, config.optimizer, sampling.batch,
            self.processes,
        )  # fmt: skip
        if isinstance(self.policy, PathwiseUpdater):
            self.policy.aim(rewards, config.rewards, seed)
        if algorithm.name in ("ddpo", "draft"):
            each = 1 if algorithm.name == "draft" else len(self.steps.noisy)
            check_epoch(sampling.samples * each * self.processes.count, self.policy.transitions_per_step)
        features = self.table.conditioning(torch.tensor([0])).features.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            value = ValueFunction(model.latent_shape, features, config.value.hidden)
        self.value = ValueUpdater(value, self.steps, self.table, config.value, self.processes, model.device)
        self.state = TrainState(PromptStatistics(algorithm.statistics_window, algorithm.statistics_minimum))
        self.monitor = Monitor(config, self.collector, watched, self.processes)

    def run(self) -> Path:
        """Train to the last iteration.

        Returns:
            The adapter file.

        Raises:
            TrainingCollapsed: a number was not finite or a stop rule fired; the last good adapter is in the output
                folder all the same.
            RewardFailed: a reward raised, or took longer than ``reward_timeout``.
            ValueError: a reward returned the wrong thing, or the checkpoint to resume from does not fit.
        """
        if self.config.resume:
            resume_state(self.config, self.state, self.model, self.policy, self.value)
        good = adapter_copy(self.model)
        with self.monitor.open(self.state) as monitor:
            try:
                while self.state.iteration < self.config.run.iterations:
                    monitor.watch(self.state)
                    sampled_from = adapter_copy(self.model)
                    figures = self._iterate()
                    monitor.record(self.state, figures)
                    self._check(figures)
                    good = sampled_from  # its images passed the stop rules; the updated one's are not seen yet
                    if self.state.iteration % self.config.run.save_every == 0:
                        self._save()
                monitor.watch(self.state, last=True)
            except TrainingCollapsed as collapse:
                restore_adapter(self.model, good)
                path = self._export()
                raise TrainingCollapsed(
                    f"stopped in iteration {self.state.iteration}: {collapse}. The last good adapter is {path}. "
                    "Lower optimizer.learning_rate or raise algorithm.kl_weight"
                ) from collapse
        if self.state.iteration % self.config.run.save_every:
            self._save()
        return self._export()

    def _iterate(self) -> dict[str, float]:
        started = time.monotonic()
        iteration, algorithm = self.state.iteration, self.config.algorithm
        if isinstance(self.policy, PathwiseUpdater):
            return self._iterate_pathwise(self.policy, started)
        measure_kl = algorithm.name == "dpok" and algorithm.kl_in_return
        if algorithm.name == "rwr":
            data = self.collector.of_base(iteration, self.rewards)
            reward = weighted_sum(data.scores, self.config.rewards)
            fresh = self._clean(data, reward)
        else:
            data = self.collector.fresh(iteration, self.rewards, measure_kl=measure_kl)
            reward = weighted_sum(data.scores, self.config.rewards)
            fresh = self._transitions(data, self._returns(data, reward))
        on_policy = algorithm.name == "ddpo"
        capacity = len(fresh) if on_policy else algorithm.buffer * self.processes.count
        self.state.buffer = join(None if on_policy else self.state.buffer, fresh, capacity)
        figures = {"reward": float(reward.mean()), "reward_std": float(reward.std(correction=0))}
        figures |= {f"reward/{name}": float(values.mean()) for name, values in data.scores.items()}
        figures["diversity"] = data.diversity
        if algorithm.name == "dpok":
            figures["value_loss"] = self.value.fit(self.state.buffer, self.config.run.seed, iteration)
        figures |= self._update(len(fresh))
        if measure_kl:
            figures["kl"] = float(data.kl.sum(1).mean())
        self.state.iteration += 1
        figures["samples_per_second"] = len(reward) / (time.monotonic() - started)
        return figures

    def _iterate_pathwise(self, policy: PathwiseUpdater, started: float) -> dict[str, float]:
        """Trajectories are made, and their gradient taken, in one go: nothing is kept."""
        iteration, count = self.state.iteration, self.config.sampling.samples * self.processes.count
        self.state.buffer = policy.planned(iteration, self.table.turn(self.config.run.seed, iteration * count, count))
        figures = self._update(count)
        self.state.iteration += 1
        figures["samples_per_second"] = count / (time.monotonic() - started)
        return figures

    def _returns(self, data: Collection, reward: Tensor) -> Tensor:
        """What each step is credited with, float64[N, T]: a return for DPOK, an advantage for DDPO."""
        algorithm = self.config.algorithm
        if algorithm.name == "dpok":
            return returns_to_go(reward, data.kl, algorithm.kl_weight)
        advantage = self.state.statistics.update(self.table.texts(data.prompt), reward)
        return advantage.clamp(-algorithm.advantage_clip, algorithm.advantage_clip)[:, None].expand(-1, len(self.steps))

    def _transitions(self, data: Collection, returns: Tensor) -> Transitions:
        """Trajectories cut into single steps; steps without noise are no actions and are left out."""
        noisy = self.steps.noisy
        count = len(data.prompt)
        return Transitions(
            latents=data.latents[:, noisy].flatten(0, 1),  # [N, T, C, H, W] -> [N T, C, H, W]
            next_latents=data.latents[:, noisy + 1].flatten(0, 1),
            step=noisy.repeat(count),
            prompt=data.prompt.repeat_interleave(len(noisy)),
            log_prob=data.log_prob[:, noisy].flatten(),
            returns=returns[:, noisy].flatten(),
        )

    def _clean(self, data: Collection, reward: Tensor) -> Transitions:
        """The finished latents and their rewards; regression has no use for the way there."""
        count = len(data.prompt)
        return Transitions(
            latents=data.latents[:, -1],
            next_latents=data.latents[:, -1, :0],
            step=torch.zeros(count, dtype=torch.int64),
            prompt=data.prompt,
            log_prob=torch.zeros(count, dtype=torch.float64),
            returns=reward,
        )

    def _update(self, fresh: int) -> dict[str, float]:
        buffer, seed, iteration = self.state.buffer, self.config.run.seed, self.state.iteration
        assert buffer is not None
        value = self.value.value if self.config.algorithm.name == "dpok" else None
        rows = []
        for minibatch in self.policy.minibatches(len(buffer), fresh, seed, iteration):
            rows.append(self.policy.step(buffer, minibatch, value))
            if "ratio_deviation" in rows[0] and len(rows) == 1 and len(buffer) == fresh:
                self._check_fresh_ratio(rows[0]["ratio_deviation"])
        figures = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        if "step_kl" in figures:  # one step's KL, steps drawn evenly: times their number it is the trajectory's
            figures["kl"] = figures.pop("step_kl") * len(self.steps.noisy)
        return figures

    def _check_fresh_ratio(self, deviation: float) -> None:
        if deviation > self.config.algorithm.clip_range:
            raise ValueError(
                f"importance ratios of fresh data differ from 1 by {deviation:.3g}, more than clip_range "
                f"{self.config.algorithm.clip_range}: sampling and update do not compute the same network. "
                "Use base.precision fp32 or bf16, or raise algorithm.clip_range"
            )

    def _check(self, figures: Mapping[str, float]) -> None:
        run = self.config.run
        if self.state.first_diversity is None:
            self.state.first_diversity = figures["diversity"]
        if figures["diversity"] < run.stop_diversity * self.state.first_diversity:
            raise TrainingCollapsed(
                f"images differ by {figures['diversity']:.3g}, below {run.stop_diversity} (run.stop_diversity) of the "
                f"first iteration's {self.state.first_diversity:.3g}: the policy has collapsed to one picture"
            )
        if run.stop_kl and figures.get("kl", 0.0) > run.stop_kl:
            raise TrainingCollapsed(f"KL {figures['kl']:.3g} nats is above {run.stop_kl} (run.stop_kl)")

    def _save(self) -> None:
        if self.processes.main:
            state = to_dict(self.state, self.model, self.policy, self.value)
            state["config"] = dataclasses.asdict(self.config)
            state["processes"] = self.processes.count
            folder = save_checkpoint(
                self.output / "checkpoints", self.state.iteration, state, self._adapter(), self.config.run.keep
            )
            logger.info("checkpoint %s", folder)
        self.processes.wait()

    def _adapter(self) -> bytes:
        samples = self.state.iteration * self.config.sampling.samples * self.processes.count
        return self.model.export({**self.metadata, "diffusion_blend.samples": str(samples)})

    def _export(self) -> Path:
        path = self.output / ADAPTER
        if self.processes.main:
            write_atomically(path, self._adapter())
        self.processes.wait()
        return path
