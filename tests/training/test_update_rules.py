"""Update rules against optax on each layer's own matrix, on one device and on eight; groups; what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solo.config import (
    ConfigError,
    ExpertsConfig,
    ImageConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    StageConfig,
)
from solo.model.parameters import ModelDefinition
from solo.planning.memory import held
from solo.sharding.mesh import make_mesh, parameter_shardings, shardings_like
from solo.training.groups import rate_scales
from solo.training.optimizer import begin_anew, carry_state, check_stages, make_optimizer, update_rules

L, D, H, K, C, F, E, V = 3, 32, 4, 2, 8, 48, 2, 64
MODEL = ModelConfig(
    width=D, layers=L, heads=H, kv_heads=K, ffn_width=F, bias="qkv", qk_norm="rms", vocab_multiple=V,
    experts=ExpertsConfig(ffn="moe"), moe=MoEConfig(count=E, top_k=1),
)  # fmt: skip
SPECS = ModelDefinition(MODEL, ImageConfig(patch_size=2, max_side=64), V).specs
RATE, DECAY, CLIP = 0.03, 0.2, 0.5
RULES = {
    "adamw": {},
    "lion": {},
    "sgd": {"nesterov": True},
    "muon": {},
    "muon of Jordan": {"name": "muon", "muon": {"consistent_rms": None, "nesterov": False}},
    "adafactor": {"beta1": 0.9, "adafactor": {"min_dim_size_to_factor": 8}},
    "adafactor, absolute": {
        "name": "adafactor",
        "adafactor": {"multiply_by_parameter_scale": False, "clipping_threshold": None, "min_dim_size_to_factor": 8},
    },
}


def config(name: str = "adamw", **keys) -> OptimizerConfig:
    data = {"learning_rate": RATE, "weight_decay": DECAY, "clip_norm": CLIP, **keys}
    return OptimizerConfig.model_validate({"name": name, **data}, strict=False)


def rule_config(case: str, **keys) -> OptimizerConfig:
    return config(**{"name": case, **RULES[case], **keys})


def arrays(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    # Layers of different scales: whatever mixes them differs from optax on each.
    return {
        path: jnp.asarray(
            rng.normal(0, 10.0 ** rng.integers(-3, 1, (*spec.shape[:1], *[1] * (len(spec.shape) - 1))), spec.shape),
            jnp.float32,
        )
        for path, spec in SPECS.items()
    }


def unstacked(tree: dict) -> dict:
    """The matrices and vectors of every layer and expert, each an array of its own."""
    found = {}
    for path, value in tree.items():
        layers = {f"{path} {n}": part for n, part in enumerate(value)} if path.startswith("layers/") else {path: value}
        for name, part in layers.items():
            kind = path.split("/")[-1]
            if "/moe/" in path and kind != "router":
                found |= {f"{name} {n}": expert for n, expert in enumerate(part)}
            elif kind in ("q", "k", "v"):
                found[name] = part.reshape(D, -1)
            elif path.startswith("layers/out/"):
                found[name] = part.reshape(-1, D)
            else:
                found[name] = part.reshape(-1) if kind.endswith("_bias") else part
    return found


def is_matrix(name: str) -> bool:
    path = name.split(" ")[0]
    return not (path.endswith(("norm/scale", "_bias")) or "_norm/" in path or path == "text_embed")


def of_muon(name: str) -> bool:
    return is_matrix(name) and name.startswith("layers/")


def mask(tree: dict) -> dict:
    return {name: is_matrix(name) for name in tree}


def by_optax(case: str) -> optax.GradientTransformation:
    """The optimizer as a user of optax writes it."""
    adamw = optax.adamw(RATE, 0.9, 0.95, 1e-8, weight_decay=DECAY, mask=mask)
    muon = {"weight_decay": DECAY, "beta": 0.95}
    factored = {"min_dim_size_to_factor": 8, "weight_decay_rate": RATE * DECAY, "weight_decay_mask": mask}
    rules = {
        "adamw": adamw,
        "lion": optax.lion(RATE, 0.9, 0.99, weight_decay=DECAY, mask=mask),
        "sgd": optax.chain(
            optax.trace(0.9, nesterov=True), optax.add_decayed_weights(DECAY, mask), optax.scale_by_learning_rate(RATE)
        ),
        "muon": optax.contrib.muon(RATE, consistent_rms=0.2, **muon),
        "muon of Jordan": optax.contrib.muon(RATE, nesterov=False, **muon),
        "adafactor": optax.adafactor(RATE, momentum=0.9, **factored),
        "adafactor, absolute": optax.adafactor(
            RATE, multiply_by_parameter_scale=False, clipping_threshold=None, **factored
        ),
    }
    if not case.startswith("muon"):
        return rules[case]
    labels = lambda tree: {name: "muon" if of_muon(name) else "rest" for name in tree}  # noqa: E731
    return optax.partition({"muon": rules[case], "rest": adamw}, labels)


@partial(jax.jit, static_argnums=0)
def step(optimizer, scales: dict, parameters: dict, state, gradients: dict):
    directions, state = optimizer.update(gradients, state, parameters)
    return {p: v - RATE * scales.get(p, 1.0) * directions[p] for p, v in parameters.items()}, state


@partial(jax.jit, static_argnums=0)
def optax_step(optimizer, parameters: dict, state, gradients: dict):
    updates, state = optimizer.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state


def train(optimizer, parameters: dict, steps: int = 3, scales: dict | None = None, state=None, first: int = 0):
    """Some steps as `solo.training.step` takes them."""
    state = jax.jit(optimizer.init)(parameters) if state is None else state
    for number in range(first, first + steps):
        gradients = {path: value for path, value in arrays(10 + number).items() if path in parameters}
        parameters, state = step(optimizer, scales or {}, parameters, state, gradients)
    return parameters, state


def train_by_optax(optimizer, parameters: dict, steps: int = 3) -> dict:
    state = jax.jit(optimizer.init)(parameters)
    for number in range(steps):
        parameters, state = optax_step(optimizer, parameters, state, unstacked(arrays(10 + number)))
    return parameters


def assert_close(found: dict, expected: dict, rtol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(jnp.abs(value).max())
        np.testing.assert_allclose(found[name] / scale, value / scale, atol=rtol, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", RULES)
def test_each_layer_is_updated_as_by_optax_on_its_own_matrix(case: str) -> None:
    found, _ = train(make_optimizer(rule_config(case), SPECS, MODEL), arrays(0))
    reference = optax.chain(optax.clip_by_global_norm(CLIP), by_optax(case))
    assert_close(unstacked(found), train_by_optax(reference, unstacked(arrays(0))))


def test_a_momentum_of_zero_is_plain_gradient_descent() -> None:
    before = arrays(0)
    optimizer = make_optimizer(config("sgd", momentum=0.0, weight_decay=0.0, clip_norm=None), SPECS, MODEL)
    found, state = train(optimizer, before, steps=1)
    assert_close(found, {path: value - RATE * arrays(10)[path] for path, value in before.items()}, 1e-6)
    assert not jax.tree.leaves(state)


GROUPS = [
    {"match": ["layers/qkv", "layers/out"], "clip_norm": 0.1, "weight_decay": 0.5},
    {"match": ["*bias"], "learning_rate_scale": 3.0},
    {"match": ["text_embed"], "weight_decay": 0.7, "optimizer": {"name": "lion", "beta2": 0.9}},
    {"match": ["layers/qkv/*/q"], "learning_rate_scale": 0.0},
]


def test_groups_are_transformations_of_their_own() -> None:
    """The reference is optax.partition by the four groups and the rest, each with its own chain."""
    of = config(groups=GROUPS)
    stage = StageConfig(
        name="s",
        mixture={"a": 1.0},
        steps=1,
        batch_rows=1,
        optimizer=of,
        learning_rate_scale={"*bias": 9.0, "head": 2.0},
    )
    scales = rate_scales(SPECS, stage)
    found, _ = train(make_optimizer(of, SPECS, MODEL), arrays(0), scales=scales)

    def label(name: str) -> str:
        if name.startswith(("layers/qkv", "layers/out")):
            return "q" if "/q " in name else "bias" if "_bias" in name else "attention"
        return name if name in ("text_embed", "head") else "rest"

    def clip_label(name: str) -> str:
        return "attention" if name.startswith(("layers/qkv", "layers/out")) else "rest"

    def each(function):
        return lambda tree: {name: function(name) for name in tree}

    clip = optax.partition(
        {"attention": optax.clip_by_global_norm(0.1), "rest": optax.clip_by_global_norm(CLIP)}, each(clip_label)
    )
    adamw = lambda scale, decay: optax.adamw(RATE * scale, 0.9, 0.95, weight_decay=decay)  # noqa: E731
    rules = {
        "attention": adamw(1, 0.5),
        "bias": adamw(3, 0.5),
        "q": adamw(0, 0.5),
        "text_embed": optax.lion(RATE, 0.9, 0.9, weight_decay=0.7),
        "head": adamw(2, DECAY),
        "rest": optax.adamw(RATE, 0.9, 0.95, weight_decay=DECAY, mask=mask),
    }
    reference = optax.chain(clip, optax.partition(rules, each(label)))
    assert_close(unstacked(found), train_by_optax(reference, unstacked(arrays(0))))


def test_the_last_group_with_a_key_sets_it() -> None:
    groups = [
        {"match": ["layers"], "optimizer": {"name": "sgd"}, "learning_rate_scale": 2.0},
        {"match": ["layers/ffn"], "learning_rate_scale": 3.0},
    ]
    of = config("muon", groups=groups)
    rules = update_rules(of, SPECS)
    assert {path: rules[path].label for path in ("layers/ffn/moe/up", "head", "layers/out/shared/kernel")} == {
        "layers/ffn/moe/up": "sgd_0",
        "head": "adamw",
        "layers/out/shared/kernel": "sgd_0",
    }
    stage = StageConfig(name="s", mixture={"a": 1.0}, steps=1, batch_rows=1, optimizer=of)
    scales = rate_scales(SPECS, stage)
    assert (scales["layers/ffn/moe/up"], scales["layers/out/shared/kernel"], scales["head"]) == (3.0, 2.0, 1.0)


TENSOR = {"fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("case", "fsdp"),
    [*((case, {"fsdp": 8}) for case in [*RULES, "bfloat16"]), ("muon", TENSOR), ("adafactor", TENSOR)],
)
def test_eight_devices_hold_a_share_of_the_state_and_update_like_one(case: str, fsdp: dict[str, int]) -> None:
    low = {"first_moment_dtype": "bfloat16", "second_moment_dtype": "bfloat16"}
    of = config("muon", **low) if case == "bfloat16" else rule_config(case)
    mesh, before = make_mesh(MeshConfig(**fsdp), jax.devices()[:8]), arrays(0)
    expected, whole = train(make_optimizer(of, SPECS, MODEL), before, steps=1)
    optimizer = make_optimizer(of, SPECS, MODEL, mesh=mesh)
    by_path = parameter_shardings(SPECS, mesh)
    shardings = shardings_like(jax.eval_shape(optimizer.init, before), SPECS, mesh)
    sharded = {"in_shardings": (by_path,), "out_shardings": (by_path, shardings)}
    found, state = jax.jit(lambda p: train(optimizer, p, steps=1), **sharded)(jax.device_put(before, by_path))
    assert_close(found, expected, 2e-2 if case == "bfloat16" else 1e-4)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), whole)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = next((str(key.key) for key in reversed(path) if getattr(key, "key", None) in SPECS), "")
        if name and leaf.shape == SPECS[name].shape:
            assert leaf.sharding.is_equivalent_to(by_path[name], leaf.ndim), name
    on_first = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device.id == 0
    )
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    assert held(placed) == on_first


def test_rows_and_columns_of_a_factored_state_are_sharded_over_the_axis_that_they_keep() -> None:
    optimizer = make_optimizer(rule_config("adafactor, absolute"), SPECS, MODEL)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    state = jax.eval_shape(optimizer.init, arrays(0))
    (found,) = (
        node for node in jax.tree.leaves(shardings_like(state, SPECS, mesh), is_leaf=is_factored) if is_factored(node)
    )
    (shapes,) = (node for node in jax.tree.leaves(state, is_leaf=is_factored) if is_factored(node))
    expected = {
        # path: rows, sharding of rows, columns, sharding of columns. The larger side is summed over by rows.
        "layers/qkv/shared/q": ((L, D), (None, "fsdp"), (L, H * C), (None, "tensor")),
        "layers/qkv/shared/k": ((L, K * C), (None, "tensor"), (L, D), (None, "fsdp")),
        "layers/out/shared/kernel": ((L, H * C), (None, "tensor"), (L, D), (None, "fsdp")),
        "layers/ffn/moe/up": ((L, E, D), (None, None, "fsdp"), (L, E, F), (None, None, "tensor")),
        "text_embed": ((D,), ("fsdp",), (V,), ("tensor",)),
    }
    for path, (rows, rows_over, columns, columns_over) in expected.items():
        for field, shape, over in (("v_row", rows, rows_over), ("v_col", columns, columns_over)):
            assert getattr(shapes, field)[path].shape == shape, (path, field)
            entries = tuple(getattr(found, field)[path].spec)
            assert entries == over, (path, field)


def is_factored(node) -> bool:
    return isinstance(node, optax.FactoredState)


@pytest.mark.parametrize("case", RULES)
def test_carried_parameters_go_on_and_new_ones_take_a_first_step(case: str) -> None:
    """Parameters trained before go on as without stages; the others as from their own first step."""
    of = rule_config(case, clip_norm=None)
    carries, before = make_optimizer(of, SPECS, MODEL, carries=True), arrays(0)
    old = {path: value for path, value in before.items() if not path.startswith(("layers/ffn", "head"))}
    new = {path: value for path, value in before.items() if path not in old}

    plain = make_optimizer(of, SPECS, MODEL)
    first, state = train(plain, old, steps=2)
    alone, _ = train(plain, first, steps=2, state=state, first=2)
    expected = alone | train(plain, new, steps=2, first=2)[0]
    fresh = carry_state(carries.init(first | new), state)
    # A step donates every array, so that no two may share a buffer.
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(fresh)]
    assert len(set(buffers)) == len(buffers)
    found, _ = train(carries, first | new, steps=2, state=fresh, first=2)
    assert_close(found, expected, 1e-5)


def test_a_state_of_other_shapes_is_not_carried_at_all() -> None:
    whole, factored = (rule_config("adafactor", adafactor={"min_dim_size_to_factor": n}) for n in (4096, 2))
    _, state = train(make_optimizer(whole, SPECS, MODEL), arrays(0), steps=3)
    fresh = make_optimizer(factored, SPECS, MODEL, carries=True).init(arrays(0))
    anew = begin_anew(fresh, state)
    assert {"head", "layers/qkv/shared/q"} <= anew
    assert "final_norm/scale" not in anew
    (found,) = (node for node in jax.tree.leaves(carry_state(fresh, state), is_leaf=is_factored) if is_factored(node))
    assert {path: int(count) for path, count in found.count.items()} == {p: 0 if p in anew else 3 for p in SPECS}


def test_bfloat16_moments_are_stored_in_two_bytes_and_updated_in_float32() -> None:
    low = {"first_moment_dtype": "bfloat16", "second_moment_dtype": "bfloat16"}
    before = arrays(0)
    found, state = train(make_optimizer(config(**low), SPECS, MODEL), before)
    size = sum(value.size for value in before.values())
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 4 * size + 4  # and a count
    exact, _ = train(make_optimizer(config(), SPECS, MODEL), before)
    for path, value in before.items():
        moved = float(jnp.abs(exact[path] - value).max())
        assert 0 < float(jnp.abs(found[path] - exact[path]).max()) < 0.05 * moved, path


def test_a_bfloat16_second_moment_of_a_long_average_cannot_fall() -> None:
    """Why beta2 above 0.99 is refused: after one large gradient, small ones never lower it."""
    nu = jnp.asarray(1.0, jnp.bfloat16)
    for beta2, falls in ((0.999, False), (0.99, True)):
        assert ((beta2 * nu.astype(jnp.float32)).astype(jnp.bfloat16) < nu) == falls


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "lion", "eps": 1e-8},
            "eps belongs to adamw and adafactor and muon, and name is lion, which has beta1",
        ),
        ({"name": "adamw", "momentum": 0.9}, "momentum belongs to sgd"),
        ({"name": "adamw", "muon": {}}, "muon belongs to muon"),
        ({"name": "sgd", "beta2": 0.9}, "beta2 belongs to adamw and lion and muon"),
        ({"name": "adam"}, "Input should be 'adamw'"),
        ({"name": "lion", "second_moment_dtype": "bfloat16"}, "second_moment_dtype belongs to adamw and muon"),
        ({"name": "adafactor", "first_moment_dtype": "bfloat16"}, "adafactor has no first moment"),
        ({"beta2": 0.999, "second_moment_dtype": "bfloat16"}, "bfloat16 cannot hold an average of decay 0.999"),
        ({"name": "muon", "muon": {"momentum": 0.995}, "first_moment_dtype": "bfloat16"}, "decay 0.995"),
        ({"groups": [{"match": ["head"]}]}, "a group sets at least one of learning_rate_scale"),
        ({"groups": [{"match": ["head"], "optimizer": {"name": "sgd", "eps": 1.0}}]}, "eps belongs to"),
    ],
)
def test_keys_of_another_rule_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**keys)


def test_defaults_are_those_of_the_rule_and_stand_in_the_resolved_config() -> None:
    assert config("lion").model_dump(include={"beta1", "beta2", "eps"}) == {"beta1": 0.9, "beta2": 0.99, "eps": None}
    assert config("muon").muon.consistent_rms == 0.2
    for case in RULES:
        written = rule_config(case).model_dump(mode="json")
        assert OptimizerConfig.model_validate_json(rule_config(case).model_dump_json()) == rule_config(case), written


def stage(name: str, optimizer: OptimizerConfig, **keys) -> StageConfig:
    data = {"name": name, "mixture": {"a": 1.0}, "steps": 1, "batch_rows": 1, "optimizer": optimizer, **keys}
    return StageConfig.model_validate(data, strict=False)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [stage("one", config()), stage("two", config("lion"), optimizer_state="carry")],
            r"stage 'two': optimizer_state: carry cannot carry the state of .*by adamw, this one by lion",
        ),
        (
            [stage("one", config("adafactor")), stage("two", config("adafactor", beta1=0.9), optimizer_state="carry")],
            r"follows adafactor's keys",
        ),
        (
            [stage("one", config(groups=[{"match": ["layers/fnn"], "weight_decay": 0.0}]))],
            r"optimizer\.groups: 'layers/fnn' matches no parameter; did you mean 'layers/ffn'\?",
        ),
        (
            [stage("one", config()), stage("two", config(), learning_rate_scale={"heads": 2.0})],
            r"stage 'two', learning_rate_scale: 'heads' matches no parameter; did you mean 'head'\?",
        ),
    ],
)
def test_stages_are_checked_before_the_first_begins(stages: list[StageConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_stages(stages, SPECS, MODEL)


def test_sgd_has_no_rule_in_mup() -> None:
    model = MODEL.model_copy(
        update={"parametrisation": MODEL.parametrisation.model_copy(update={"kind": "mup", "base_width": 16})}
    )
    with pytest.raises(ConfigError, match="kind is mup, which has no rule for optimizer sgd"):
        make_optimizer(config("sgd"), SPECS, model)
