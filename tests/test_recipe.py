"""Recipes settle, read back as themselves, explain every setting, and say which setting is wrong and what is meant."""

import dataclasses
import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anchor_robust import data, models, objectives
from anchor_robust.attacks import PGD
from anchor_robust.cli.explained import explained, promise
from anchor_robust.errors import Refusal
from anchor_robust.objectives import Learner, Objective, Step
from anchor_robust.objectives.anchor import Anchor
from anchor_robust.recipe import Recipe, built_in, settle
from anchor_robust.sections import Attack
from anchor_robust.settings import fraction, from_yaml, scalar
from anchor_robust.threat import Ball

every_recipe = pytest.mark.parametrize("name", built_in())


def refusal(source: str | Path, *overrides: str) -> str:
    """The one line with which these settings are refused."""
    with pytest.raises(Refusal) as caught:
        settle(str(source), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- built-in recipes ------------------------------------------------------------------------------------------------


@every_recipe
def test_a_built_in_recipe_settles_to_what_its_file_says(name: str) -> None:
    recipe = settle(name)
    resolved = yaml.safe_load(recipe.text())
    for section, settings in yaml.safe_load(built_in()[name]).items():
        if isinstance(settings, dict):
            read = {name: fraction(value) for name, value in settings.items()}
            assert read.items() <= resolved[section].items()
        else:
            assert resolved[section] == settings


@every_recipe
def test_a_built_in_recipe_names_things_that_are_here(name: str) -> None:
    recipe = settle(name)
    assert recipe.data.name in data.NAMES
    assert recipe.model.name in models.BUILT_IN
    assert recipe.objective.name in objectives.discover()


@every_recipe
def test_a_recipe_reads_back_from_its_own_text(name: str, tmp_path: Path) -> None:
    recipe = settle(name)
    again = settle(str(written(tmp_path, recipe.text())))
    assert again == recipe
    assert again.text() == recipe.text()


@every_recipe
def test_a_recipe_makes_a_promise_with_its_command(name: str) -> None:
    lines = promise(built_in()[name])
    assert len(lines) >= 2
    assert lines[0].endswith((".", ";", ":"))
    assert any(line.startswith(f"anchor train {name}") for line in lines)
    assert not any(line.startswith("#") for line in lines)
    assert f"Cost: {settle(name).cost()}." in lines


@pytest.mark.parametrize("name", [name for name in built_in() if "-resnet8-" in name])
def test_the_recipes_of_the_table_differ_in_their_method_alone(name: str) -> None:
    """All see the same images as often, with the same network."""
    recipe, anchor = settle(name), settle("cifar10-resnet8-anchor")
    assert (recipe.data, recipe.model, recipe.threat) == (anchor.data, anchor.model, anchor.threat)
    assert recipe.optimise.epochs == anchor.optimise.epochs


def test_recipes_that_are_named_variants_of_anchor_are_that() -> None:
    assert settle("cifar10-resnet8-supcon-at").objective.hardness == 0
    two_view, anchor = (settle(f"cifar10-resnet8-{name}") for name in ("two-view", "anchor"))
    same = dataclasses.replace(two_view.objective, contrast=anchor.objective.contrast, hardness=2.0)
    assert (two_view.objective.contrast, same) == (0, anchor.objective)
    assert (two_view.attack, two_view.optimise) == (anchor.attack, anchor.optimise)


def test_the_promise_is_the_leading_comment_alone() -> None:
    assert promise("# What.\n# How: a  b\nname: x  # no promise\n# nor this\n") == ["What.", "How: a  b"]
    assert promise("name: x\n") == []


def test_there_are_the_recipes_that_the_quickstart_and_the_table_need() -> None:
    objectives_ = ("standard", "pgd-at", "anchor")
    needed = {f"{size}-{objective}" for size in ("digits", "cifar10-resnet8") for objective in objectives_}
    large = {f"cifar10-resnet18-{name}" for name in ("pgd-at", "trades", "mart", "supcon-at", "anchor", "anchor-max")}
    assert needed | large <= built_in().keys()


# --- explained -------------------------------------------------------------------------------------------------------


@every_recipe
def test_an_explained_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    assert settle(str(written(tmp_path, explained(name)))) == settle(name)


@every_recipe
def test_an_explained_recipe_keeps_its_promise(name: str) -> None:
    assert promise(explained(name)) == promise(built_in()[name])


def undocumented(text: str) -> list[str]:
    """The settings `section.key` in YAML text that have no comment right above them."""
    bare, section, before = [], "", ""
    for line in text.splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and not key.startswith("#"):
            if not line.startswith(" "):
                section = key
            opens_section = not value
            if not opens_section and not before.strip().startswith("#"):
                bare.append(f"{section}.{key}" if line.startswith(" ") else key)
        before = line
    return bare


@every_recipe
def test_an_explained_recipe_explains_every_setting(name: str) -> None:
    assert undocumented(explained(name)) == []


def test_a_file_of_the_users_can_be_explained(tmp_path: Path) -> None:
    path = written(tmp_path, "# My promise\nthreat: {norm: l2, eps: 0.5}\n")
    assert yaml.safe_load(explained(str(path))) == yaml.safe_load(settle(str(path)).text())


# --- files of the user's ---------------------------------------------------------------------------------------------


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    recipe = settle(str(written(tmp_path, "threat: {norm: linf, eps: 8/255}\n")))
    assert recipe.name == "mine", "the file's name"
    assert recipe.seed == 0
    assert recipe.objective == Anchor()
    assert recipe.threat.eps == 8 / 255
    assert recipe.model.name == "resnet18"
    settings = {"width": 64, "activation": "relu"}
    assert recipe.model.settings == settings, "defaults of the backbone are resolved, so that they are recorded"


def test_an_empty_section_is_all_defaults_and_can_be_overridden(tmp_path: Path) -> None:
    path = str(written(tmp_path, "threat: {norm: linf, eps: 0.1}\ndata:\n"))
    assert settle(path).data.crop == 4
    assert settle(path, ["--data.crop", "2"]).data.crop == 2


def test_the_threat_has_no_default(tmp_path: Path) -> None:
    assert "eps" in refusal(written(tmp_path, "seed: 3\n"))


@pytest.mark.parametrize(
    "text",
    ("a: [1, 2", "a: b: c", "\t- x", "- a list\n", "just words\n", "", "\x00"),
    ids=("open", "two colons", "tab", "list", "words", "empty", "control"),
)
def test_broken_yaml_is_refused_with_the_file(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    assert str(path) in refusal(path)


@pytest.mark.parametrize("text", ("optimise:\n  lr: 0.1\n{}optimise:\n  epochs: 1\n", "threat: {{eps: 1, eps: 2}}\n{}"))
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    message = refusal(written(tmp_path, text.format("name: mine\n")))
    assert "is given twice" in message
    assert "line" in message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    assert str(path) in refusal(path)


@pytest.mark.parametrize("value", ("5", "[1, 2]", "resnet8", "false", "0", "''", "[]"))
def test_a_section_that_is_no_mapping_is_refused(value: str, tmp_path: Path) -> None:
    """`attack: false` must not train with the default attack."""
    path = written(tmp_path, f"threat: {{norm: linf, eps: 0.1}}\nattack: {value}\n")
    assert "attack" in refusal(path)


# --- overrides -------------------------------------------------------------------------------------------------------


def test_a_list_of_words_may_be_written_as_tables_show_it() -> None:
    written_out, shown = (
        settle("digits-anchor", ["--objective.views", words]) for words in ("[clean,adversarial]", "clean,adversarial")
    )
    assert shown == written_out


def test_overrides_lie_over_the_recipe() -> None:
    changed = settle(
        "digits-anchor",
        [
            *("--seed", "7"),
            "--optimise.lr=0.3",
            *("--objective.views", "[adversarial]"),
            *("--threat.eps", "8/255"),
            "--attack.step_size=2/255",
            *("--model.width", "8"),
            *("--data.flip", "true"),
            *("--name", "mine"),
        ],
    )
    base = yaml.safe_load(settle("digits-anchor").text())
    base |= {"seed": 7, "name": "mine"}
    base["optimise"]["lr"] = 0.3
    base["objective"]["views"] = ["adversarial"]
    base["threat"]["eps"] = 8 / 255
    base["attack"]["step_size"] = 2 / 255
    base["model"]["width"] = 8
    base["data"]["flip"] = True
    assert yaml.safe_load(changed.text()) == base


@pytest.mark.parametrize("given, meant", (("5e-4", 5e-4), ("1E-3", 1e-3), ("1", 1.0), ("1/4", 0.25), (".5", 0.5)))
def test_numbers_are_read_as_people_write_them(given: str, meant: float, tmp_path: Path) -> None:
    recipe = settle("digits-anchor", ["--optimise.weight_decay", given])
    assert recipe.optimise.weight_decay == meant
    assert isinstance(recipe.optimise.weight_decay, float)
    assert settle(str(written(tmp_path, recipe.text()))) == recipe


@pytest.mark.parametrize(
    "given, meant",
    (("8/255", 8 / 255), (" 1 / 2 ", 0.5), ("0.5/2", 0.25), ("1/0", "1/0"), ("a/b", "a/b"), ("1/2/3", "1/2/3"), (3, 3)),
)
def test_fractions_become_numbers_and_nothing_else_does(given: Any, meant: Any) -> None:
    assert fraction(given) == meant


@pytest.mark.parametrize("overrides", (["--seed"], ["seed", "3"], ["--seed", "3", "4"], ["--seed", "--name", "x"]))
def test_overrides_that_are_no_pairs_are_refused(overrides: list[str]) -> None:
    assert "--section.key value" in refusal("digits-anchor", *overrides)


def test_an_override_below_a_value_is_refused() -> None:
    assert "name is no section" in refusal("digits-anchor", "--name.deep", "3")
    assert "seed" in refusal("digits-anchor", "--seed.deep", "3")


@pytest.mark.parametrize("value", ("[adversarial", "{a", "'x", "a: b: c"))
def test_an_override_that_is_no_yaml_is_refused(value: str) -> None:
    assert "objective.views" in refusal("digits-anchor", "--objective.views", value)


# --- wrong names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, meant",
    (
        ("--optimise.epoch", "epochs"),
        ("--optimise.zzz", None),
        ("--objective.hardnes", "hardness"),
        ("--model.widht", "width"),
        ("--threat.epsilon", "eps"),
        ("--optimize.lr", "optimise"),
        ("--validation.evry", "every"),
        ("--sede", "seed"),
    ),
)
def test_an_unknown_setting_is_refused_with_the_nearest(key: str, meant: str | None) -> None:
    message = refusal("digits-anchor", key, "3")
    assert key.removeprefix("--").removesuffix(".lr") in message
    assert "allowed: " in message
    assert (f"did you mean {meant}?" in message) if meant else ("did you mean" not in message)


@pytest.mark.parametrize(
    "key, meant",
    (
        ("epochs", "optimise.epochs"),
        ("hardness", "objective.hardness"),
        ("width", "model.width"),
        ("steps", "attack.steps or validation.steps"),
    ),
)
def test_a_setting_without_its_section_is_refused_with_it(key: str, meant: str) -> None:
    assert refusal("digits-anchor", f"--{key}", "3").endswith(f"setting {key} is unknown; did you mean {meant}?")


def test_a_setting_without_its_section_is_unknown_where_the_objective_is() -> None:
    assert "did you mean" not in refusal("digits-anchor", "--objective.name", "absent", "--hardness", "3")


@pytest.mark.parametrize("section", ("objective", "model"))
def test_a_name_that_is_no_word_is_refused_like_any_other(section: str) -> None:
    assert "['a']" in refusal("digits-anchor", f"--{section}.name", "[a]")


def test_what_has_no_default_has_to_be_given(tmp_path: Path) -> None:
    told = refusal(str(written(tmp_path, "data: {name: digits}\nobjective: {name: anchor}\n")))
    assert told == "recipe: threat.norm and threat.eps not given; there is no default"


def test_a_setting_of_an_objective_without_settings_is_refused() -> None:
    assert "objective.contrast is unknown; there is nothing to set here" in refusal(
        "digits-pgd-at", "--objective.contrast", "1"
    )


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    message = refusal("digits-ancor")
    assert "did you mean digits-anchor?" in message
    assert all(name in message for name in built_in())


@pytest.mark.parametrize(
    "key, given, meant", (("--objective.name", "ancor", "anchor"), ("--model.name", "resnet81", "resnet8"))
)
def test_an_unknown_objective_or_model_is_refused_with_the_nearest(key: str, given: str, meant: str) -> None:
    message = refusal("digits-standard", key, given)
    assert given in message
    assert f"did you mean {meant}" in message.replace("'", "")


# --- wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, given, allowed",
    (
        ("objective.hardness", "banana", "a number, such as 0.5 or 8/255"),
        ("optimise.epochs", "1.5", "a whole number"),
        ("data.flip", "maybe", "true or false"),
        ("threat.norm", "l1", "linf, l2"),
        ("objective.views", "clean", "a list of words, such as [a,b]"),
        ("name", "[1]", "a word"),
    ),
)
def test_a_value_of_another_type_is_refused_with_what_is_allowed(key: str, given: str, allowed: str) -> None:
    assert refusal("digits-anchor", f"--{key}", given) == f"{key} {given} given; allowed: {allowed}"


@pytest.mark.parametrize(
    "typed, meant",
    (
        *(("010", 10), ("1e-3", 0.001), ("-.5E2", -50.0), (".inf", float("inf")), ("true", True), ("~", None)),
        *(("1:30", "1:30"), ("1_000", "1_000"), ("2024-02-30", "2024-02-30"), ("yes", "yes"), ("0x1f", "0x1f")),
    ),
)
def test_a_value_is_what_it_looks_like(typed: str, meant: object) -> None:
    """YAML 1.1 reads 8, 1e-3, 90, 1000, a date that is none, True and 31."""
    assert (from_yaml(typed), type(from_yaml(typed))) == (meant, type(meant))


@given(st.one_of(st.text(alphabet="0123456789+-.eE:_xaOnfulytrs/~<= ", max_size=6), st.floats(), st.integers()))
def test_a_value_reads_back_in_either_yaml(value: object) -> None:
    for read in (from_yaml(scalar(value)), yaml.safe_load(scalar(value))):
        assert type(read) is type(value)
        assert read == value or (read != read and value != value)


@pytest.mark.parametrize(
    "key, typed",
    (
        *(("optimise.epochs", "1:30"), ("optimise.epochs", "0x10"), ("optimise.epochs", "1_000"), ("seed", "1:30")),
        *(("optimise.lr", "1:30.5"), ("data.flip", "yes"), ("data.flip", "off"), ("model.width", "0b11")),
    ),
)
def test_a_word_is_no_number(key: str, typed: str) -> None:
    assert f"{key} {typed} given; allowed: " in refusal("digits-anchor", f"--{key}={typed}")


def test_a_number_in_quotes_is_one() -> None:
    assert settle("digits-anchor", ["--optimise.lr", "'0.1'", "--data.flip", "'true'"]).optimise.lr == 0.1


def test_a_number_of_too_many_digits_is_no_fault_of_ours() -> None:
    assert "given; allowed: a value as YAML writes it" in refusal("digits-anchor", "--seed", "9" * 5000)


def test_a_word_stays_a_word(tmp_path: Path) -> None:
    assert "such as \"'123'\" with both quotes" in refusal("digits-anchor", "--name", "123")
    assert settle("digits-anchor", ["--name", "'123'", "--data.name", "2024/05"]).data.name == "2024/05"


@pytest.mark.parametrize(
    "key, value",
    (
        ("optimise.epochs", "many"),
        ("optimise.epochs", "1.5"),
        ("optimise.lr", "abc"),
        ("optimise.lr", "null"),
        ("optimise.lr", "[0.1]"),
        ("optimise.schedule", "triangle"),
        ("optimise.precision", "float16"),
        ("data.flip", "perhaps"),
        ("objective.views", "3"),
        ("model.width", "wide"),
        ("seed", "x"),
        ("threat.eps", "8/0"),
    ),
)
def test_a_value_of_another_type_is_refused_by_the_settings_name(key: str, value: str) -> None:
    message = refusal("digits-anchor", f"--{key}", value)
    assert key in message


@pytest.mark.parametrize(
    "key, value",
    (
        ("threat.eps", "8"),
        ("threat.eps", "0"),
        ("threat.eps", "-0.1"),
        ("threat.eps", ".nan"),
        ("threat.norm", "l1"),
        ("attack.steps", "-1"),
        ("attack.step_size", "0"),
        ("validation.images", "0"),
        ("validation.every", "0"),
        ("validation.steps", "-1"),
        ("validation.step_size", "0"),
        ("data.crop", "-1"),
        ("optimise.epochs", "0"),
        ("objective.temperature", "0"),
    ),
)
def test_a_value_out_of_range_is_refused_before_anything_starts(key: str, value: str) -> None:
    assert key.rpartition(".")[2] in refusal("digits-anchor", f"--{key}", value)


# --- classes of the user's -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaled(Objective):
    """Cross-entropy, scaled.

    Attributes:
        factor: What the cross-entropy is multiplied with.
    """

    name: ClassVar[str] = "scaled"
    factor: float = 2.0

    def __call__(self, learner: Learner, x: Tensor, y: Tensor, generator: torch.Generator) -> Step:
        logits, _ = learner.forward(x)
        return Step(self.factor * learner.cross_entropy(logits, y), logits)


class Net(nn.Module):
    def __init__(self, channels: int, width: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


@pytest.fixture
def own(tmp_path: Path) -> str:
    text = f"""
threat: {{norm: linf, eps: 0.1}}
objective: {{name: {__name__}.Scaled, factor: 1/2}}
model: {{name: {__name__}.Net, width: 5}}
"""
    return str(written(tmp_path, text))


def test_a_users_objective_and_network_are_taken_by_their_paths(own: str, tmp_path: Path) -> None:
    recipe: Recipe = settle(own)
    assert recipe.objective == Scaled(0.5)
    assert recipe.model.settings == {"width": 5}, "channels come from the data"
    assert settle(str(written(tmp_path, recipe.text()))) == recipe


def test_settings_of_the_users_classes_are_checked_and_explained(own: str) -> None:
    assert "did you mean factor?" in refusal(own, "--objective.facto", "1")
    assert "objective.factor" in refusal(own, "--objective.factor", "much")
    assert "did you mean width?" in refusal(own, "--model.widt", "1")
    assert "model.channels is unknown" in refusal(own, "--model.channels", "1")
    meaning = inspect.getdoc(Scaled).rpartition("factor: ")[2]  # type: ignore[union-attr]
    assert f"  # {meaning}\n  factor: 0.5\n" in explained(own)


@pytest.mark.parametrize("key", ("objective", "model"))
@pytest.mark.parametrize("name", ("no_such_package.Thing", f"{__name__}.NoSuchClass", "math.pi", "./net.py", "torch."))
def test_a_class_that_cannot_serve_is_refused(key: str, name: str, own: str) -> None:
    assert name in refusal(own, f"--{key}.name", name)


def test_a_class_that_is_no_objective_is_refused(own: str) -> None:
    assert "collections.OrderedDict" in refusal(own, "--objective.name", "collections.OrderedDict")


def test_another_objective_or_model_starts_from_its_own_defaults() -> None:
    words = ["--objective.temperature=0.3", "--objective.name=anchor", "--model.name=preact-resnet18"]
    changed = settle("cifar10-resnet8-pgd-at", words)
    assert changed.objective == objectives.find("anchor")(temperature=0.3)
    assert changed.model == settle("cifar10-resnet18-anchor", ["--model.name=preact-resnet18"]).model
    assert settle("cifar10-resnet8-anchor", ["--objective.name=pgd-at"]).objective == objectives.find("pgd-at")()
    same = settle("cifar10-resnet8-anchor", ["--objective.name=anchor"])
    assert same == settle("cifar10-resnet8-anchor")


# --- what changes on the way, and what it costs -----------------------------------------------------------------------


def test_naming_what_is_in_force_keeps_its_settings(tmp_path: Path) -> None:
    path = written(tmp_path, "threat: {norm: linf, eps: 0.1}\nobjective: {contrast: 0.3}\nmodel: {width: 8}\n")
    recipe = settle(str(path), ["--objective.name", "anchor", "--model.name", "resnet18"])
    assert recipe == settle(str(path))
    assert recipe.objective == Anchor(contrast=0.3)
    assert recipe.model.settings["width"] == 8


@pytest.mark.parametrize("section", ("attack", "validation"))
def test_steps_too_short_or_too_long_for_the_ball_are_told(section: str) -> None:
    def told(steps: int, step_size: float) -> list[str]:
        threat = ("--threat.norm=linf", "--threat.eps=0.1")
        return settle(
            "digits-pgd-at", [*threat, f"--{section}.steps={steps}", f"--{section}.step_size={step_size}"]
        ).warnings()

    assert told(5, 0.05) == told(1, 0.2) == []
    assert [word in told(5, 0.01)[0] for word in (section, "at most 0.05", "less than eps 0.1")] == [True] * 3
    assert [word in told(5, 5.0)[0] for word in (section, "crosses", "eps 0.1", "step of 5")] == [True] * 4


def test_the_attack_ramps_eps_and_step_size_together() -> None:
    attack, ball = Attack(steps=5, step_size=0.01, ramp=0.5), Ball("linf", 0.04)
    assert attack.at(ball, 0.125) == PGD(Ball("linf", 0.01), steps=5, step_size=0.0025)
    for progress in (0.5, 0.7, 1.0):
        assert attack.at(ball, progress) == PGD(ball, steps=5, step_size=0.01)
    assert Attack(steps=5, step_size=0.01).at(ball, 0.001) == PGD(ball, steps=5, step_size=0.01)


def test_a_ramp_serves_l2_from_its_first_step() -> None:
    assert Attack(ramp=1.0).at(Ball("l2", 0.5), 1e-4).ball.eps == pytest.approx(5e-5)


@pytest.mark.parametrize("setting", ("attack.ramp=1.5", "data.mix_alpha=0", "data.mix=blend"))
def test_bad_strengtheners_are_refused_by_name(setting: str) -> None:
    with pytest.raises(Refusal, match=setting.partition("=")[0]):
        settle("digits-anchor", [f"--{setting}"])


@pytest.mark.parametrize(
    "method, overrides, passes",
    (
        ("standard", (), 1),
        ("pgd-at", (), 6),
        ("pgd-at", ("--optimise.awp=0.01",), 7),
        ("trades", (), 7),
        ("anchor", (), 7),
        ("anchor", ("--optimise.awp=0.01",), 9),
        ("anchor", ("--optimise.awp=0.01", "--optimise.awp_from=0.25"), 8.5),
        ("anchor", ("--objective.views=[adversarial]",), 6),
    ),
)
def test_the_cost_counts_the_passes_of_an_image(method: str, overrides: tuple[str, ...], passes: float) -> None:
    settings = (f"--objective.name={method}", "--attack.steps=5", "--optimise.epochs=3", *overrides)
    recipe = settle("digits-pgd-at", settings)
    assert recipe.cost().startswith(f"{passes:g} x 3 = {3 * passes:g} forward-and-backward passes")


def narrow(classes: int, width: int = 4) -> nn.Module:
    return models.BUILT_IN["resnet8"](classes, width=width)


NARROWER = functools.partial(narrow, width=2)


def test_what_states_no_types_of_its_own_is_refused_as_a_model() -> None:
    assert settle("digits-pgd-at", [f"--model.name={__name__}.narrow"]).model.settings == {"width": 4}
    with pytest.raises(Refusal, match=r"functools\.partial"):
        settle("digits-pgd-at", [f"--model.name={__name__}.NARROWER"])
