"""What can be set in a training run. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from camelid.base.recipe import Recipe

RECIPE = "recipe.toml"
"""The recipe as it was validated, every default spelt out."""

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class OptimizerSettings(Recipe):
    """How gradients become updates."""

    name: Literal["adamw", "muon"] = "adamw"
    """"muon": Muon for the matrices of the blocks, AdamW for embeddings, norms, biases and the output matrix."""
    learning_rate: float = Field(default=3e-4, gt=0, le=10)
    """The peak; Muon's updates are scaled to AdamW's size, so that one rate serves both."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's."""
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    """Of matrices and embeddings; norms and biases have none."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients whose common norm is larger are scaled down to it."""


class ScheduleSettings(Recipe):
    """The learning rate's curve, as a share of the peak."""

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: CountOrZero = 100
    decay_steps: CountOrZero = 0
    """Last steps of the run in which "wsd" decays."""
    final_share: Share = 0.1
    """Share of the peak at the last step of "cosine" and "wsd"."""


class TrainSettings(Recipe):
    """One run of the trainer, whatever it trains on."""

    steps: Count = 1000
    """Updates of the whole run."""
    accumulation: Count = 1
    """Batches whose gradients make one update."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    z_loss: float = Field(default=0.0, ge=0, le=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; weights, gradients' sums and optimizer state are float32. "auto": bfloat16 on an
    accelerator that has it, else float32: a CPU without bf16 units is 6× slower in it."""
    compile: bool = False
    """Compile each block with torch.compile."""
    activation_checkpointing: bool = False
    """Keep only the blocks' inputs and compute the rest again in the backward pass."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last two are kept."""
    milestone_every: CountOrZero = 0
    """A checkpoint at a multiple of this is never deleted; 0: none is."""
    log_every: Count = 10
    """Steps between plain lines in a log; a terminal shows every step."""
    validate_every: CountOrZero = 0
    """Steps between measurements on held-out data, if there is any; 0: only the last step is followed by one."""
    validate_batches: CountOrZero = 0
    """How many of the first held-out batches a measurement takes; 0: all."""
    sample_every: CountOrZero = 0
    """Steps between samples of what the model writes, the last step included; 0: none."""
    sample_prompts: tuple[str, ...] = ()
    """What the samples go on from; a user's messages where the model is one to chat with."""
    sample_tokens: Count = 64
    """Tokens of a sample at most."""
    sample_temperature: float = Field(default=0.0, ge=0, le=10)
    """0: the likeliest token each time."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        schedule = self.schedule
        if schedule.name == "wsd" and not schedule.decay_steps:
            raise ValueError("the schedule 'wsd' needs decay_steps")
        if schedule.name != "wsd" and schedule.decay_steps:
            raise ValueError(f"decay_steps means nothing to the schedule '{schedule.name}'")
        if "steps" in self.model_fields_set and (problem := self.schedule_problem()):
            raise ValueError(problem)
        if bool(self.sample_every) != bool(self.sample_prompts):
            raise ValueError("sample_every and sample_prompts go together")
        if self.milestone_every % self.checkpoint_every:
            raise ValueError("milestone_every must be a multiple of checkpoint_every")
        return self

    def schedule_problem(self) -> str | None:
        """What is wrong where the schedule does not fit into the steps, which may be known only after the recipe."""
        warmup, decay = self.schedule.warmup_steps, self.schedule.decay_steps
        fits = warmup + decay <= self.steps
        return None if fits else f"warmup_steps {warmup} and decay_steps {decay} exceed the {self.steps} steps"


FREE_TO_CHANGE = frozenset(
    {
        *("checkpoint_every", "milestone_every", "log_every", "validate_every", "validate_batches"),
        *("sample_every", "sample_prompts", "sample_tokens", "sample_temperature"),
    }
)
"""Settings that may differ between a checkpoint and the run that resumes from it: they leave the weights alone."""
