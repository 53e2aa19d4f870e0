from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import distillrs as dr
from distillrs import condense, configuration, registry
from distillrs.cli import options, plan, presets
from distillrs.cli.distilling import begin
from distillrs.cli.preparation import prepare
from distillrs.cli.recording import recorded
from distillrs.cli.settings import CondenseSettings, identity
from distillrs.errors import ArgumentError, UnknownNameError
from distillrs.evaluate.data import make_bundle
from distillrs.registry import find_recipe, recipe_cards


@pytest.fixture(scope="module")
def bundle():
    rng = np.random.default_rng(0)

    def part(count):
        return rng.normal(size=(count, 6)).astype(np.float32), np.arange(count) % 3

    (x, y), (x_test, y_test) = part(60), part(30)
    return make_bundle("made up", {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test})


def resolve(bundle, flags=None, sets=(), file=None):
    asked, card = plan.request(file or {}, {"data": "made-up.npz", **(flags or {})}, sets)
    return plan.resolve(asked, card, bundle, processors=2)


@pytest.mark.parametrize("card", recipe_cards("condense"), ids=lambda card: card.id)
def test_every_recipe_resolves_and_its_file_reads_back_to_an_equal_configuration(card, bundle, tmp_path):
    settings = resolve(bundle, {"method": card.id})
    configuration.save(settings, tmp_path / "config.toml")
    read = configuration.read_toml(tmp_path / "config.toml")
    assert configuration.from_dict(CondenseSettings, read) == settings
    asked, found = plan.request(read, {}, [])
    assert found is card
    assert identity(plan.resolve(asked, card, bundle, processors=7)) == identity(settings)


def test_assignments_win_over_flags_and_flags_over_the_file(bundle):
    file = {"data": "x", "seed": 1, "method": "tesla", "experts": {"count": 2}}
    settings = resolve(bundle, {"seed": 2}, ["seed=3", "experts.count=4"], file)
    assert (settings.seed, settings.experts.count) == (3, 4)
    assert resolve(bundle, {"seed": 2}, [], file).seed == 2
    assert resolve(bundle, {}, [], file).experts.count == 2


def test_an_option_of_the_method_is_found_by_its_name_alone(bundle):
    settings = resolve(bundle, {"method": "ftd"}, ["inner_steps=7", "radius=0.5", "average=0.9", "start=[1, 3]"])
    assert settings.method.options["inner_steps"] == 7
    assert settings.method.experts["radius"] == 0.5
    assert settings.method.initial["average"] == 0.9
    assert options.arguments(find_recipe("ftd"), "options", settings.method.options)["start"] == range(1, 3)


def test_an_option_that_two_parts_have_must_be_qualified(bundle):
    with pytest.raises(ArgumentError, match=r"method\.options\.labels or method\.initial\.labels"):
        resolve(bundle, {"method": "tesla"}, ["labels=soft"])
    settings = resolve(bundle, {"method": "tesla"}, ["method.initial.labels=soft"])
    assert settings.method.initial["labels"] == "soft"
    assert settings.method.options["labels"] == "own"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["iner_steps=3"], "did you mean 'inner_steps'"),
        (["expert.count=3"], "did you mean 'experts'"),
        (["experts.cuont=3"], r"experts\.key: got 'cuont'.*did you mean 'count'"),
        (["experts.count=0"], r"experts\.count: got 0"),
        (["experts.training.epochs=many"], r"experts\.training\.epochs: got 'many', allowed is a whole number"),
        (["method.options.nonsense=1"], r"method\.options: got 'nonsense'"),
        (["inner_steps=1.5"], r"method\.options\.inner_steps: got 1\.5"),
        (["gradient=adjunct"], "'full', 'adjoint', 'truncated'"),
        (["transform=whiten"], "transform: got 'whiten'"),
        (["method=teslo"], "did you mean 'tesla'"),
        (["distillation.optimisers.images.lr=-1"], r"distillation\.optimisers\.images\.lr: got -1"),
        (["evaluation.seeds=[]"], r"evaluation\.seeds"),
        (["format=2"], "format: got 2"),
    ],
)
def test_what_is_not_allowed_names_key_value_and_what_is(sets, message, bundle):
    with pytest.raises(ArgumentError, match=message):
        resolve(bundle, {}, sets)


def test_no_data_says_what_is_allowed():
    asked, _ = plan.request({}, {}, [])
    with pytest.raises(ArgumentError, match=r"data: got 'nothing'.*digits"):
        plan.source(asked)


def test_network_and_method_may_be_tables_or_names(bundle):
    file = {"data": "x", "network": {"name": "mlp", "options": {"widths": [5]}}, "method": {"name": "mtt"}}
    settings = resolve(bundle, {}, ["network.options.widths=[7, 3]"], file)
    assert settings.network.options == {"widths": [7, 3]}
    assert settings.method.name == "mtt"
    assert resolve(bundle, {"network": "linear"}).network.options == {}
    with pytest.raises(ArgumentError, match="network: got 3"):
        resolve(bundle, {}, [], {"network": 3})


def test_a_recipe_outside_the_library_brings_its_own_options(bundle, tmp_path, monkeypatch):
    (tmp_path / "somebody.py").write_text(
        "import distillrs as dr\n"
        "@dr.recipe(id='somebodys', source='s', equation='e')\n"
        "def mine(store, network, synthetic, strength: float, seed: int = 0):\n"
        "    raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=r"method\.options\.strength.*no default"):
        resolve(bundle, {"method": "somebody:mine"})
    settings = resolve(bundle, {"method": "somebody:mine"}, ["strength=2"])
    assert settings.method.name == "somebody:mine"
    assert settings.method.options == {"strength": 2}
    arguments = options.arguments(find_recipe("somebody:mine"), "options", settings.method.options)
    assert arguments == {"strength": 2.0}
    assert isinstance(arguments["strength"], float)


def test_a_start_gets_what_it_works_from_whatever_the_method_needs(bundle, tmp_path, monkeypatch):
    (tmp_path / "anybody.py").write_text(
        "import distillrs as dr\n"
        "from distillrs import condense\n"
        "def start(x, y, per_class, *, teachers, seed):\n"
        "    return condense.Synthetic.from_real(teachers(x), y, per_class, seed=seed)\n"
        "@dr.recipe(id='of_data', source='s', equation='e', needs='data')\n"
        "def of_data(x, y, networks, synthetic, seed: int = 0):\n"
        "    return len(x), networks, synthetic\n"
        "@dr.recipe(id='of_teachers', source='s', equation='e', needs='teachers', initial=start)\n"
        "def of_teachers(teachers, synthetic, seed: int = 0):\n"
        "    return teachers, synthetic\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    teachers = condense.Committee([nn.Linear(6, 3)])
    for name, given in (("of_data", len(bundle.x_train)), ("of_teachers", teachers)):
        settings = resolve(bundle, {"method": f"anybody:{name}", "per_class": 2})
        synthetic, made = begin(prepare(settings, bundle, find_recipe(f"anybody:{name}")), None, teachers)
        assert made[0] == given
        assert made[-1] is synthetic
        assert synthetic.images.shape == (6, 6 if name == "of_data" else 3)


def test_views_with_labels_of_their_own_are_not_augmented(bundle):
    settings = resolve(bundle, {"method": "cda"}, ["evaluation.training.augmentation=flip"])
    with pytest.raises(ArgumentError, match=r"^evaluation\.training\.augmentation: got 'flip'"):
        prepare(settings, bundle, find_recipe("cda"))


def test_where_results_go_is_not_part_of_what_they_are(bundle):
    here, there = resolve(bundle, {"out": "a", "store": "b"}), resolve(bundle, {"out": "c"})
    assert identity(here) == identity(there)
    assert identity(resolve(bundle, {"seed": 1})) != identity(here)


def test_small_examples_get_a_perceptron_and_images_a_convnet():
    assert presets.network_name((64,)) == "mlp"
    assert presets.network_name((1, 8, 8)) == "mlp"
    assert presets.network_name((3, 32, 32)) == "convnet"
    assert presets.network_name((4000,)) == "mlp"
    assert presets.network_options("convnet", (1, 5, 40))["depth"] == 2


@pytest.mark.parametrize("card", recipe_cards("condense"), ids=lambda card: card.id)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_preset_windows_lie_within_the_experts_paths(card, shape):
    if card.needs != "experts":
        return
    preset = presets.preset(shape, 1, card, presets.network_name(shape))
    values = {name: one.default for name, one in options.options_by_part(card)["options"].items()}
    values |= preset["method"]["options"]
    start = values.get("start")
    last = values["last_high"] if start is None else start[1] if isinstance(start, list) else start.stop
    assert last - 1 + values["span"] <= preset["experts"]["training"]["epochs"]


def test_unknown_recipe_module_is_an_argument_error():
    with pytest.raises(UnknownNameError):
        find_recipe("nothing")
    with pytest.raises(dr.errors.ArgumentError, match="importable"):
        plan.request({}, {"method": "no.such:thing"}, [])


def activated(shape, classes, activation="relu"):
    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh}
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), kinds[activation](), nn.Linear(5, classes))


def test_experts_of_another_network_with_the_same_parameters_are_not_taken(bundle):
    places = set()
    for activation in ("relu", "tanh"):
        network = {"name": f"{__name__}:activated", "options": {"activation": activation}}
        settings = resolve(bundle, file={"network": network})
        places.add(prepare(settings, bundle, find_recipe("tesla")).store_path)
    assert len(places) == 2


def test_a_folder_in_which_a_store_was_only_begun_holds_no_experts(bundle, tmp_path):
    settings = resolve(bundle, {"store": str(tmp_path)})
    prepared = prepare(settings, bundle, find_recipe("tesla"))
    assert recorded(prepared) == 0
    prepared.store_path.mkdir()
    (prepared.store_path / "store.lock").touch()
    assert recorded(prepared) == 0


def test_a_recipe_s_own_training_reaches_its_experts(bundle):
    training = resolve(bundle, {"method": "smooth-expert"}).experts.training
    assert (training.learning_rate, training.momentum, training.weight_decay) == (0.003, 0.9, 1e-3)
    assert (training.schedule, training.drop_factor) == ("step", 0.6)
    assert resolve(bundle, {"method": "mtt"}).experts.training.momentum == 0
    changed = resolve(bundle, {"method": "smooth-expert"}, ("experts.training.momentum=0.5",))
    assert changed.experts.training.momentum == 0.5


def test_a_method_of_another_engine_is_refused_by_name():
    with pytest.raises(dr.errors.ArgumentError, match=r"^method: got 'mean_flow'.*tesla.*of diffusion"):
        plan.request({}, {"method": "mean_flow"}, [])
