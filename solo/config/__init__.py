"""The schema of a run: frozen, nested, validated. Unknown keys are refused with a suggestion.

A config file is YAML. `extends: other.yaml` (a path relative to the file, or a list of them) names files that it
overrides: mappings are merged key by key, lists are replaced. `key.path=value` overrides are applied last.
`load_config` returns a `Config`; `dump_config` writes it as YAML that repeats the run by itself. Every key declares
what it decides (`solo.config.base.Decides`); `identity`, `differences` and `keys_deciding` compare configs by that.
"""

from solo.config.averages import AverageConfig
from solo.config.base import ConfigError, Section, nearest
from solo.config.branch import BranchConfig
from solo.config.checkpoint import BestConfig, CheckpointConfig, SafetyConfig
from solo.config.compare import Difference, differences, flat, identity, keys_deciding, summary
from solo.config.data import DataConfig, ImageConfig, SequenceConfig, SourceConfig, TokenizerConfig
from solo.config.evaluation import EvaluationConfig, HeldOutConfig, TaskConfig
from solo.config.file import dump_config, load_config, parse_config, parse_section, read_config, set_value
from solo.config.filters import FilterConfig
from solo.config.model import (
    ExpertsConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    ParametrisationConfig,
    PatchEmbedConfig,
    RopeScalingConfig,
    Sharing,
)
from solo.config.optimizer import GroupConfig, OptimizerConfig, UpdateRuleConfig
from solo.config.run import Config
from solo.config.training import Average, LossConfig, StageConfig
from solo.config.watch import ProfileConfig, WandbConfig, WatchConfig

__all__ = [
    "Average",
    "AverageConfig",
    "BestConfig",
    "BranchConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "Difference",
    "EvaluationConfig",
    "ExpertsConfig",
    "FilterConfig",
    "GroupConfig",
    "HeldOutConfig",
    "ImageConfig",
    "LossConfig",
    "MeshConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParametrisationConfig",
    "PatchEmbedConfig",
    "ProfileConfig",
    "RopeScalingConfig",
    "SafetyConfig",
    "Section",
    "SequenceConfig",
    "Sharing",
    "SourceConfig",
    "StageConfig",
    "TaskConfig",
    "TokenizerConfig",
    "UpdateRuleConfig",
    "WandbConfig",
    "WatchConfig",
    "differences",
    "dump_config",
    "flat",
    "identity",
    "keys_deciding",
    "load_config",
    "nearest",
    "parse_config",
    "parse_section",
    "read_config",
    "set_value",
    "summary",
]
