"""The one schema of a run: frozen, nested, validated; unknown keys are refused with a suggestion.

A config file is YAML. `extends: other.yaml` (a path relative to the file, or a list of them) is merged
under it, mappings key by key, lists as a whole. `key.path=value` overrides come last. `load_config` returns
a `Config`; `dump_config` writes one back, and that text alone repeats the run.
"""

from solo.config.base import ConfigError, Section, nearest
from solo.config.data import DataConfig, ImageConfig, SequenceConfig, SourceConfig, TokenizerConfig
from solo.config.file import dump_config, load_config, parse_config, parse_section, read_config, set_value
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
from solo.config.run import Config
from solo.config.training import (
    Average,
    CheckpointConfig,
    EvaluationConfig,
    HeldOutConfig,
    LossConfig,
    OptimizerConfig,
    SafetyConfig,
    StageConfig,
    TaskConfig,
)

__all__ = [
    "Average",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "ExpertsConfig",
    "HeldOutConfig",
    "ImageConfig",
    "LossConfig",
    "MeshConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParametrisationConfig",
    "PatchEmbedConfig",
    "RopeScalingConfig",
    "SafetyConfig",
    "Section",
    "SequenceConfig",
    "Sharing",
    "SourceConfig",
    "StageConfig",
    "TaskConfig",
    "TokenizerConfig",
    "dump_config",
    "load_config",
    "nearest",
    "parse_config",
    "parse_section",
    "read_config",
    "set_value",
]
