"""A URL with a password or a signature is refused, and is not repeated anywhere."""

import pytest
from tiny_network import run_config

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.generate import generate

URLS = [
    "s3://user:secret@bucket/run",
    "gs://bucket/run?X-Goog-Signature=secret",
    "https://host/weights.pth?X-Amz-Credential=me&X-Amz-Signature=secret",
    "azfs://account/container/run?sv=2020&sig=secret",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("name", ["root", "weights", "annotations", "class_index"])
def test_a_setting_with_credentials_is_refused(tmp_path, name, url):
    given = {"weights": "random:0", name: url}
    root = given.pop("root", str(tmp_path))
    with pytest.raises(SettingsError, match="password or a signature") as refused:
        run_config(root, **given)
    assert "secret" not in str(refused.value)
    assert "user" not in str(refused.value)


@pytest.mark.parametrize("url", URLS)
def test_an_out_with_credentials_is_refused(photos, url):
    with pytest.raises(SettingsError, match="password or a signature") as refused:
        generate(run_config(photos), url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "path", ["s3://bucket/a=b/run", "gs://bucket/x@y:z/run", "/home/me:x@y/run", "run?sig=1"]
)
def test_an_ordinary_path_is_none(path):
    assert files.join(path.replace("?", ""), "a").endswith("/a")


@pytest.mark.parametrize(
    "url",
    ["https://secret@host/x.tar", "http://host/x.tar?key=secret", "https://host/x.tar#secret"],
)
@pytest.mark.parametrize("name", ["root", "weights"])
def test_a_url_of_the_web_with_what_may_be_secret_is_refused(tmp_path, name, url):
    given = {"weights": "random:0", name: url}
    with pytest.raises(SettingsError, match=r"https?://host/x\.tar was given with") as refused:
        run_config(given.pop("root", str(tmp_path)), **given)
    assert "secret" not in str(refused.value).replace("may be secret", "")
