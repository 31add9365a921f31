"""What this library builds on in RecBole 1.2.0 that RecBole does not promise: private methods, and names of settings.

:data:`HOOKS` names each private method that a class here overrides or calls, as it was read in that version;
``tests/test_recbole_hooks.py`` compares it with the RecBole that is installed. What RecBole itself breaks on newer
libraries is in :mod:`recbole_cdr_ext.compat`.
"""

from __future__ import annotations

from collections.abc import Mapping

from recbole_cdr_ext.settings.blocks import BLOCKS

# By RecBole's class, its private methods and their arguments, in the order in which it calls them.
HOOKS: Mapping[str, Mapping[str, str]] = {
    "recbole.config:Config": {
        "compatibility_settings": "(self)",
        "_init_parameters_category": "(self)",
        "_build_yaml_loader": "(self)",
        "_load_config_files": "(self, file_list)",
        "_load_variable_config_dict": "(self, config_dict)",
        "_load_cmd_line": "(self)",
        "_merge_external_config_dict": "(self)",
        "_get_model_and_dataset": "(self, model, dataset)",
        "_load_internal_config_dict": "(self, model, model_class, dataset)",
        "_get_final_config_dict": "(self)",
        "_set_default_parameters": "(self)",
        "_init_device": "(self)",
        "_set_train_neg_sample_args": "(self)",
    },
    "recbole.data.dataset:Dataset": {
        "_from_scratch": "(self)",
        "_get_preset": "(self)",
        "_get_field_from_config": "(self)",
        "_filter_by_field_value": "(self)",
        "_filter_by_inter_num": "(self)",
        "_fill_nan": "(self)",
        "_load_feat": "(self, filepath, source)",
        "_remap": "(self, remap_list)",  # another method's name here: RecBole's is not called
    },
    "recbole.sampler:Sampler": {
        "_uni_sampling": "(self, sample_num)",
    },
    "recbole.trainer:Trainer": {
        "_build_optimizer": "(self, **kwargs)",
        "_train_epoch": "(self, train_data, epoch_idx, loss_func=None, show_progress=False)",
        "_valid_epoch": "(self, valid_data, show_progress=False)",
        "_generate_train_loss_output": "(self, epoch_idx, s_time, e_time, losses)",
    },
}

# Keys that RecBole or this library reads and that no property file declares.
UNDECLARED_KEYS = {
    "model", "dataset", "config_files", "encoding", "benchmark_filename", "tail_ratio", "shuffle",
    "local_rank", "nproc", "world_size", "offset", "ip", "port", *BLOCKS,
}  # fmt: skip
# Keys of RecBole-CDR's domain blocks that RecBole itself doesn't know.
DOMAIN_KEYS = {"data_path", "drop_filter_field", "drop_preload_weight", "encoding", "seq_separator"}
# What RecBole and RecBole-CDR call settings that have another name here.
RENAMED = {
    "neg_sampling": "train_neg_num",
    "training_neg_sample_num": "train_neg_num",
    "train_epochs": "epochs",
    "max_len": "max_history_length",
}
# What RecBole computes from the settings, or finds on the machine: no settings of their own.
DERIVED_KEYS = {
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_metric_bigger", "valid_neg_sample_args",
    "test_neg_sample_args", "device", "single_spec", "local_rank", "nproc", "world_size", "offset", "ip", "port",
    "data_root",
}  # fmt: skip
