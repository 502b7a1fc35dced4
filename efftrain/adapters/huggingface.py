"""Measures a transformers `Trainer`.

```python
callback = EfftrainCallback("my-model", country="FRA")
Trainer(..., callbacks=[callback]).train()
print(callback.run)
```

The trainer tells where its steps, optimizer and evaluations are; where the model's forward pass begins and ends tell
two hooks on the model, which change nothing in it. What comes after the forward pass, gradient clipping included, is
`backward`. Tokens are the sizes of `input_ids`, padding included. Under `torch_compile` the hooks would be compiled too
and are left out: a step then has no forward phase, and its tokens are those that the trainer counts where
`include_num_input_tokens_seen` is set.
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from efftrain.adapters.trainers import TrainerMeasurement, first_ids, harmless, quietly


class EfftrainCallback(TrainerMeasurement, TrainerCallback):
    """A callback for `Trainer(callbacks=[...])`; arguments as in `efftrain.measure`.

    The name is the trainer's `run_name`, or that of its output folder, if none is given.
    """

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(name, **options)
        self._hooks: list[Any] = []
        self._seen = 0  # tokens that the trainer has counted

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to measure."""
        model = kwargs.get("model")
        self._seen = state.num_input_tokens_seen
        with quietly("the measurement could not begin"):
            parameters = sum(p.numel() for p in model.parameters()) if model is not None else 0
            self.begin(_name(args), parameters=parameters, seed=args.seed, config=args.to_sanitized_dict())
        self._watch(model, compiled=bool(args.torch_compile))

    @harmless
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The step's batches have been fetched."""
        self._of_run.mark("data", from_the_start=True)

    @harmless
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are ready."""
        self._of_run.mark("optimizer")

    @harmless
    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Weights are updated."""
        if not self._hooks:  # the trainer gathers over all ranks, of which the first one is enough
            self._tokens = (state.num_input_tokens_seen - self._seen) * (args.process_index == 0)
        self._of_run.step(tokens=self._tokens)
        self._tokens, self._seen = 0, state.num_input_tokens_seen
        self.leave()

    @harmless
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """The trainer's own mean loss since its last log belongs to the last step."""
        logs = logs or {}
        if "loss" in logs:
            self._of_run.late(
                loss=logs["loss"], learning_rate=logs.get("learning_rate"), grad_norm=logs.get("grad_norm")
            )

    @harmless
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """An evaluation is over."""
        self.past("evaluate")
        loss = (metrics or {}).get("eval_loss")
        if loss is not None:
            self._of_run.evaluation(loss=loss)

    @harmless
    def on_save(self, *_: Any, **__: Any) -> None:
        """A checkpoint is written."""
        self.past("checkpoint")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Write record and report."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.end("complete" if state.global_step >= state.max_steps else "early-stopped")

    @harmless
    def _watch(self, model: Any, *, compiled: bool) -> None:
        if model is None or compiled:
            return

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training:
                self._of_run.mark("forward")
                self._tokens += first_ids(kwargs or args, getattr(module, "main_input_name", "input_ids"))

        def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
            if module.training:
                self._of_run.mark("backward")

        self._hooks = [
            model.register_forward_pre_hook(_harmless_hook(self, before), with_kwargs=True),
            model.register_forward_hook(_harmless_hook(self, after)),
        ]


def _harmless_hook(callback: EfftrainCallback, hook: Any) -> Any:
    def guarded(*args: Any) -> None:
        if callback.run is not None:
            with callback.run.guarded("a hook on the model failed"):
                hook(*args)

    return guarded


def _name(args: TrainingArguments) -> str:
    return str(args.run_name or (args.output_dir or "").rstrip("/").rpartition("/")[2] or "trainer")
