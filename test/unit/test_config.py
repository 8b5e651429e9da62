import pytest

from coopnet_core.config import TrainConfig, load_config, preset_names
from coopnet_core.errors import UsageError


def test_every_preset_is_valid():
    assert {"small", "resnet18"} <= set(preset_names())
    for name in preset_names():
        assert isinstance(load_config(name, [], {}), TrainConfig)


def test_files_override_presets_and_the_command_line_overrides_both(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 11\noptimiser: {learning_rate: 0.001}\n")
    config = load_config("small", [path], {"steps": "12", "loss.error_model.cue": "photometric"})
    assert config.steps == 12
    assert config.optimiser.learning_rate == 0.001
    assert config.loss.error_model.cue == "photometric"
    assert config.networks.pose.source == "flow"


def test_scientific_notation():
    assert load_config("small", [], {"optimiser.learning_rate": "1e-4"}).optimiser.learning_rate == 1e-4


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UsageError, match=r"optimiser\.learning_rate"):
        load_config("small", [], {"optimiser.learnign_rate": "1"})


def test_an_unknown_preset_lists_what_there_is():
    with pytest.raises(UsageError, match=r"small\.yaml"):
        load_config("huge", [], {})


@pytest.mark.parametrize("overrides", [{"steps": "0"}, {"steps": "many"}, {"loss.rule": "best"}, {"steps.x": "1"}])
def test_bad_values_are_refused_with_their_name(overrides):
    with pytest.raises(UsageError, match=r"steps|rule"):
        load_config("small", [], overrides)


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_config("small", [tmp_path / "none.yaml"], {})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="mapping"):
        load_config("small", [tmp_path / "list.yaml"], {})


def test_every_key_is_described():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            nested = hasattr(field.annotation, "model_fields")
            if nested:
                yield from undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield prefix + name

    assert not list(undescribed(TrainConfig))
