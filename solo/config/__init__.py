"""The config schema of a run: nested, immutable, validated sections that reject unknown keys with a suggestion.

A config file is YAML. `extends: other.yaml` (a path relative to the file, or a list of paths) loads other files first,
and the file overrides them: mappings are merged key by key, and lists are replaced. `key.path=value` overrides are
applied last. `load_config` returns a `Config`. `dump_config` writes it as a single self-contained YAML document. Every
key declares what it affects (`solo.config.base.Decides`), and `identity`, `differences` and `keys_deciding` use these
declarations to compare configs.
"""

from solo.config.averages import AverageConfig
from solo.config.base import ConfigError, Section, nearest
from solo.config.branch import BranchConfig
from solo.config.checkpoint import BestConfig, CheckpointConfig, SafetyConfig
from solo.config.compare import Difference, differences, flat, identity, keys_deciding, summary
from solo.config.data import DataConfig, ImageConfig, LayerMaskConfig, SequenceConfig, SourceConfig, TokenizerConfig
from solo.config.evaluation import EvaluationConfig, HeldOutConfig, TaskConfig
from solo.config.file import dump_config, load_config, parse_config, parse_section, read_config, set_value
from solo.config.filters import FilterConfig
from solo.config.heads import HeadPartConfig
from solo.config.layer_types import LayerTypeConfig
from solo.config.model import (
    ExpertsConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    ParametrisationConfig,
    PatchEmbedConfig,
    QuantizationConfig,
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
    "HeadPartConfig",
    "HeldOutConfig",
    "ImageConfig",
    "LayerMaskConfig",
    "LayerTypeConfig",
    "LossConfig",
    "MeshConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParametrisationConfig",
    "PatchEmbedConfig",
    "ProfileConfig",
    "QuantizationConfig",
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
