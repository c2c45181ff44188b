"""`squall.CloudBucketMount`, for programs that import it from here."""

from squall.bucket import CloudBucketMount

__all__ = ["CloudBucketMount"]
