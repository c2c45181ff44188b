"""CloudBucketMount: what is refused where it is written."""

from __future__ import annotations

from typing import Any

import pytest

import squall
from squall import exception
from squall.spec import BucketMount, SecretRef

KEYS = squall.Secret.from_dict({"AWS_ACCESS_KEY_ID": "a"})


def test_a_mount_becomes_a_part_of_the_spec() -> None:
    mount = squall.CloudBucketMount("data", "https://s3.example.com", "in/", KEYS, read_only=True, requester_pays=True)
    made = mount.mount_at("/data", lambda _: SecretRef("keys"))
    assert made == BucketMount("/data", "data", "https://s3.example.com", "in/", SecretRef("keys"), True, True, False)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"bucket_name": "A"}, "3 to 63"),
        ({"bucket_name": "a/../b"}, "3 to 63"),
        ({"bucket_name": None}, "bucket_name must be text"),
        ({"key_prefix": "in"}, "must end with"),
        ({"key_prefix": "/in/"}, "must end with"),
        ({"key_prefix": "a/../"}, "must end with"),
        ({"bucket_endpoint_url": "ftp://x"}, "http\\(s\\) URL"),
        ({"bucket_endpoint_url": "http://user:key@x"}, "http\\(s\\) URL"),
        ({"bucket_endpoint_url": "http://x/path"}, "http\\(s\\) URL"),
        ({"bucket_endpoint_url": "http://x:99999"}, "http\\(s\\) URL"),
        ({"secret": {"AWS_ACCESS_KEY_ID": "a"}}, "squall.Secret"),
        ({"requester_pays": True}, "needs keys"),
        ({"read_only": "yes"}, "True or False"),
    ],
)
def test_what_cannot_be_a_bucket_is_refused_at_once(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(exception.InvalidError, match=told):
        squall.CloudBucketMount(**{"bucket_name": "data", **wrong})


def test_what_is_not_built_says_so() -> None:
    with pytest.raises(exception.Error, match="oidc"):
        squall.CloudBucketMount("data", oidc_auth_role_arn="arn:aws:iam::1:role/x")


def test_buckets_and_volumes_are_not_mounted_in_one_another() -> None:
    app = squall.App()
    volume = squall.Volume.from_name("v")
    with pytest.raises(exception.InvalidError, match="cannot be mounted there"):
        app.function(volumes={"/proc/x": squall.CloudBucketMount("data")}, serialized=False, name="f")(len)
    with pytest.raises(exception.InvalidError, match="names a folder twice"):
        app.function(volumes={"/data": squall.CloudBucketMount("data"), "/data/": volume}, name="f")(len)


@pytest.mark.parametrize("path", ["..", "a/../../b", "/../etc", "a\0b", 7])
def test_a_sub_path_of_a_volume_stays_in_it(path: Any) -> None:
    with pytest.raises(exception.InvalidError, match="sub_path"):
        squall.Volume.from_name("v").with_mount_options(sub_path=path)
