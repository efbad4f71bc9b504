"""Makes the bucket of the storage `s3`, and lets anybody read what is public in it. Changes nothing the second time.

For a bucket of this stack's own. A vendor's is set up by whoever owns the account: see docs/storages.md.
"""

from __future__ import annotations

import json
import sys

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from smart_assets.errors import ConfigurationError
from smart_assets.settings import S3Settings, load_settings

OURS_ALREADY = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def make(settings: S3Settings) -> None:
    """The bucket those settings name, open as they say. Raises the SDK's errors."""
    secret = settings.secret_access_key
    session = Session(settings.access_key_id, secret.get_secret_value() if secret else None)  # type: ignore[no-untyped-call]
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})  # type: ignore[no-untyped-call]
    client = session.client("s3", settings.region or "us-east-1", endpoint_url=settings.endpoint_url, config=config)  # type: ignore[no-untyped-call]
    try:
        client.create_bucket(Bucket=settings.bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in OURS_ALREADY:
            raise
    if settings.public_access == "policy":
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": f"arn:aws:s3:::{settings.bucket}/{settings.prefix}public/*",
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        client.put_bucket_policy(Bucket=settings.bucket, Policy=json.dumps(policy))
    client.close()


def main() -> None:
    """By the service's own settings."""
    try:
        make(load_settings().s3)
    except (ConfigurationError, BotoCoreError, ClientError) as error:
        sys.exit(f"the bucket could not be made: {error}")


if __name__ == "__main__":
    main()
