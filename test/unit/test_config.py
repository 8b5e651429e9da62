import pytest

from coopnet_core.config import TrainConfig, differences, load_config
from coopnet_core.errors import UsageError


def test_files_override_presets_and_the_command_line_overrides_both(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 11\noptimiser: {learning_rate: 0.001}\n")
    config = load_config("cpu-small", [path], {"steps": "12", "loss.error_model.cue": "photometric"})
    assert config.steps == 12
    assert config.optimiser.learning_rate == 0.001
    assert config.loss.error_model.cue == "photometric"
    assert config.networks.pose.source == "flow"


def test_scientific_notation():
    assert load_config("cpu-small", [], {"optimiser.learning_rate": "1e-4"}).optimiser.learning_rate == 1e-4


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UsageError, match=r"optimiser\.learning_rate"):
        load_config("cpu-small", [], {"optimiser.learnign_rate": "1"})


def test_an_unknown_preset_names_the_nearest_and_all_there_are():
    with pytest.raises(UsageError, match=r"'cpusmall'; did you mean cpu-small\? Shipped: cityscapes, cpu-small, edge"):
        load_config("cpusmall", [], {})
    with pytest.raises(UsageError, match=r"'huge'\. Shipped: .*kitti-paper"):
        load_config("huge", [], {})


@pytest.mark.parametrize("overrides", [{"steps": "0"}, {"steps": "many"}, {"loss.rule": "best"}, {"steps.x": "1"}])
def test_bad_values_are_refused_with_their_name(overrides):
    with pytest.raises(UsageError, match=r"steps|rule"):
        load_config("cpu-small", [], overrides)


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_config("cpu-small", [tmp_path / "none.yaml"], {})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="mapping"):
        load_config("cpu-small", [tmp_path / "list.yaml"], {})


def test_every_key_is_described():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            nested = hasattr(field.annotation, "model_fields")
            if nested:
                yield from undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield prefix + name

    assert not list(undescribed(TrainConfig))


def _refusal(files, overrides) -> list[str]:
    with pytest.raises(UsageError) as refused:
        load_config("cpu-small", files, overrides)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimiser: {learnign_rate: 1}", "optimiser.learnign_rate (in {}): unknown key; did you mean "
         "optimiser.learning_rate?"),
        ("stages: [{name: a, share: 1}, {name: b, share: 1, trian: [flow]}]",
         "stages.1.trian (in {}): unknown key; did you mean stages.1.train?"),
        ("learning_rate: 1", "learning_rate (in {}): unknown key; did you mean optimiser.learning_rate?"),
        ("loss.error_model.caution: 2",
         "loss.error_model.caution (in {}): unknown key; did you mean loss: {{error_model: {{caution: ...}}}}?"),
        ("xyzzy: 1", "xyzzy (in {}): unknown key"),
        ("loss: {rule: hybird}", "loss.rule (in {}): expected 'hybrid', 'hybrid_hard', 'sum', 'min', 'soft_min', "
         "'competition', 'threshold' or 'oracle', found 'hybird'; did you mean hybrid?"),
        ("stages: [{name: a, share: 1, train: [flwo]}]",
         "stages.0.train.0 (in {}): expected 'depth', 'pose' or 'flow', found 'flwo'; did you mean flow?"),
        ("steps: many", "steps (in {}): expected a whole number (optimiser steps), found 'many'"),
        ("mixed_precision: perhaps", "mixed_precision (in {}): expected true or false (bfloat16 inside the networks; "
         "losses stay in float32), found 'perhaps'"),
        ("frame_offsets: 1", "frame_offsets (in {}): expected a list (sources of a target frame), found 1"),
        ("networks: 3", "networks (in {}): expected a group of keys, found 3"),
        ("stages: [{name: a}]",
         "stages.0.share (in {}): missing (share of the steps, relative to the other stages)"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_said_with_the_file_and_what_was_expected(tmp_path, text, said):
    before, path = tmp_path / "before.yaml", tmp_path / "mine.yaml"
    before.write_text("steps: 10\noptimiser: {learning_rate: 1e-3}\n")
    path.write_text(text)
    assert _refusal([before, path], {})[1:] == ["  " + said.format(path)]


def test_every_problem_is_said_with_its_own_origin(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stpes: 3\nseed: -1\n")
    said = _refusal([path], {"loss.rul": "sum", "stages.3.share": "0"})
    assert said[0] == "The configuration is not valid:"
    assert sorted(line.split(":")[0].strip() for line in said[1:]) == [
        "loss.rul (in the setting loss.rul=sum)",
        f"seed (in {path})",
        "stages.3.share (in the setting stages.3.share=0)",
        f"stpes (in {path})",
    ]


def test_an_override_reaches_into_a_list():
    before = load_config("cpu-small", [], {})
    config = load_config("cpu-small", [], {"stages.1.share": "0.5", "frame_offsets.0": "-2"})
    assert [stage.share for stage in config.stages] == [0.35, 0.5, 0.2, 0.15]
    assert config.frame_offsets == (-2, 1)
    assert differences(config, before) == {"stages.1.share": (0.5, 0.3), "frame_offsets": ([-2, 1], [-1, 1])}
    assert load_config(None, [], {"fine_tuning.0.rate": "0.5"}).fine_tuning[0].rate == 0.5, "a list of the defaults"
    for key in ("stages.4.share", "stages.first.share"):
        assert "position from 0 to 3" in _refusal([], {key: "1"})[0]


def test_differences_name_what_is_not_the_same():
    base = load_config("cpu-small", [], {})
    changes = {"steps": "3", "loss.error_model.caution": "2", "frozen": "[flow]", "stages": "[{name: a, share: 1}]"}
    found = differences(load_config("cpu-small", [], changes), base)
    assert found.pop("stages")[0][0]["name"] == "a"
    assert found == {"steps": (3, 9000), "loss.error_model.caution": (2.0, 1.0), "frozen": (["flow"], [])}
    assert differences(base, base) == {}


def test_loading_twice_starts_from_the_same_preset():
    load_config("cpu-small", [], {"stages.0.share": "0.9"})
    assert load_config("cpu-small", [], {}).stages[0].share == 0.35
