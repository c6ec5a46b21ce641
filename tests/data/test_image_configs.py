import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf" / "data"
NAMES = ["parquet", "imagefolder", "hub", "cifar10", "celeba"]


@pytest.mark.parametrize("name", NAMES)
def test_config_lists_every_option_with_a_comment_and_no_other(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    options = set(inspect.signature(get_class(config._target_)).parameters)
    assert set(config) - {"_target_"} == options
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    uncommented = [line for line in lines if line and not line.startswith("_target_") and "#" not in line]
    assert not uncommented


@pytest.mark.parametrize("name", NAMES)
def test_config_values_are_the_defaults_of_the_class(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    own = {"image_size", "flip"}  # where the data set decides
    for key, parameter in inspect.signature(get_class(config._target_)).parameters.items():
        if parameter.default is not inspect.Parameter.empty and key not in own:
            assert config[key] == parameter.default, key


@pytest.mark.parametrize("name", NAMES)
def test_required_options_are_marked(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    missing = {key for key in config if OmegaConf.is_missing(config, key)}
    assert missing == {"parquet": {"path"}, "imagefolder": {"path"}, "hub": {"name"}}.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_data_set(name, tmp_path):
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        required = {"hub": ["data.name=owner/x"], "cifar10": [], "celeba": []}.get(name, [f"data.path={tmp_path}"])
        config = compose(overrides=[f"+data={name}", f"+cache_dir={tmp_path}", "data.limit=3", *required])
    data = instantiate(config.data)
    assert (data.limit, data.cache_dir) == (3, str(tmp_path))
