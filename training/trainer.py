"""The training loop: watch, iterate, record, check the stop rules, save."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator

from ..artifacts.files import write_atomically
from ..rewards.guarded import guard
from ..rewards.protocol import Reward
from .adapter_optimizer import TrainingCollapsed
from .algorithms import entry_of
from .checkpoints import ADAPTER, load_state, save_checkpoint
from .config import TrainConfig
from .context import RunContext
from .models.protocol import StackedModel, TextToImageModel
from .monitoring import Monitor
from .noisy_steps import noisy_range
from .processes import Processes
from .resume import newest_checkpoint
from .reward_mix import RewardMix
from .stacking import member_files, member_metadata, prompt_table
from .state import (
    TrainState,
    adapter_copy,
    averaged,
    from_dict,
    random_state,
    restore_adapter,
    restore_random_state,
    to_dict,
)

logger = logging.getLogger("diffusion_blend")


class Trainer:
    """One training run of a model; usable without a configuration file, with any model and reward."""

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
        """Put the parts of a run together. Nothing is written yet.

        Args:
            config: the settings; ``base``, ``adapter`` and ``prompts`` in it are only recorded here.
            model: the model to train.
            rewards: the trained reward's terms by name, one for each weight in ``config.rewards``.
            heldout: rewards that are only watched.
            prompts: the prompts.
            accelerator: devices and processes.
            metadata: header of the adapter file.
        """
        limited, sampling = guard(rewards, config.reward_timeout), config.sampling
        entry = entry_of(config.algorithm.name)
        self.context = RunContext(
            config,
            model,
            model.policy_steps(
                sampling.steps, sampling.eta, noisy_range(sampling.noisy_steps, sampling.steps, auto=entry.window)
            ),
            prompt_table(config, model, prompts),
            rewards,
            limited,
            Processes(accelerator),
            RewardMix(config),
        )
        self.metadata, self.output = dict(metadata or {}), Path(config.output)
        self.algorithm = entry.load()(self.context)
        self.state = TrainState()
        self.monitor = Monitor(self.context, limited | guard(heldout, config.reward_timeout))

    def run(self) -> Path:
        """Train to the last iteration.

        Returns:
            The adapter file; with an adapter for each reward the folder that holds their files.

        Raises:
            TrainingCollapsed: a number was not finite or a stop rule fired; the last good adapter is in the output
                folder all the same.
            RewardFailed: a reward raised an error, or exceeded ``reward_timeout``.
            ValueError: a reward returned the wrong thing, or the checkpoint to resume from does not fit.
        """
        run = self.context.config.run
        if self.context.config.resume:
            self._resume()
        with self.monitor.open(self.state):
            self._loop()
        if self.state.iteration % run.save_every:
            self._save()
        return self._export()

    def _loop(self) -> None:
        run, model = self.context.config.run, self.context.model
        good = adapter_copy(model), self.state.average
        try:
            while self.state.iteration < run.iterations:
                self._watch()
                sampled_from = adapter_copy(model), self.state.average
                figures = self._iterate()
                self.monitor.record(self.state, figures)
                self._check_stop_rules(figures)
                good = sampled_from  # its images passed the stop rules; those of the updated adapter do not exist yet
                if self.state.iteration % run.save_every == 0:
                    self._save()
            self._watch(last=True)
        except TrainingCollapsed as collapse:
            adapter, self.state.average = good
            restore_adapter(model, adapter)
            raise TrainingCollapsed(
                f"stopped in iteration {self.state.iteration}: {collapse}. The last good adapter is {self._export()}. "
                "Lower optimizer.learning_rate or raise algorithm.kl_weight"
            ) from collapse

    def _iterate(self) -> dict[str, float]:
        started = time.monotonic()
        self.context.reward_mix.iteration = self.state.iteration
        figures = self.algorithm.iterate(self.state.iteration)
        self.state.iteration += 1
        self._average()
        return {**figures, "samples_per_second": self.context.images_per_iteration / (time.monotonic() - started)}

    def _average(self) -> None:
        """Move the averaged adapter towards the trained one: ``average = ema average + (1 - ema) adapter``."""
        decay = self.context.config.run.ema
        if decay:
            now = adapter_copy(self.context.model)
            old = self.state.average or now
            self.state.average = {name: decay * old[name] + (1 - decay) * value for name, value in now.items()}

    def _watch(self, *, last: bool = False) -> None:
        with averaged(self.state, self.context.model):
            self.monitor.watch(self.state, last=last)

    def _check_stop_rules(self, figures: Mapping[str, float]) -> None:
        run = self.context.config.run
        if self.state.first_diversity is None:
            self.state.first_diversity = figures["diversity"]
        if figures["diversity"] < run.stop_diversity * self.state.first_diversity:
            raise TrainingCollapsed(
                f"images differ by {figures['diversity']:.3g}, below {run.stop_diversity} (run.stop_diversity) of the "
                f"first iteration's {self.state.first_diversity:.3g}: the policy has collapsed to one picture"
            )
        if run.stop_kl and figures.get("kl", 0.0) > run.stop_kl:
            raise TrainingCollapsed(f"KL {figures['kl']:.3g} nats is above {run.stop_kl} (run.stop_kl)")

    def _resume(self) -> None:
        """Go on from the newest checkpoint; a run without one starts anew."""
        checkpoint = newest_checkpoint(self.output)
        if checkpoint is None:
            return
        saved = load_state(checkpoint)
        from_dict(saved, self.state, self.context.model)
        restore_random_state(saved, self.context.processes.rank)
        # Checkpoints of version 0.1 hold the algorithm's state beside the run's.
        self.algorithm.load_state_dict(saved.get("algorithm", saved))
        self.context.reward_mix.load_state_dict(saved.get("reward_mix", {}))

    def _save(self) -> None:
        processes, config = self.context.processes, self.context.config
        others = processes.gather_objects(random_state())[1:]
        if processes.main:
            state: dict[str, Any] = {
                **to_dict(self.state, self.context.model),
                **({"random_of_others": others} if others else {}),
                "algorithm": self.algorithm.state_dict(),
                "reward_mix": self.context.reward_mix.state_dict(),
                "config": dataclasses.asdict(config),
                "processes": processes.count,
            }
            checkpoints = self.output / "checkpoints"
            folder = save_checkpoint(checkpoints, self.state.iteration, state, self._adapters(), config.run.keep)
            logger.info("checkpoint %s", folder)
        processes.wait()

    def _adapters(self) -> dict[str, bytes]:
        """The contents of the adapter files by name."""
        config, model = self.context.config, self.context.model
        samples = self.state.iteration * self.context.images_per_iteration
        metadata = {**self.metadata, "diffusion_blend.samples": str(samples)}
        with averaged(self.state, model):
            if not config.algorithm.adapter_per_reward:
                return {ADAPTER: model.export(metadata)}
            stacked = cast(StackedModel, model)
            return {
                name: stacked.export_member(i, member_metadata(metadata, config, i, samples))
                for i, name in enumerate(member_files(config))
            }

    def _export(self) -> Path:
        if self.context.processes.main:
            for name, content in self._adapters().items():
                write_atomically(self.output / name, content)
        self.context.processes.wait()
        return self.output if self.context.config.algorithm.adapter_per_reward else self.output / ADAPTER
