"""Messages for unknown flags: the flag that a name from another project's scripts stands for, or the nearest ones."""

import types
from collections.abc import Collection

from resnet_jax.errors import nearest

# For each flag, the names that other scripts use for it: torchvision's, timm's and earlier ones of this project. A name
# that stands for several flags is listed with each; those that the command defines are suggested.
_NAMES_ELSEWHERE = {
    'init_from': 'run run_dir model model_path weight weights weights_path pretrained pretrained_path checkpoint'
    ' checkpoint_path checkpoint_dir ckpt ckpt_path ckpt_dir load load_from load_path restore initial_checkpoint'
    ' finetune resume resume_from test_only workdir work_dir',
    'workdir': 'out out_dir outdir output output_dir output_path work_dir run_dir save save_dir save_path'
    ' log_dir logdir logs results_dir exp exp_dir experiment model_dir train_dir resume resume_from',
    'out': 'workdir work_dir out_dir outdir out_file outfile output output_dir output_file output_path o save save_dir'
    ' save_path log_dir logdir results_dir results_file exp_dir markdown format dest destination target_dir',
    'runs': 'run run_dir workdir work_dir dir folder path log_dir logdir init_from',
    'arch': 'a model model_name model_arch network net architecture backbone name variant',
    'pattern': 'arch model model_name name filter search',
    'dataset': 'd data ds data_dir data_path dataset_dir dataset_path dataset_name data_root root imagenet folder'
    ' input_dir',
    'images': 'i data data_dir data_path dataset dataset_dir image img imgs input inputs input_dir image_dir files file'
    ' photo photos path source folder dir',
    'image_size': 'img_size imgsz img input_size size crop_size train_crop_size val_crop_size val_resize_size res'
    ' resolution resize',
    'crop_pct': 'crop crop_ratio center_crop',
    'interpolation': 'interp resample train_interpolation',
    'strict_data': 'strict',
    'batch_size': 'b bs batch batchsize bsz train_batch_size val_batch_size eval_batch_size test_batch_size'
    ' validation_batch_size per_device_train_batch_size',
    'accumulation_steps': 'accum accum_iter grad_accum grad_accum_steps gradient_accumulation_steps',
    'epochs': 'e ep epoch n_epochs num_epochs nb_epochs max_epochs num_train_epochs iters max_steps steps',
    'learning_rate': 'lr base_lr max_lr peak_lr lr_base eta blr',
    'learning_rate_batch_size': 'lr_base_size',
    'final_learning_rate': 'lr_min min_lr end_lr eta_min',
    'learning_rate_factors': 'layer_decay lr_mult lr_factors',
    'head_learning_rate': 'head_lr lr_head classifier_lr',
    'weight_decay': 'wd decay l2 reg weightdecay norm_weight_decay',
    'momentum': 'm mom beta',
    'b1': 'beta1 adam_beta1',
    'b2': 'beta2 adam_beta2',
    'optimizer': 'opt optim optimiser solver',
    'schedule': 'sched scheduler lr_scheduler lr_schedule lr_policy',
    'warmup_epochs': 'warmup warmup_steps lr_warmup_epochs warmup_iters',
    'warmup_start': 'warmup_lr lr_warmup_decay warmup_factor',
    'decay_epochs': 'milestones decay_milestones lr_steps lr_step_size step_size lr_milestones',
    'decay_factor': 'gamma lr_gamma decay_rate lr_decay',
    'label_smoothing': 'smoothing ls label_smooth',
    'clip_norm': 'clip clip_grad clip_grad_norm grad_clip max_grad_norm max_norm gradient_clip',
    'adaptive_clip': 'agc',
    'sam_rho': 'sam rho',
    'ema_decay': 'ema model_ema model_ema_decay',
    'ema_every_steps': 'model_ema_steps',
    'dropout_rate': 'drop dropout',
    'drop_path_rate': 'drop_path stochastic_depth stochastic_depth_prob',
    'drop_block_rate': 'drop_block',
    'zero_init_last': 'zero_init zero_init_residual zero_gamma',
    'policy': 'aa auto_augment autoaugment randaugment augment',
    'random_erasing': 'reprob random_erase erase erasing',
    'cutout': 'cutout_length',
    'mixup': 'mixup_alpha',
    'cutmix': 'cutmix_alpha',
    'horizontal_flip': 'hflip flip mirror random_flip',
    'crop_padding': 'pad padding',
    'crop_area': 'scale',
    'augmentation_repeats': 'ra_reps ra_sampler aug_repeats',
    'color_jitter': 'jitter',
    'statistics': 'sync_bn dist_bn',
    'freeze': 'freeze_backbone frozen freeze_layers',
    'distill_from': 'teacher teacher_path teacher_model kd distill distillation',
    'distill_weight': 'alpha distillation_alpha',
    'distill_temperature': 'temperature tau distillation_tau T',
    'compute_dtype': 'amp apex_amp fp16 half bf16 bfloat16 precision mixed_precision dtype amp_dtype',
    'implementation': 'backend impl',
    'remat': 'checkpointing grad_checkpointing gradient_checkpointing',
    'task': 'problem loss_type',
    'seed': 'random_seed manual_seed rng_seed s',
    'num_seeds': 'seeds n_seeds num_runs trials repeats',
    'num_workers': 'j workers nw n_workers num_proc data_workers',
    'eval_every_epochs': 'eval_interval val_interval eval_freq eval_every test_every',
    'checkpoint_every_epochs': 'save_freq save_every save_interval checkpoint_freq checkpoint_interval save_epochs',
    'log_every_steps': 'print_freq log_interval log_freq log_every',
    'profile_steps': 'profile profiler',
    'num_processes': 'world_size nproc nnodes num_nodes',
    'process_index': 'rank node_rank process_id',
    'coordinator_address': 'dist_url master_addr dist_addr',
    'test_flip': 'tta',
    'test_sizes': 'val_sizes sizes',
    'published_test_size': 'use_train_size test_input_size',
    'top': 'topk top_k k',
    'explain': 'cam grad_cam gradcam saliency',
    'format': 'output_type output_format style',
    'neighbors': 'neighbours num_neighbors k topk nearest',
    'num_images': 'n num num_examples samples columns',
    'platforms': 'platform target targets',
    'layout': 'format to',
    'depths': 'depth',
    'script': 'command program',
    'help': 'h usage',
}

# Names without a flag of any command, and what to do instead.
_WITHOUT_FLAG = {
    'JAX uses every device that it finds; JAX_PLATFORMS=cpu selects the CPU, CUDA_VISIBLE_DEVICES some GPUs': 'gpu gpus'
    ' ngpu num_gpu num_gpus gpu_id gpu_ids device devices cuda use_cuda no_cuda cpu tpu local_rank accelerator',
    'the number of classes follows from the dataset or the weights': 'num_classes nb_classes n_classes classes',
    'an interrupted run resumes with the same command': 'start_epoch auto_resume continue',
    'JAX compiles every network': 'compile torchcompile torchscript jit channels_last',
}


def _by_name(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The table in the other direction: for each name, the keys that it is listed with."""
    found: dict[str, tuple[str, ...]] = {}
    for key, names in table.items():
        for name in names.split():
            found[name] = (*found.get(name, ()), key)
    return found


_FLAGS_OF, _ADVICE_OF = (types.MappingProxyType(_by_name(table)) for table in (_NAMES_ELSEWHERE, _WITHOUT_FLAG))


def unknown_flag(name: str, own: Collection[str], script: str) -> str:
    """The error message for a flag that a command does not define.

    Args:
      name: the flag as the user wrote it, without dashes and value.
      own: names of the flags that the command defines.
      script: the module of the command, ``experiments.NAME``.
    """
    written = f'unknown flag {"-" if len(name) == 1 else "--"}{name}'
    plain = name.replace('-', '_')
    lower = plain.lower()
    for one in (plain, lower, lower.removeprefix('no_'), lower.removeprefix('no')):
        known = [one] if one in own else [flag for flag in _FLAGS_OF.get(one, ()) if flag in own]
        if len(known) == 1:
            return f'{written}; use --{known[0]}'
        if known:
            return f'{written}; use {" or ".join(map(_with_role, known))}'
        if one in _ADVICE_OF:
            return f'{written}; {_ADVICE_OF[one][0]}'
    return f'{written}; {nearest(plain, sorted(own))}; python -m {script} --help explains all flags'


def _with_role(flag: str) -> str:
    roles = {
        'init_from': 'run or weights to read',
        'workdir': 'folder of the run; the same command resumes there',
        'out': 'output file or folder',
        'arch': 'architecture',
    }
    return f'--{flag} ({roles[flag]})' if flag in roles else f'--{flag}'
