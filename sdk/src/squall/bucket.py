"""CloudBucketMount: a bucket of an object store as a folder of containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

from squall.errors import InvalidError, UnimplementedArgument

if TYPE_CHECKING:
    from squall.secret import Secret
    from squall.spec import BucketMount, SecretRef


@dataclass(frozen=True)
class CloudBucketMount:
    """A bucket of S3, or of anything that speaks its language, for `volumes={"/data": CloudBucketMount(...)}`."""

    bucket_name: str
    bucket_endpoint_url: Optional[str] = None
    """Where it is, when not at Amazon: `https://<account>.r2.cloudflarestorage.com`, `https://storage.googleapis.com`,
    `http://minio:9000`."""
    key_prefix: Optional[str] = None
    """Only objects whose names begin so are seen, without it; ends with a slash."""
    secret: Optional[Secret] = None
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN, AWS_REGION if they are needed. They do not
    become variables of the container."""
    oidc_auth_role_arn: Optional[str] = None
    read_only: bool = False
    requester_pays: bool = False
    """Whoever has the keys pays for the traffic."""
    force_path_style: bool = False
    """Name the bucket in the path, not the host, at Amazon, too."""

    def __post_init__(self) -> None:
        from squall.secret import Secret
        from squall.spec import check_bucket

        if self.oidc_auth_role_arn is not None:
            raise UnimplementedArgument(
                "squall does not have `oidc_auth_role_arn=` of CloudBucketMount yet", fix="Give keys in a `secret=`."
            )
        if self.secret is not None and not isinstance(self.secret, Secret):
            raise InvalidError(
                f"CloudBucketMount takes a squall.Secret, got {self.secret!r}",
                fix='Write `secret=squall.Secret.from_name("keys")`.',
            )
        for name in ("read_only", "requester_pays", "force_path_style"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("bucket_name", "bucket_endpoint_url", "key_prefix"):
            if not isinstance(getattr(self, name), str) and (name == "bucket_name" or getattr(self, name) is not None):
                raise InvalidError(f"{name} must be text, got {getattr(self, name)!r}")
        check_bucket(self._at("/", None))
        if self.requester_pays and self.secret is None:
            raise InvalidError("requester_pays=True needs keys: somebody must pay", fix="Give a `secret=`.")

    def mount_at(self, path: str, reference: Callable[[Secret], SecretRef]) -> BucketMount:
        """How a spec names it."""
        return self._at(path, None if self.secret is None else reference(self.secret))

    def _at(self, path: str, secret: Any) -> BucketMount:
        from squall.spec import BucketMount

        return BucketMount(
            path,
            self.bucket_name,
            self.bucket_endpoint_url or "",
            self.key_prefix or "",
            secret,
            self.read_only,
            self.requester_pays,
            self.force_path_style,
        )
