"""A setting is right or the process does not start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.catalog import OURS, load_catalog
from jobs.errors import SettingsError
from jobs.request import REQUESTS, input_fields
from jobs.settings import CLIENT_ONLY, VARIABLES, Settings, load_settings

ROOT = Path(__file__).parent.parent

BAD = {
    "FLEET_REDIS_URL": ["localhost:6379", "http://host", "redis://", "redis://host/zero"],
    "FLEET_STORAGE_URL": ["/tmp/x", "ftp://host/x", "file://tmp/x", "s3://"],
    "FLEET_S3_ENDPOINT": ["127.0.0.1:9000", "s3://bucket"],
    "FLEET_KEY_PREFIX": ["a b", "a:b", "a/b"],
    "FLEET_RANKS": ["0", "-1", "two", "1.5", "1000"],
    "FLEET_LEASE_S": ["0", "nan", "forever"],
    "FLEET_MAX_BODY_BYTES": ["1"],
    "FLEET_MODELS": ["/nowhere/models.toml"],
    "FLEET_FETCH_HTTP": ["yes", "2"],
    "FLEET_FETCH_PRIVATE": ["10.1.0.0/33", "10.1.2.3/16", "intranet", "10.1.0.0/16 10.2.0.0/16"],
    "FLEET_EMBED_PARAMETERS": ["yes", "2"],
    "FLEET_EMBED_PROVENANCE": ["off"],
    "FLEET_PUBLIC_URL": [
        *(
            "fleet.example.com",
            "ftp://x",
            "https://",
            "https://x?a=1",
            "https://x/#y",
            "https://:80",
        ),
        *("https://u:p@x", "https://x:port", "https://x/a b", "https://x/../y", "https://x//y"),
    ],
    "FLEET_RANK": ["2"],
}


@pytest.mark.parametrize("name,value", [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_value_is_refused_by_a_sentence_that_names_it(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings({name: value})


def test_a_lease_must_outlive_three_ticks_of_the_reaper() -> None:
    with pytest.raises(SettingsError, match="three times"):
        load_settings({"FLEET_LEASE_S": "5", "FLEET_REAP_S": "3"})


def test_a_password_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"FLEET_REDIS_URL": "redis://user:s3cret@host/zero"})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("value", ["c2VjcmV0" * 4, "whsec_c2VjcmV0", "whsec_se*cret*" * 8])
def test_a_secret_is_not_shown(value: str) -> None:
    with pytest.raises(SettingsError, match="FLEET_WEBHOOK_SECRET must be whsec_") as refused:
        load_settings({"FLEET_WEBHOOK_SECRET": value})
    assert value not in str(refused.value)
    settings = load_settings({"FLEET_WEBHOOK_SECRET": "whsec_" + "c2VjcmV0" * 4})
    assert settings.webhook_secret == b"secret" * 4 and "secret" * 4 not in repr(settings)


def test_silence_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert load_settings({"FLEET_RANKS": "", "FLEET_URL": "http://x", "PATH": "/"}) == Settings()


def test_results_and_models_lie_below_the_data_dir() -> None:
    settings = load_settings({"FLEET_DATA_DIR": "/srv/fleet"})
    assert settings.storage_url == "file:///srv/fleet/storage"
    assert settings.models_dir == Path("/srv/fleet/models")
    assert settings.spool == Path("/srv/fleet/spool")


def test_networks_that_may_be_fetched_from_are_a_list() -> None:
    settings = load_settings({"FLEET_FETCH_PRIVATE": "10.1.0.0/16, fd00:1::/64,127.0.0.2"})
    assert [str(n) for n in settings.fetch_private] == [
        "10.1.0.0/16",
        "fd00:1::/64",
        "127.0.0.2/32",
    ]


def test_gpus_that_are_hidden_are_not_counted() -> None:
    assert load_settings({}).visible_gpus is None
    assert load_settings({"CUDA_VISIBLE_DEVICES": "2,3"}).visible_gpus == 2
    assert load_settings({"CUDA_VISIBLE_DEVICES": ""}).visible_gpus == 0
    assert load_settings({"CUDA_VISIBLE_DEVICES": "0,-1,2"}).visible_gpus == 1


def test_the_example_file_lists_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(example) == set(VARIABLES) | CLIENT_ONLY
    assert load_settings(example) == Settings()


def test_the_stack_hands_on_every_setting_but_its_own_places() -> None:
    stack = (ROOT / "docker-compose.yml").read_text()
    own = {"REDIS_URL", "STORAGE_URL", "S3_ENDPOINT", "DATA_DIR", "MODELS"}
    own.add("MODELS_DIR")
    for name in set(VARIABLES) - {f"FLEET_{word}" for word in own}:
        assert f"  {name}: ${{{name}:-" in stack, name


@pytest.mark.parametrize(
    "command",
    [
        ["celery", "-A", "worker", "worker"],
        ["gunicorn", "api:create_app()", "--bind", "127.0.0.1:0"],
    ],
)
def test_a_process_with_a_bad_setting_ends_with_that_sentence(command: list[str]) -> None:
    environment = {**os.environ, "FLEET_RANKS": "many"}
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0
    assert "FLEET_RANKS='many' is no whole number." in ended.stderr
    assert ended.stderr.count("FLEET_RANKS") == 1, "it is not started again and again"


def test_a_worker_whose_data_folder_cannot_be_made_ends_with_a_sentence() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "worker"],
        env={**os.environ, "FLEET_DATA_DIR": "/proc/nope"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0 and "can't be used" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_that_cannot_preload_a_model_ends_with_a_sentence(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "worker"],
        env={**os.environ, "FLEET_DATA_DIR": str(tmp_path), "FLEET_PRELOAD": "shapes, shaps"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode != 0 and "no model 'shaps'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_with_another_pool_ends_with_a_sentence(models_dir: Path) -> None:
    for options in (["--concurrency", "2"], ["--pool", "solo"]):
        ended = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "worker", "worker", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode != 0 and "as many lanes as ranks" in ended.stderr


@pytest.mark.parametrize(
    "text,words",
    [
        ("models = ", "can't be read"),
        ("x = 1", "no [models.NAME] table"),
        ('[models.a]\nweights = "x"\ntasks = []\nshape = {heads = 1}', "field 'tasks'"),
        ('[models.a]\nweights = "x"\ntasks = ["sing"]\nshape = {heads = 1}', "field 'tasks.0'"),
        ('[models.a]\nweights = "x"\ntasks = ["text-to-image"]', "field 'shape'"),
        ('[models."a/b"]\nweights = "x"\ntasks = ["text-to-image"]\nshape = {heads=1}', "'id'"),
        (
            '[models.a]\nweights = "x"\ntasks = ["text-to-image"]\nshape = {}\n'
            'extra = {clip = {type = "integer", default = 1.5}}',
            "'clip': Input should be a valid integer",
        ),
        (
            '[models.a]\nweights = "x"\ntasks = ["text-to-image"]\nshape = {}\n'
            'extra = {prompt = {type = "string", default = ""}}',
            "prompt is no model's own",
        ),
        (
            '[models.a]\nweights = "x"\ntasks = ["text-to-image"]\nshape = {}\n'
            'extra = {mode = {type = "string", default = "", minimum = 1}}',
            "a string has no bounds",
        ),
        (
            '[models.a]\nweights = "x"\ntasks = ["text-to-image"]\nshape = {}\n'
            'loras = {b = {weights = "x", file = "b.bin"}}',
            "field 'loras.b.file'",
        ),
        ('[models.a]\nwieghts = "x"\ntasks = ["text-to-image"]\nshape = {heads=1}', "wieghts"),
    ],
)
def test_a_bad_catalogue_is_refused_by_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="catalogue") as refused:
        load_catalog(file)
    assert words in str(refused.value)


def test_no_field_of_a_request_can_be_a_models_own() -> None:
    assert set().union(*map(input_fields, REQUESTS)) <= OURS


def test_the_packaged_catalogue_is_sound() -> None:
    catalog = load_catalog(Settings().models)
    assert {"shapes", "wan2.1-t2v-14b", "flux.1-dev"} <= set(catalog)
    shipped, hub = catalog["shapes"], catalog["flux.1-dev"]
    assert (Path(shipped.source(Path("/m"))) / "model_index.json").is_file()
    assert hub.source(Path("/m")) == "black-forest-labs/FLUX.1-dev"
    folder = shipped.model_copy(update={"weights": "./mine"})
    assert folder.source(Path("/m")) == "/m/mine"
