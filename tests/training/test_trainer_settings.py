"""Every setting of Trainer: honoured as Trainer has it, or refused with the reason."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

from pact.training import PactTrainer
from pact.training.trainer_settings import ARGUMENTS, OPTIONS, check_settings
from tests.tiny import tiny_llama
from tests.training.problem import problem

HONOURED = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16 tf32
activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size
logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
per_device_eval_batch_size prediction_loss_only eval_on_start eval_use_gather_object
eval_accumulation_steps save_only_model save_strategy save_steps save_on_each_node save_total_limit
enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu
accelerator_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
dataloader_in_order remove_unused_columns train_sampling_strategy length_column_name
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend
ddp_timeout debug skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint local_rank
""".split()
"""Fields of TrainingArguments that mean here what they mean for Trainer.

Those of the optimiser, the data's order, logs, saves, devices and DDP do not touch the loss.
Precision, checkpointing and NEFTune act on the backbone, which runs as it is. Of an evaluation
there is a loss alone in any case.
"""

OLDER = """
overwrite_output_dir warmup_ratio save_safetensors no_cuda use_ipex jit_mode_eval use_mps_device
past_index group_by_length torchdynamo ray_scope tpu_num_cores tpu_metrics_debug
half_precision_backend bf16_backend fp16_backend fp16_opt_level logging_dir mp_parameters
include_inputs_for_metrics dispatch_batches split_batches include_tokens_per_second
push_to_hub_model_id push_to_hub_organization push_to_hub_token adafactor fsdp_min_num_params
fsdp_transformer_layer_cls_to_wrap use_legacy_prediction_loop place_model_on_device
""".split()
"""Fields of other versions, honoured as far as those versions do."""

ASKING: dict[str, Any] = {
    "label_smoothing_factor": 0.1,
    "torch_compile": True,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "average_tokens_across_devices": False,
    "label_names": ["targets"],
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 10},
    "deepspeed": {"zero_optimization": {"stage": 3}},
    "parallelism_config": object(),
}


def test_every_setting_is_in_one_list() -> None:
    """Where this fails for a newer transformers, decide what its setting does to the loss."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    unknown = fields - {*HONOURED, *OLDER, *ARGUMENTS}
    assert not unknown, f"not classified: {sorted(unknown)}"
    assert not set(HONOURED) & set(ARGUMENTS)
    parameters = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    known = {
        *("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class"),
        *("callbacks", "optimizers", "optimizer_cls_and_kwargs", "tokenizer"),
        *OPTIONS,
    }
    assert not parameters - known, f"not classified: {sorted(parameters - known)}"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_setting_that_cannot_be_honoured_is_refused(name: str, tmp_path: Path) -> None:
    assert set(ASKING) == set(ARGUMENTS)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    check_settings(arguments, {})
    setattr(arguments, name, ASKING[name])  # as it is after TrainingArguments' own checks
    with pytest.raises(ValueError, match=f"PactTrainer cannot honour {name}="):
        PactTrainer(
            tiny_llama(),
            arguments,
            objective=problem(None).objective,
            data_collator=problem(None).collator,
        )


@pytest.mark.parametrize("name", OPTIONS)
def test_an_argument_that_cannot_be_honoured_is_refused(name: str, tmp_path: Path) -> None:
    given = problem(None)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=f"PactTrainer cannot honour {name}: "):
        PactTrainer(
            None if name == "model_init" else tiny_llama(),
            arguments,
            objective=given.objective,
            data_collator=given.collator,
            **{name: lambda *_: None},
        )
